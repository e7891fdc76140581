"""Random orders of ordinary calls on a few files, and what the files then must contain.

In the manner of fsx, but on several files that share content, links and names, while the server is slow and the
mount comes and goes. An order is a list of `Op`, drawn from a seed. `Script` turns it into calls, one at a time, and
compares what comes back with arrays of bytes; a driver makes the calls, on a mount or on ``mountfs.vfs``.
"""

from __future__ import annotations

import collections
import random
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, NoReturn

KIB = 1 << 10
MIB = 1 << 20
PAGE = 4096
SCALES = {
    "a": 128 * KIB,
    "b": 256 * KIB,
    "c": 256 * KIB,
    "d": MIB,
    "e": MIB,
    "f": 4 * MIB,
}
"""The names, and the size around which the content of each is; a file made under a name has its scale."""
NAMES = "".join(SCALES)
NAME_ODDS = (4, 5, 5, 5, 3, 1)
SLOTS = 3
"""Files open at the same time."""
EDGES = (128 * KIB, 256 * KIB, 512 * KIB, MIB, 4 * MIB)
EARLIER = 6
"""Contents that are remembered, to be written again elsewhere."""
STOPPED_OPS = 60
"""Operations after which a stopped server goes on at the latest."""
STOPPED_SECONDS = 0.2
"""Drivers let it go on after this time, too: some calls need it."""
DATA = random.Random(1).randbytes(10 * MIB)
"""Where written bytes come from: those at each offset here are unlike those at any other."""
TAGS = 5 * MIB


class Op(NamedTuple):
    """One step; `Script` says what each does."""

    kind: str
    where: str = ""
    """A name, or an open file's number."""
    start: int = 0
    length: int = 0
    tag: int = 0
    """Where in ``DATA`` the bytes come from."""
    to: str = ""

    def __repr__(self) -> str:
        given = {name: value for name, value in zip(self._fields[1:], self[1:], strict=True) if value}
        return f"Op({self.kind!r}{''.join(f', {name}={value!r}' for name, value in given.items())})"


Odds = Mapping[str, float]

ODDS: Odds = {
    "open": 8,
    "close": 4,
    "write": 34,
    "read": 6,
    "truncate": 14,
    "fsync": 4,
    "copy": 4,
    "link": 5,
    "rename": 4,
    "unlink": 2,
    "look": 3,
    "stop": 2,
    "go": 4,
    "pause": 5,
    "sync": 0.5,
    "check": 1,
    "remount": 0.05,
    "fresh": 0.02,
}
"""How often each operation is drawn."""

Call = tuple[Any, ...]
"""Name of a driver's method, and its arguments."""
Calls = Generator[Call, Any, None]


class Different(AssertionError):
    """Something is not what it must be."""


def different(what: str, has: bytes, should: bytes) -> NoReturn:
    """Raises Different, with where the two differ."""
    start = next((at for at, (x, y) in enumerate(zip(has, should, strict=False)) if x != y), min(len(has), len(should)))
    end = max((at for at in range(start, min(len(has), len(should))) if has[at] != should[at]), default=start) + 1
    zeros = " (zeros)" if not any(has[start:end]) else ""
    raise Different(
        f"{what}: {len(has)} bytes, should be {len(should)}; differs in [{start}:{end}], where it has"
        f" {has[start : start + 8].hex()}{zeros} and should have {should[start : start + 8].hex()}"
    )


