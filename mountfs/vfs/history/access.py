"""Who may read what was: the server tells, and what was changed here and is not there yet takes more away."""

from __future__ import annotations

import stat
from typing import NamedTuple


class Access(NamedTuple):
    """Mode (type bits included), owner and group of a file."""

    mode: int
    uid: int
    gid: int


def restrict(then: Access, now: Access) -> Access:
    """What to show of a file that was ``then`` and is ``now``, as the server does it (docs/semantics.md).

    Nobody may do what either of them does not let him; owner and group are the present ones.
    """
    kind, mode = stat.S_IFMT(then.mode), stat.S_IMODE(then.mode)
    if then[1:] == now[1:]:
        return Access(kind | mode & stat.S_IMODE(now.mode), now.uid, now.gid)
    others = mode & 0o7
    owner = mode >> 6 & 0o7 if then.uid == now.uid else others
    group = mode >> 3 & 0o7 if then.gid == now.gid else others
    return Access(kind | (owner << 6 | group << 3 | others) & now.mode, now.uid, now.gid)
