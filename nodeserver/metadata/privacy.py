"""Who may read what was: nobody whom either the mode of then or the present one keeps out."""

from __future__ import annotations

import stat
from typing import NamedTuple


class Access(NamedTuple):
    """The mode, owner and group of a file."""

    mode: int
    uid: int
    gid: int


def restrict(then: Access, now: Access) -> Access:
    """What to show of a file that was ``then``, and is, or is continued by one that is, ``now``.

    The owner and group are the present ones. Each of the three classes gets what both allow the users in it: those
    of an owner or group that changed were among the others then.
    """
    if (then.uid, then.gid) == (now.uid, now.gid):
        return Access(stat.S_IFMT(then.mode) | stat.S_IMODE(then.mode) & stat.S_IMODE(now.mode), now.uid, now.gid)
    others = then.mode & 0o7
    owner = then.mode >> 6 & 0o7 if then.uid == now.uid else others
    group = then.mode >> 3 & 0o7 if then.gid == now.gid else others
    allowed = owner << 6 | group << 3 | others
    return Access(stat.S_IFMT(then.mode) | allowed & now.mode, now.uid, now.gid)
