"""The ``nodeserver`` command."""

from __future__ import annotations

import importlib

import click

from nodeserver import __version__

VERBS = {
    "cluster": ("cluster.cluster", "Run a cluster on this machine until Ctrl-C."),
    "durability": ("durability.durability", "Tell how likely it is that a cluster loses data."),
    "metadata": ("metadata.metadata", "Move all metadata from one database to another."),
    "node": ("nodes.node", "Change a node's place in the cluster."),
    "nodes": ("nodes.nodes", "List the nodes of the cluster."),
    "serve": ("serve.command", "Serve the data in a directory."),
    "status": ("nodes.status", "Say whether the cluster is healthy, or what is wrong."),
    "token": ("token.token", "Print a new token."),
    "workers": ("workers.workers", "Show and steer what goes on in the background."),
}
"""Where a verb's command is, and what it does."""


class Verbs(click.Group):
    """Imports a verb's module when it is used: a command that only asks a server starts quickly."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The verbs."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a verb."""
        if cmd_name not in VERBS:
            return None
        module, _, name = VERBS[cmd_name][0].partition(".")
        command: click.Command = getattr(importlib.import_module(f"nodeserver.cli.{module}"), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The verbs with what they do, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(verb, what) for verb, (_, what) in VERBS.items()])


@click.group(cls=Verbs)
@click.version_option(__version__)
def main() -> None:
    """Keeps the files of mountfs: chunks on disk, metadata in a database, both over HTTP.

    Exit codes: 0 stopped in order; 1 failed; 2 wrong usage or configuration; 3 the data directory is in use;
    4 the data directory was written by a newer release; 5 the address cannot be listened on.
    """


if __name__ == "__main__":
    main()
