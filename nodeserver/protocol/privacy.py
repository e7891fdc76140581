"""Who may read what was: nobody whom either the mode of then or the present one keeps out."""

from __future__ import annotations

import stat
from typing import NamedTuple


class Access(NamedTuple):
    """The mode (type bits included), owner and group of a file."""

    mode: int
    uid: int
    gid: int


def restrict(then: Access, now: Access) -> Access:
    """What to show of a file that was ``then``, and is, or is continued by one that is, ``now``.

    The owner and group are the present ones. Whoever was in another class then, or may have been, gets what all
    classes had.
    """
    if (then.uid, then.gid) == (now.uid, now.gid):
        return Access(stat.S_IFMT(then.mode) | stat.S_IMODE(then.mode) & stat.S_IMODE(now.mode), now.uid, now.gid)
    owner, group, others = (then.mode >> shift & 0o7 for shift in (6, 3, 0))
    all_had = owner & group & others
    if then.uid != now.uid:
        owner, group = all_had, group & owner
    if then.gid != now.gid:
        group = all_had
    return Access(stat.S_IFMT(then.mode) | (owner << 6 | group << 3 | all_had) & now.mode, now.uid, now.gid)
