"""Start a mount daemon: in this process, or in one of its own that outlives the command."""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

from mountfs import control, mounts
from mountfs.cli import live
from mountfs.cli.progress import waiting
from mountfs.cli.settings import TOKEN
from mountfs.config import MountConfig
from mountfs.errors import Busy, MountError, NotMounted
from mountfs.local.private import make_private
from mountfs.notify import notify

LOG = "mountfs.log"
"""The log in the state directory of a mount that runs in the background."""
LOG_BYTES = 5 << 20
LOG_FILES = 4
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
ANSWER = 30.0
"""Seconds a fresh mount may take to answer its first call."""


class _LogFile(logging.handlers.RotatingFileHandler):
    """A rotated log that standard output and error follow, so that what C code prints is kept too."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, maxBytes=LOG_BYTES, backupCount=LOG_FILES - 1)
        self._redirect()

    def doRollover(self) -> None:  # noqa: N802
        super().doRollover()
        self._redirect()

    def _redirect(self) -> None:
        stream = self.stream or self._open()
        for descriptor in (1, 2):
            os.dup2(stream.fileno(), descriptor)


@contextlib.contextmanager
def prepared(config: MountConfig) -> Iterator[None]:
    """Make the state directory and a free mount point; one that was made goes again when the block fails.

    Detaches what a dead daemon left. Raises ``MountError``.
    """
    point = config.mountpoint
    try:
        make_private(config.state, {LOG, TOKEN, "mount.db", "lock"})
    except OSError as error:
        raise MountError(f"state directory {config.state}: {error.strerror}") from None
    if not os.access(config.state, os.R_OK | os.W_OK | os.X_OK):
        raise MountError(f"state directory {config.state}: no permission to write in it")
    for former in mounts.records():
        if former.state == str(config.state) and former.running and not mounts.find(Path(former.mountpoint)):
            take_over(former)
    while mounts.find(point):
        if (health := mounts.probe(point)) != "dead":
            record = mounts.record_of(point)
            owner = f" by process {record.pid}" if record else ""
            raise Busy(f"{point}: already mounted{owner}" + (", which does not answer" if health == "silent" else ""))
        mounts.unmount(point, lazy=True)
    made = False
    try:
        with contextlib.suppress(FileExistsError):
            point.mkdir(parents=True)
            made = True
        os.scandir(point).close()
    except OSError as error:
        raise MountError(f"mount point {point}: {error.strerror}") from None
    try:
        yield
    except BaseException:
        if made:
            with contextlib.suppress(OSError):
                point.rmdir()
        raise


def take_over(record: mounts.Record) -> None:
    """End a mount that is off the tree and still sends: the next one sends what it leaves. Raises ``MountError``."""
    with contextlib.suppress(NotMounted):
        control.call(record.control, "stop", {"deadline": 0, "lazy": True}, timeout=ANSWER)
    if not live.wait_for_end(record, ANSWER):
        raise Busy(f"{record.state} is in use by process {record.pid}, which does not end")


def foreground(config: MountConfig, *, debug: bool = False) -> None:
    """Run the daemon in this process until it is unmounted; logs to standard error, tells systemd when it is ready."""
    with prepared(config):
        _log_to(logging.StreamHandler(), debug)
        _run(config, lambda: notify("READY=1"))


def background(config: MountConfig, *, debug: bool = False, detach: bool = True) -> int:
    """Start the daemon as a process of its own and return its id once the mount answers. Raises ``MountError``.

    ``detach`` makes it independent of this process; else it is a child in a process group of its own that is asked
    to end when this one dies.
    """
    with prepared(config):
        return _start(config, debug=debug, detach=detach)


def _start(config: MountConfig, *, debug: bool, detach: bool) -> int:
    answer, report = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(answer)
        _daemon(config, report, debug, detach)
    os.close(report)
    with open(answer, encoding="utf-8", errors="replace") as stream:
        text = waiting(f"mounting {config.url}", stream.read)
    word, _, rest = text.partition(" ")
    if detach or word != "ready":
        os.waitpid(child, 0)
    if word == "error":
        raise MountError(rest)
    if word != "ready":
        raise MountError(f"the mount ended before it was ready; see {config.state / LOG}")
    if mounts.probe(config.mountpoint, ANSWER) != "alive":
        raise NotMounted(f"{config.mountpoint}: the mount does not answer; see {config.state / LOG}")
    return int(rest)


def _daemon(config: MountConfig, report: int, debug: bool, detach: bool) -> NoReturn:
    """The forked child: never returns into the code of its parent."""
    code = 1
    try:
        os.closerange(3, report)
        os.closerange(report + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if detach:
            os.setsid()
            if os.fork():  # so that it can never get a terminal
                os._exit(0)
        else:
            os.setpgid(0, 0)
            _end_with_parent()
        os.environ.pop("NOTIFY_SOCKET", None)  # it belongs to whoever waits for this mount
        os.chdir("/")
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        _log_to(_LogFile(config.state / LOG), debug)

        def ready() -> None:
            os.write(report, f"ready {os.getpid()}".encode())
            os.close(report)

        _run(config, ready)
        code = 0
    except MountError as error:
        logging.getLogger(__name__).error("%s", error)
        _tell(report, f"error {error}")
        code = error.exit_code
    except BaseException as error:  # whatever it is, it must not unwind into the command's code
        logging.getLogger(__name__).critical("the mount ends", exc_info=True)
        why = (error.strerror or "") if isinstance(error, OSError) else "a fault of mountfs"
        _tell(report, f"error the mount ended before it was ready ({why}); see {config.state / LOG}")
    finally:
        logging.shutdown()
        os._exit(code)


def _run(config: MountConfig, ready: Callable[[], None]) -> None:
    from mountfs import daemon

    def started() -> None:
        _keep_token(config)
        ready()

    # A staging file and a connection each: the customary 1,024 descriptors are soon used up.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    daemon.run(config, started)


def _keep_token(config: MountConfig) -> None:
    """Keep the token that worked, for the next mount and for other commands."""
    fresh = config.state / f".{TOKEN}.{os.getpid()}"
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as stream:
        stream.write(config.token + "\n")
    fresh.replace(config.state / TOKEN)


def _tell(report: int, text: str) -> None:
    # The pipe is closed once the mount was ready: then the log is the place.
    with contextlib.suppress(OSError):
        os.write(report, text.encode())


def _log_to(handler: logging.Handler, debug: bool) -> None:
    handler.setFormatter(logging.Formatter(LOG_FORMAT))
    logging.basicConfig(level=logging.DEBUG if debug else logging.INFO, handlers=[handler], force=True)
    for noisy in ("httpx", "httpcore"):
        logging.getLogger(noisy).setLevel(logging.INFO if debug else logging.WARNING)


def _end_with_parent() -> None:
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    if os.getppid() == 1:
        sys.exit("the parent has gone")