class Script:
    """The state that calls have to agree with."""

    def __init__(self) -> None:
        self.names: dict[str, int] = {}
        self.contents: dict[int, bytearray] = {}
        self.scales: dict[int, int] = {}
        self.open: dict[str, tuple[int, int]] = {}
        """Of the slots in use, the driver's handle and the file."""
        self.earlier: collections.deque[bytes] = collections.deque(maxlen=EARLIER)
        self.stopped = 0
        """Operations since the server was stopped, 0 when it runs."""
        self._last = 0

    def all(self, ops: Iterable[Op]) -> Calls:
        """The calls of operations, one after the other."""
        for op in ops:
            yield from self.do(op)

    def do(self, op: Op) -> Calls:
        """The calls of one operation; what does not fit the state does nothing. Raises Different."""
        if self.stopped:
            self.stopped += 1
            if self.stopped > STOPPED_OPS or op.kind in ("fsync", "sync", "remount", "fresh", "go"):
                self.stopped = 0
                yield ("go",)
        yield from getattr(self, f"_{op.kind}")(op)

    def _new(self, name: str) -> int:
        self._last += 1
        self.names[name] = self._last
        self.contents[self._last] = bytearray()
        self.scales[self._last] = SCALES[name]
        return self._last

    def _open(self, op: Op) -> Calls:
        if op.where not in self.open:
            handle = yield ("open", op.to, False)
            self.open[op.where] = (handle, self.names.get(op.to) or self._new(op.to))

    def _close(self, op: Op) -> Calls:
        if op.where in self.open:
            handle, file = self.open.pop(op.where)
            yield ("close", handle)
            self._remember(file)

    def _write(self, op: Op) -> Calls:
        if op.where in self.open:
            handle, file = self.open[op.where]
            content = self.contents[file]
            data = DATA[op.tag : op.tag + op.length]
            yield ("write", handle, data, op.start)
            if len(content) < op.start:
                content += bytes(op.start - len(content))
            content[op.start : op.start + op.length] = data

    def _read(self, op: Op) -> Calls:
        if op.where in self.open:
            handle, file = self.open[op.where]
            has = yield ("read", handle, op.length, op.start)
            should = self.contents[file][op.start : op.start + op.length]
            if has != should:
                different(f"{self._called(file)} from {op.start} on", has, bytes(should))

    def _truncate(self, op: Op) -> Calls:
        if op.where in self.open:
            handle, file = self.open[op.where]
            yield ("truncate", handle, op.start)
            content = self.contents[file]
            if op.start < len(content):
                del content[op.start :]
            else:
                content += bytes(op.start - len(content))

    def _fsync(self, op: Op) -> Calls:
        if op.where in self.open:
            handle, file = self.open[op.where]
            yield ("fsync", handle)
            self._remember(file)

    def _copy(self, op: Op) -> Calls:
        """What some file contained earlier becomes the content of a name."""
        if self.earlier:
            data = self.earlier[op.tag % len(self.earlier)]
            handle = yield ("open", op.where, True)
            file = self.names.get(op.where) or self._new(op.where)
            for start in range(0, len(data), 128 * KIB):
                yield ("write", handle, data[start : start + 128 * KIB], start)
            yield ("close", handle)
            self.contents[file][:] = data

    def _link(self, op: Op) -> Calls:
        if op.where in self.names and op.where != op.to:
            if op.to in self.names:
                yield ("unlink", op.to)
            yield ("link", op.where, op.to)
            self.names[op.to] = self.names[op.where]

    def _rename(self, op: Op) -> Calls:
        if op.where in self.names and self.names.get(op.to) != self.names[op.where]:
            yield ("rename", op.where, op.to)
            self.names[op.to] = self.names.pop(op.where)

    def _unlink(self, op: Op) -> Calls:
        if op.where in self.names:
            yield ("unlink", op.where)
            del self.names[op.where]

    def _look(self, op: Op) -> Calls:
        if op.where in self.names:
            has, should = (yield ("content", op.where)), self.contents[self.names[op.where]]
            if has != should:
                different(op.where, has, bytes(should))

    def _stop(self, op: Op) -> Calls:
        if not self.stopped:
            self.stopped = 1
            yield ("stop",)

    def _go(self, op: Op) -> Calls:
        yield from ()

    def _pause(self, op: Op) -> Calls:
        yield ("pause", op.length)

    def _sync(self, op: Op) -> Calls:
        yield ("sync",)

    def _check(self, op: Op) -> Calls:
        """Everything, through open files and by name."""
        for handle, file in self.open.values():
            has, should = (yield ("read", handle, len(self.contents[file]) + 1, 0)), self.contents[file]
            if has != should:
                different(f"{self._called(file)}, open", has, bytes(should))
        names = yield ("names",)
        if set(names) != set(self.names):
            raise Different(f"the names are {sorted(names)}, should be {sorted(self.names)}")
        for name in self.names:
            yield from self._look(Op("look", name))
        yield ("verify",)
        self.contents = {file: content for file, content in self.contents.items() if file in self._used()}

    def _remount(self, op: Op) -> Calls:
        """End, in order or not (``tag``), and begin with the same state; ``fresh`` with an empty one."""
        for slot in list(self.open):
            yield from self._close(Op("close", slot))
        yield ("remount", bool(op.tag))
        yield from self._check(op)

    def _fresh(self, op: Op) -> Calls:
        for slot in list(self.open):
            yield from self._close(Op("close", slot))
        yield ("fresh",)
        yield from self._check(op)

    def _remember(self, file: int) -> None:
        content = self.contents[file]
        if content and (not self.earlier or self.earlier[-1] != content):
            self.earlier.append(bytes(content))

    def _used(self) -> set[int]:
        return {*self.names.values(), *(file for _, file in self.open.values())}

    def _called(self, file: int) -> str:
        return "+".join(name for name, other in self.names.items() if other == file) or "an unlinked file"


