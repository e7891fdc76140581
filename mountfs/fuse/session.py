"""The FUSE session: mounting, serving, ending."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyfuse3

from mountfs import mounts
from mountfs.config import MountOptions
from mountfs.errors import MountError
from mountfs.fuse import polling
from mountfs.fuse.adapter import Adapter
from mountfs.fuse.invalidation import Invalidation
from mountfs.vfs.filesystem import FileSystem

log = logging.getLogger(__name__)

MAX_TASKS = 512
"""Requests answered at the same time; stalled ones must not starve the rest."""
READ_AHEAD_KB = 4096
FUSE_CONF = Path("/etc/fuse.conf")


@contextmanager
def mounted(fs: FileSystem, mountpoint: Path, source: str) -> Iterator[str]:
    """The file system mounted at ``mountpoint``, until the block ends; yields its device, ``major:minor``.

    Leaving by an exception leaves the mount point dead (ENOTCONN), never an empty directory.
    Raises MountError.
    """
    adapter = Adapter(fs)
    try:
        pyfuse3.init(adapter, str(mountpoint), _mount_options(fs, source))
    except RuntimeError as error:
        raise MountError(f"cannot mount on {mountpoint}: {_reason(error, fs.options)}") from error
    polling.install()
    kernel = Invalidation()
    fs.engine.context.kernel = kernel
    mount = mounts.find(mountpoint)
    device = mount.device if mount else ""
    unmount = False
    try:
        yield device
        top = mounts.top(mountpoint)
        unmount = top is not None and top.device == device  # and not another one that is there by now
    finally:
        kernel.close()
        pyfuse3.close(unmount=unmount)


def _mount_options(fs: FileSystem, source: str) -> set[str]:
    """What libfuse is told at mount."""
    options = {f"fsname={source}", "subtype=mountfs", "default_permissions"}
    if fs.options.allow_other:
        options.add("allow_other")
    if fs.options.noexec:
        options.add("noexec")
    if fs.options.ro:
        options.add("ro")
    if os.geteuid() == 0:
        options |= {"nodev" if fs.options.nodev else "dev", "nosuid" if fs.options.nosuid else "suid"}
    return options


def _reason(error: RuntimeError, options: MountOptions) -> str:
    if not Path("/dev/fuse").exists():
        return "/dev/fuse is missing: load the kernel module fuse"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "no permission to open /dev/fuse"
    if os.geteuid() and options.allow_other and not _user_allow_other():
        return f"allow_other is not for users here: root has to write the line user_allow_other into {FUSE_CONF}"
    if os.geteuid() and "\nNoNewPrivs:\t1\n" in Path("/proc/self/status").read_text():
        return "fusermount3 must gain privileges to mount, which is forbidden here (NoNewPrivileges= in a unit)"
    return f"{error} (see `mountfs doctor`)"


def _user_allow_other() -> bool:
    try:
        return "user_allow_other" in map(str.strip, FUSE_CONF.read_text().splitlines())
    except OSError:
        return False


async def serve() -> None:
    """Answer requests until unmounted or :func:`end`."""
    await pyfuse3.main(max_tasks=MAX_TASKS)


def end() -> None:
    """Make :func:`serve` return."""
    pyfuse3.terminate()


def raise_read_ahead(device: str) -> None:
    """Let the kernel read further ahead, where we may tell it to."""
    path = Path(f"/sys/class/bdi/{device}/read_ahead_kb")
    try:
        path.write_text(str(READ_AHEAD_KB))
    except OSError as error:
        log.debug("%s: %s", path, error)
