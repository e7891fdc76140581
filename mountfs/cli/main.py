"""The ``mountfs`` command."""

from __future__ import annotations

import importlib
from typing import Any

import click

import nodeserver
from mountfs.errors import MountError

VERBS = {
    "bucket": "Create, list, set up and delete buckets.",
    "diff": "Compare versions of a file, or a directory with what it was.",
    "doctor": "Check what mountfs needs, and say how to mend it.",
    "hold": "Keep all history of a file or directory.",
    "log": "Show what happened to a file or below a directory.",
    "mount": "Mount the buckets of a node server.",
    "purge": "Destroy history of a file for good.",
    "refused": "Show, retry or drop changes that the server refuses.",
    "restore": "Make a file or directory what it was.",
    "retention": "Show or set which versions are kept.",
    "status": "Show how mounts are doing.",
    "sync": "Wait until everything is on the nodes.",
    "umount": "Send what is pending, then unmount.",
    "undo": "Take the last change of a file back.",
    "up": "Serve and mount a private folder.",
    "why": "Show where the chunks of a file are.",
}


class Verbs(click.Group):
    """Imports a verb's module when it is used: commands start quickly, and each needs only its own parts."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The verbs."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of module ``cmd_name``."""
        if cmd_name not in VERBS:
            return None
        command: click.Command = importlib.import_module(f"mountfs.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The verbs with their help, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """The arguments; with a URL in place of a verb they are those of mount.fuse(8), which mounts by our name."""
        if args and "://" in args[0]:
            ctx.exit(importlib.import_module("mountfs.cli.mount_helper").run(args))
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb; what it refuses becomes one line and an exit code."""
        try:
            return super().invoke(ctx)
        except MountError as error:
            click.echo(f"mountfs: {error}", err=True)
            ctx.exit(error.exit_code)


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(nodeserver.__version__, prog_name="mountfs", message="%(prog)s %(version)s")
def main() -> None:
    """Buckets of a node server as a folder."""


if __name__ == "__main__":
    main()