FINISH = [Op("check"), Op("remount"), Op("fresh")]
"""How an order ends: the content is right in a mount with an empty state, too."""


class Drawing:
    """Draws operations that make sense in a script's state."""

    def __init__(self, seed: int, odds: Odds = ODDS) -> None:
        self._random = random.Random(seed)
        self._kinds = list(odds)
        self._odds = list(odds.values())

    def draw(self, script: Script) -> Op:
        rng = self._random
        kind = rng.choices(self._kinds, self._odds)[0]
        name = rng.choices(NAMES, NAME_ODDS)[0]
        slot = rng.choice(list(script.open)) if script.open else ""
        if (kind in ("write", "read", "truncate", "fsync", "close", "open") and not slot) or kind == "open":
            return Op("open", str(rng.randrange(SLOTS)), to=name)
        if kind in ("fsync", "close"):
            return Op(kind, slot)
        if kind in ("write", "read", "truncate"):
            file = script.open[slot][1]
            limit = script.scales[file] * 5 // 4
            start = self._place(len(script.contents[file]), limit)
            if kind == "truncate":
                return Op(kind, slot, start)
            length = max(1, min(self._length(start, limit), limit + PAGE - start))
            return Op(kind, slot, start, length, rng.randrange(TAGS) if kind == "write" else 0)
        if kind in ("link", "rename"):
            return Op(kind, rng.choice(list(script.names) or [name]), to=name)
        if kind in ("unlink", "look"):
            return Op(kind, name)
        if kind == "copy":
            return Op(kind, name, tag=rng.randrange(EARLIER))
        if kind == "pause":
            return Op(kind, length=rng.choice((0, 1, 1, 3, 10)))
        if kind == "remount":
            return Op(kind, tag=rng.randrange(2))
        return Op(kind)

    def _place(self, size: int, limit: int) -> int:
        """An offset: an edge, the end, a page, anywhere."""
        rng = self._random
        match rng.randrange(6):
            case 0:
                return 0
            case 1:
                return min(size, limit)
            case 2:
                place = rng.choice([edge for edge in EDGES if edge <= limit])
                return max(0, min(limit, place + rng.choice((0, 0, 0, -1, 1, PAGE, -PAGE))))
            case 3:
                return rng.randrange(limit // PAGE) * PAGE
            case 4:
                return min(limit, size // 2)
            case _:
                return rng.randrange(limit)

    def _length(self, start: int, limit: int) -> int:
        rng = self._random
        match rng.randrange(6):
            case 0 | 1:
                return rng.randrange(1, 200)
            case 2:
                return PAGE * rng.choice((1, 1, 2, 8))
            case 3:
                return 128 * KIB
            case 4:
                return max(1, min((edge for edge in EDGES if edge > start), default=limit) - start)
            case _:
                return rng.randrange(1, limit)


class Drawn:
    """``count`` operations drawn for a script as it goes, and how it ends; ``done`` has those that were begun."""

    def __init__(self, script: Script, seed: int, count: int, odds: Odds = ODDS) -> None:
        self._script = script
        self._drawing = Drawing(seed, odds)
        self._count = count
        self.done: list[Op] = []

    def __iter__(self) -> Iterator[Op]:
        for _ in range(self._count):
            self.done.append(self._drawing.draw(self._script))
            yield self.done[-1]
        for op in FINISH:
            self.done.append(op)
            yield op


def drive(calls: Calls, target: object) -> None:
    """Make all calls on an object that has them as methods. Raises Different, and what they raise."""
    result = None
    while True:
        try:
            name, *arguments = calls.send(result)
        except StopIteration:
            return
        result = getattr(target, name)(*arguments)


def shortened(ops: list[Op], fails: Callable[[list[Op]], bool], seconds: float) -> list[Op]:
    """A shorter order that still fails, found within about that time: parts are left out, large ones first."""
    deadline = time.monotonic() + seconds
    size = len(ops) // 2
    while size:
        at = 0
        while at < len(ops) and time.monotonic() < deadline:
            fewer = ops[:at] + ops[at + size :]
            if fails(fewer):
                ops = fewer
            else:
                at += size
        size //= 2
    return ops


def listed(ops: Iterable[Op]) -> str:
    """An order as Python text."""
    return "[\n" + "".join(f"    {op!r},\n" for op in ops) + "]"
