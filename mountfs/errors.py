"""Errors for the person at the command line, and the exit codes they lead to."""

from __future__ import annotations


class MountError(Exception):
    """The mount cannot start or go on; the message is one line that says why and what to do."""

    exit_code: int = 1


class Misused(MountError):
    """What was asked for makes no sense, whatever there is: wrong options, addresses, names, settings."""

    exit_code = 2


class Pending(MountError):
    """The deadline passed with changes that are not on the nodes yet; they stay in the journal."""

    exit_code = 3


class Busy(MountError):
    """Something still uses what has to go away."""

    exit_code = 4


class NotMounted(MountError):
    """There is no mount of ours at the path, or it does not answer."""

    exit_code = 5
