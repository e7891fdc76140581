"""A machine that systemd boots: a container on a copy-on-write view of this machine's root, with what we install.

Nothing is downloaded, and nothing that is done in it stays.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tomllib
import uuid
from pathlib import Path
from types import TracebackType
from typing import IO

from tests.harness import eventually

PROJECT = Path(__file__).parents[2]
PYTHON = Path(os.__file__).parent.name
PACKAGES = f".venv/lib/{PYTHON}/site-packages"
BOOT = 60.0
"""Seconds it may take until systemd has started what it was told to."""
UID = 12345
"""Of the ordinary user ``someone``, whose services run without a login."""
USER = f"someone:x:{UID}:{UID}::/home/someone:/bin/sh"
SCRIPT = """#!/bin/sh
export LD_LIBRARY_PATH=/opt/python/lib PYTHONPATH=/opt/mountfs:/opt/mountfs/{packages}
exec /opt/python/bin/{python} -c '
import sys
from {module} import {function}
sys.argv[0] = "{program}"
{function}()' "$@"
"""
TARGET = """
[Unit]
Wants=sysinit.target dbus.socket systemd-logind.service
After=sysinit.target dbus.socket systemd-logind.service
"""


def alone(point: Path | None, propagation: str = "private") -> list[str]:
    """What starts a command in a mount namespace of its own, without our mounts in it, but for the one at ``point``.

    A namespace holds what was mounted when it began, as long as it lives: mounts of other tests are not its business.
    """
    others = "awk '/ - fuse.mountfs / && $5 != p {print $5}' p=\"$1\" /proc/self/mountinfo"
    script = f'{others} | xargs -r umount -l; shift; exec "$@"'
    return ["unshare", "--mount", f"--propagation={propagation}", "sh", "-c", script, "sh", str(point or "")]


class Machine:
    """The running container."""

    def __init__(self, place: Path) -> None:
        self.root = place / "root"
        self._layer = place / "layer"
        self._log = place / "console"
        self._process: subprocess.Popen[bytes] | None = None
        self._leader = 0

    def __enter__(self) -> Machine:
        try:
            self._make_root()
            self._install()
            with open(self._log, "wb") as log:
                self._boot(log)
            eventually(lambda: (self._process and self._process.poll() is not None) or self._booted(), BOOT)
            assert self._leader, self.log()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        if self._process:
            self._find_leader()
            if self._leader:  # with it the kernel ends all that is in the container; systemd-nspawn follows
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._leader, signal.SIGKILL)
            else:
                self._process.terminate()
            self._process.wait(BOOT)
        for place in self.root, self._layer:
            subprocess.run(["umount", "-l", place], check=False, stderr=subprocess.DEVNULL)

    def run(self, *command: str, user: bool = False, code: int | None = 0, feed: str = "") -> str:
        """What a command prints in the machine, run by root or the ordinary user. ``code``: how it has to end."""
        home, uid = ("/home/someone", UID) if user else ("/root", 0)
        environment = {
            "HOME": home,
            "PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            **({"XDG_RUNTIME_DIR": f"/run/user/{uid}"} if user else {}),
        }
        enter = ["nsenter", "--target", str(self._leader), "--all"]
        become = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "env", "--chdir=/"]
        result = subprocess.run(
            [*enter, *become, *command],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env=environment,
            input=feed,
        )
        if code is not None and result.returncode != code:
            raise AssertionError(
                f"{command} ended with {result.returncode}:\n{result.stdout}{result.stderr}\n{self.log()}"
            )
        return result.stdout + result.stderr

    def write(self, path: str, text: str, *, user: bool = False) -> None:
        """A file of mode 600 in the machine, with its directories."""
        self.run("sh", "-c", 'umask 077; mkdir -p "${1%/*}"; cat > "$1"', "sh", path, user=user, feed=text)

    def log(self) -> str:
        """The end of what systemd and the services said."""
        journal = self._layer / "upper/var/log/journal"
        found = subprocess.run(
            ["journalctl", "--no-pager", "-n", "200", "-D", journal], capture_output=True, text=True, check=False
        )
        return self._log.read_text(errors="replace")[-4000:] + found.stdout

    def _make_root(self) -> None:
        """This machine's root, where changes go to memory."""
        self.root.mkdir()
        self._layer.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", self._layer], check=True)
        for name in "upper", "work":
            (self._layer / name).mkdir()
        # As udev makes it; this machine's need not be open to everybody.
        os.mknod(self._layer / "fuse", stat.S_IFCHR, os.stat("/dev/fuse").st_rdev)
        os.chmod(self._layer / "fuse", 0o666)
        layers = f"lowerdir=/,upperdir={self._layer}/upper,workdir={self._layer}/work"
        subprocess.run(["mount", "-t", "overlay", "-o", layers, "overlay", self.root], check=True)

    def _install(self) -> None:
        root = self.root
        etc = root / "etc"
        (etc / "machine-id").unlink(missing_ok=True)
        (etc / "machine-id").write_text(uuid.uuid4().hex + "\n")
        (etc / "fstab").write_text("")
        for name, line in ("passwd", USER), ("group", f"someone:x:{UID}:"), ("shadow", "someone:*:19000:0:99999:7:::"):
            with open(etc / name, "a") as stream:
                stream.write(line + "\n")
        home = root / "home/someone"
        units = home / ".config/systemd/user"
        for directory in units, root / "var/lib/systemd/linger", root / "usr/local/bin", root / "var/log/journal":
            directory.mkdir(parents=True, exist_ok=True)
        (root / "var/lib/systemd/linger/someone").touch()
        shutil.copy(PROJECT / "systemd/mountfs@.service", units)
        shutil.copy(PROJECT / "systemd/nodeserver.service", etc / "systemd/system")
        (etc / "systemd/system/trial.target").write_text(TARGET)
        for path in home, *home.rglob("*"):
            os.chown(path, UID, UID)
        # Where every user and every sandbox may look, as an installation would be.
        for program, entry in tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["scripts"].items():
            module, _, function = entry.partition(":")
            place = root / ("sbin" if "." in program else "usr/local/bin") / program
            place.unlink(missing_ok=True)
            place.write_text(
                SCRIPT.format(python=PYTHON, packages=PACKAGES, module=module, function=function, program=program)
            )
            place.chmod(0o755)

    def _boot(self, log: IO[bytes]) -> None:
        binds = [
            f"--bind-ro={PROJECT}:/opt/mountfs",
            f"--bind-ro={sys.base_prefix}:/opt/python",
            f"--bind={self._layer}/fuse:/dev/fuse",
        ]
        private = ["--register=no", "--keep-unit", "--link-journal=no", "--private-network", "--console=read-only"]
        self._process = subprocess.Popen(
            [
                *alone(None),
                "systemd-nspawn",
                "--quiet",
                f"--directory={self.root}",
                *binds,
                *private,
                "--boot",
                "systemd.unit=trial.target",
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )

    def _booted(self) -> bool:
        """Whether services of the system and of the ordinary user can be started."""
        self._find_leader()
        if not self._leader:
            return False
        ready = ["nsenter", f"--target={self._leader}", "--all", "test", "-S", f"/run/user/{UID}/systemd/private"]
        return subprocess.run(ready, check=False, stderr=subprocess.DEVNULL).returncode == 0

    def _find_leader(self) -> None:
        """Find the first process in the container, once there is one."""
        assert self._process
        if self._process.poll() is not None:
            return
        task = Path(f"/proc/{self._process.pid}/task/{self._process.pid}")
        for child in (task / "children").read_text().split():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                ids = re.search(r"^NSpid:\t(.*)", Path(f"/proc/{child}/status").read_text(), re.MULTILINE)
                if ids and ids[1].endswith("\t1"):
                    self._leader = int(child)
