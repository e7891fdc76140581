"""Random operations on a file system and on a real directory, which must agree after every step.

`Model` drives two `FileSystem` objects through the same steps: results, errnos and then the whole trees are
compared. `OnDisk` is any directory the kernel shows: the reference, or a mount. What is not a file system
call (remounts, restarts of the server) is a step of a `Model` subclass.
"""

from __future__ import annotations

import errno
import os
import random
import stat
import time
from collections.abc import Callable, Iterable
from typing import ClassVar, NamedTuple, NoReturn, Protocol

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.mount.posix import RENAME_EXCHANGE, RENAME_NOREPLACE, renameat2

PAST = 1_700_000_000 * 10**9
"""Every time that a step sets is before this one; the others are the moment of a change."""
TOLERANCE = 10 * 10**9
"""How far the two may be apart about the moment of a change, in nanoseconds; steps with restarts take a while."""


class FileSystem(Protocol):
    """What the model does, by path (relative, b"" is the root) or by handle. Everything raises OSError."""

    def open(self, path: bytes, flags: int, mode: int) -> int: ...
    def close(self, handle: int) -> None: ...
    def pread(self, handle: int, size: int, offset: int) -> bytes: ...
    def write(self, handle: int, data: bytes, offset: int) -> int: ...
    def ftruncate(self, handle: int, size: int) -> None: ...
    def fsync(self, handle: int) -> None: ...
    def fstat(self, handle: int) -> os.stat_result: ...
    def lstat(self, path: bytes) -> os.stat_result: ...
    def listdir(self, path: bytes) -> Iterable[bytes]: ...
    def mkdir(self, path: bytes, mode: int) -> None: ...
    def rmdir(self, path: bytes) -> None: ...
    def mknod(self, path: bytes, mode: int) -> None: ...
    def unlink(self, path: bytes) -> None: ...
    def rename(self, source: bytes, target: bytes, flags: int) -> None: ...
    def link(self, source: bytes, target: bytes) -> None: ...
    def symlink(self, target: bytes, path: bytes) -> None: ...
    def readlink(self, path: bytes) -> bytes: ...
    def truncate(self, path: bytes, size: int) -> None: ...
    def chmod(self, path: bytes, mode: int) -> None: ...
    def chown(self, path: bytes, uid: int, gid: int) -> None: ...
    def utime(self, path: bytes, times: tuple[int, int] | None) -> None: ...
    def setxattr(self, path: bytes, name: bytes, value: bytes, flags: int) -> None: ...
    def removexattr(self, path: bytes, name: bytes) -> None: ...
    def xattrs(self, path: bytes) -> dict[bytes, bytes]: ...


class OnDisk:
    """The calls of the kernel, below a directory. Attributes are those of links themselves where there is a choice."""

    def __init__(self, root: bytes) -> None:
        self._root = root

    def _at(self, path: bytes) -> bytes:
        return os.path.join(self._root, path) if path else self._root

    def open(self, path: bytes, flags: int, mode: int) -> int:
        return os.open(self._at(path), flags | os.O_NONBLOCK, mode)

    def close(self, handle: int) -> None:
        os.close(handle)

    def pread(self, handle: int, size: int, offset: int) -> bytes:
        return os.pread(handle, size, offset)

    def write(self, handle: int, data: bytes, offset: int) -> int:
        return os.pwrite(handle, data, offset)

    def ftruncate(self, handle: int, size: int) -> None:
        os.ftruncate(handle, size)

    def fsync(self, handle: int) -> None:
        os.fsync(handle)

    def fstat(self, handle: int) -> os.stat_result:
        return os.fstat(handle)

    def lstat(self, path: bytes) -> os.stat_result:
        return os.lstat(self._at(path))

    def listdir(self, path: bytes) -> Iterable[bytes]:
        return os.listdir(self._at(path))

    def mkdir(self, path: bytes, mode: int) -> None:
        os.mkdir(self._at(path), mode)

    def rmdir(self, path: bytes) -> None:
        os.rmdir(self._at(path))

    def mknod(self, path: bytes, mode: int) -> None:
        os.mknod(self._at(path), mode)

    def unlink(self, path: bytes) -> None:
        os.unlink(self._at(path))

    def rename(self, source: bytes, target: bytes, flags: int) -> None:
        renameat2(self._at(source), self._at(target), flags)

    def link(self, source: bytes, target: bytes) -> None:
        os.link(self._at(source), self._at(target), follow_symlinks=False)

    def symlink(self, target: bytes, path: bytes) -> None:
        os.symlink(target, self._at(path))

    def readlink(self, path: bytes) -> bytes:
        return os.readlink(self._at(path))

    def truncate(self, path: bytes, size: int) -> None:
        os.truncate(self._at(path), size)

    def chmod(self, path: bytes, mode: int) -> None:
        os.chmod(self._at(path), mode)

    def chown(self, path: bytes, uid: int, gid: int) -> None:
        os.chown(self._at(path), uid, gid, follow_symlinks=False)

    def utime(self, path: bytes, times: tuple[int, int] | None) -> None:
        # "now" is this process's moment for both sides: kernels round it to their tick
        os.utime(self._at(path), ns=times or (time.time_ns(), time.time_ns()), follow_symlinks=False)

    def setxattr(self, path: bytes, name: bytes, value: bytes, flags: int) -> None:
        os.setxattr(self._at(path), name, value, flags, follow_symlinks=False)

    def removexattr(self, path: bytes, name: bytes) -> None:
        os.removexattr(self._at(path), name, follow_symlinks=False)

    def xattrs(self, path: bytes) -> dict[bytes, bytes]:
        at = self._at(path)
        names = map(os.fsencode, os.listxattr(at, follow_symlinks=False))
        return {name: os.getxattr(at, name, follow_symlinks=False) for name in names}


class Sight(NamedTuple):
    """All there is to see of one path."""

    mode: str
    owner: tuple[int, int]
    size: int
    nlink: int
    same_as: bytes
    """The first path, in byte order, of the same inode."""
    content: bytes
    xattrs: dict[bytes, bytes]
    mtime: int


Tree = dict[bytes, Sight]


def read_tree(fs: FileSystem) -> Tree:
    """Everything below the root. Directories' sizes and a link count of 1, which means "not counted", are left out."""
    tree: Tree = {}
    first: dict[int, bytes] = {}
    todo = [b""]
    while todo:
        path = todo.pop()
        now = fs.lstat(path)
        kind = stat.S_IFMT(now.st_mode)
        content = b""
        if kind == stat.S_IFDIR:
            names = list(fs.listdir(path))
            assert len(names) == len(set(names)), f"a name twice in {path!r}"
            todo += sorted((os.path.join(path, name) if path else name for name in names), reverse=True)
        elif kind == stat.S_IFLNK:
            content = fs.readlink(path)
        elif kind == stat.S_IFREG:
            content = read_file(fs, path)
        directory = kind == stat.S_IFDIR
        tree[path] = Sight(
            stat.filemode(now.st_mode),
            (now.st_uid, now.st_gid),
            0 if directory else now.st_size,
            0 if directory and now.st_nlink == 1 else now.st_nlink,
            first.setdefault(now.st_ino, path),
            content,
            fs.xattrs(path),
            now.st_mtime_ns,
        )
    return tree


def read_file(fs: FileSystem, path: bytes) -> bytes:
    """The whole content of a file."""
    handle = fs.open(path, os.O_RDONLY | os.O_NOATIME, 0)
    try:
        content = bytearray()
        while piece := fs.pread(handle, 1 << 20, len(content)):
            content += piece
        return bytes(content)
    finally:
        fs.close(handle)


def differences(tested: Tree, real: Tree) -> list[str]:
    """What the tested tree has otherwise than the real one, in words."""
    found = [f"{path!r}: is missing" for path in real.keys() - tested.keys()]
    found += [f"{path!r}: should not exist" for path in tested.keys() - real.keys()]
    for path in sorted(real.keys() & tested.keys()):
        for field, has, should in zip(Sight._fields, tested[path], real[path], strict=True):
            if field == "nlink" and has == 0:
                continue
            if field == "mtime" and isinstance(has, int) and isinstance(should, int) and should > PAST:
                if abs(has - should) > TOLERANCE:
                    found.append(f"{path!r}: mtime is {(has - should) / 1e9:.3f} s from the moment of the change")
            elif field == "content" and has != should:
                found.append(f"{path!r}: content {_first_difference(tested[path].content, real[path].content)}")
            elif has != should:
                found.append(f"{path!r}: {field} is {_short(has)}, should be {_short(should)}")
    return found


def _first_difference(has: bytes, should: bytes) -> str:
    """Where two contents begin to differ, and for how long."""
    places = [at for at, (one, other) in enumerate(zip(has, should, strict=False)) if one != other]
    start, end = (places[0], places[-1] + 1) if places else (min(len(has), len(should)),) * 2
    lengths = "" if len(has) == len(should) else f"; {len(has)} bytes instead of {len(should)}"
    return f"[{start}:{end}] is {_short(has[start:end])}, should be {_short(should[start:end])}{lengths}"


def _short(value: object) -> str:
    if not isinstance(value, bytes) or len(value) < 200:
        return repr(value)
    return f"{value[:20]!r}… ({len(value)} bytes, hash {hash(value) & 0xFFFF:x})"


NAMES = [b"a", b"b", b"c\xff \n"]
PATHS = [*NAMES] * 3 + [b"/".join((x, y)) for x in NAMES[:2] for y in NAMES] * 2
PATHS += [b"/".join((x, y, z)) for x in NAMES[:2] for y in NAMES[:2] for z in NAMES[:2]]
SIZES = [0, 1, 7, 4095, 4096, 10_000, 65_536, 131_071, 140_000, 262_144, 300_000, 524_289, 1_048_576, 1_500_000]
LARGE = 2_500_000


def _existing(kind: str) -> st.SearchStrategy[bytes]:
    """Paths whose ``ls -l`` line begins with one of these letters, as far as there are any."""

    def choose(model: Model) -> st.SearchStrategy[bytes]:
        return st.sampled_from([path for path, node in model.tree.items() if path and node.mode[0] in kind] or PATHS)

    return st.runner().flatmap(choose)


path = st.one_of(_existing("-dlps"), st.sampled_from(PATHS))
fresh = st.one_of(st.sampled_from(PATHS), st.sampled_from(PATHS), path)
file = st.one_of(_existing("-"), _existing("-"), path)
directory = st.one_of(_existing("d"), path)
any_path = st.one_of(_existing("-dlps"), st.just(b""), path)
size = st.sampled_from(SIZES)
which = st.integers(0, 5)
mode = st.sampled_from([0o644, 0o600, 0o777, 0o755, 0o4755, 0o2775, 0o1777, 0o000])
owner = st.sampled_from([-1, 0, 1000, 65534])
moment = st.sampled_from([0, 1, -7, 1_234_567_890_123_456_789, 1_500_000_000_000_000_000])
flags = st.sampled_from([os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR]).flatmap(
    lambda access: st.sets(
        st.sampled_from([os.O_CREAT, os.O_CREAT, os.O_EXCL, os.O_TRUNC, os.O_APPEND, os.O_NOFOLLOW, os.O_DIRECTORY]),
        max_size=3,
    ).map(lambda more: access | sum(more))
)
data = st.tuples(st.integers(0, 255), size).map(lambda drawn: random.Random(drawn[0]).randbytes(drawn[1]))
xattr_name = st.sampled_from([b"user.one", b"user.two", b"trusted.three", b"user.", b"nonsense"])
xattr_value = st.sampled_from([b"", b"value", bytes(range(256))])

Outcome = tuple[str, object]


class Disagreement(AssertionError):
    """The two sides differ; the message ends with all steps of the example."""


class Model(RuleBasedStateMachine):
    """The steps. A subclass gives ``tested`` and ``real`` and may add steps."""

    tested: FileSystem
    real: FileSystem
    failures: ClassVar[list[str]] = []
    """Of every example so far: those that happen only once, Hypothesis cannot show."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[str] = []
        self.handles: list[tuple[int, int]] = []
        self.tree: Tree = {}

    def both(self, call: Callable[[FileSystem], object]) -> None:
        """Do it on both sides and compare what comes of it."""
        self.steps.append(_described(call))
        tested, real = _outcome(call, self.tested), _outcome(call, self.real)
        if tested != real:
            self.differ(f"the result is {tested[0]} {_short(tested[1])}, should be {real[0]} {_short(real[1])}")

    def differ(self, how: str) -> NoReturn:
        """Raises Disagreement."""
        message = "\n".join([how, "after", *self.steps])
        self.failures.append(message)
        raise Disagreement(message)

    def on_handle(self, number: int, call: Callable[[FileSystem, int], object]) -> None:
        """Do it on the same open file of both sides."""
        tested, real = self.handles[number % len(self.handles)]
        self.both(lambda fs: call(fs, tested if fs is self.tested else real))

    def close_all(self) -> None:
        """Close every open file."""
        while self.handles:
            self.close(0)

    @initialize()
    def some_files(self) -> None:
        for directory in b"a", b"a/a":
            self.mkdir(directory, 0o755)
        self.save(b"b", b"first content", 0)
        self.save(b"a/b", b"second" * 30_000, 0)

    @precondition(lambda self: len(self.handles) < 5)
    @rule(path=file, flags=flags, mode=mode)
    def open(self, path: bytes, flags: int, mode: int) -> None:
        opened: list[int] = []
        self.both(lambda fs: opened.append(fs.open(path, flags, mode)))
        if opened:
            self.handles.append((opened[0], opened[1]))

    @precondition(lambda self: self.handles)
    @rule(number=which)
    def close(self, number: int) -> None:
        tested, real = self.handles.pop(number % len(self.handles))
        self.both(lambda fs: fs.close(tested if fs is self.tested else real))

    @precondition(lambda self: self.handles)
    @rule(number=which, data=data, offset=size)
    def write(self, number: int, data: bytes, offset: int) -> None:
        self.on_handle(number, lambda fs, handle: fs.write(handle, data, offset))

    @precondition(lambda self: self.handles)
    @rule(number=which, size=size, offset=size)
    def read(self, number: int, size: int, offset: int) -> None:
        self.on_handle(number, lambda fs, handle: fs.pread(handle, size, offset))

    @precondition(lambda self: self.handles)
    @rule(number=which, size=size)
    def ftruncate(self, number: int, size: int) -> None:
        self.on_handle(number, lambda fs, handle: fs.ftruncate(handle, size))

    @precondition(lambda self: self.handles)
    @rule(number=which)
    def fsync(self, number: int) -> None:
        self.on_handle(number, lambda fs, handle: fs.fsync(handle))

    @precondition(lambda self: self.handles)
    @rule(number=which)
    def fstat(self, number: int) -> None:
        def facts(fs: FileSystem, handle: int) -> object:
            now = fs.fstat(handle)
            is_directory = stat.S_ISDIR(now.st_mode)
            return now.st_mode, now.st_uid, now.st_gid, is_directory or (now.st_size, now.st_nlink)

        self.on_handle(number, facts)

    @rule(path=file, data=data, offset=st.sampled_from([0, 0, 0, 5000]))
    def save(self, path: bytes, data: bytes, offset: int) -> None:
        """Open, truncate, write, close: what most programs do."""

        def do(fs: FileSystem) -> object:
            handle = fs.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            try:
                return fs.write(handle, data, offset)
            finally:
                fs.close(handle)

        self.both(do)

    @rule(path=file, data=data, offset=size)
    def patch(self, path: bytes, data: bytes, offset: int) -> None:
        """Change a part of a file that exists."""

        def do(fs: FileSystem) -> object:
            handle = fs.open(path, os.O_RDWR, 0)
            try:
                return fs.write(handle, data, offset), fs.pread(handle, 10_000, max(0, offset - 5000))
            finally:
                fs.close(handle)

        self.both(do)

    @precondition(lambda self: self.handles)
    @rule(number=which, lower=size, data=data, higher=size, again=data)
    def cut_and_grow(self, number: int, lower: int, data: bytes, higher: int, again: bytes) -> None:
        """Truncate, change a byte, fsync, truncate or not, write beyond: what was below must not show or go."""
        self.on_handle(number, lambda fs, handle: fs.ftruncate(handle, lower))
        self.on_handle(number, lambda fs, handle: fs.write(handle, data[:1], 0))
        self.on_handle(number, lambda fs, handle: fs.fsync(handle))
        self.on_handle(number, lambda fs, handle: fs.write(handle, again, lower))
        self.on_handle(number, lambda fs, handle: fs.ftruncate(handle, higher))
        self.on_handle(number, lambda fs, handle: fs.write(handle, data, higher))

    @rule(source=file, to=file)
    def copy(self, source: bytes, to: bytes) -> None:
        """One file's content becomes another's too; what they share is one chunk."""

        def do(fs: FileSystem) -> object:
            content = read_file(fs, source)
            handle = fs.open(to, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            try:
                return fs.write(handle, content, 0)
            finally:
                fs.close(handle)

        self.both(do)

    @rule(path=file, tag=st.integers(0, 3))
    def save_large(self, path: bytes, tag: int) -> None:
        """A file of several chunks, much of it the same each time."""
        content = random.Random(tag).randbytes(LARGE // 4) + random.Random(9).randbytes(LARGE * 3 // 4)

        def do(fs: FileSystem) -> object:
            handle = fs.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            try:
                return [fs.write(handle, content[at : at + LARGE // 5], at) for at in range(0, LARGE, LARGE // 5)]
            finally:
                fs.close(handle)

        self.both(do)

    @rule(path=file, data=data)
    def append(self, path: bytes, data: bytes) -> None:
        def do(fs: FileSystem) -> object:
            handle = fs.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                return fs.write(handle, data, 0)
            finally:
                fs.close(handle)

        self.both(do)

    @rule(path=file, size=size)
    def truncate(self, path: bytes, size: int) -> None:
        self.both(lambda fs: fs.truncate(path, size))

    @rule(path=fresh, mode=mode)
    def mkdir(self, path: bytes, mode: int) -> None:
        self.both(lambda fs: fs.mkdir(path, mode))

    @rule(path=directory)
    def rmdir(self, path: bytes) -> None:
        self.both(lambda fs: fs.rmdir(path))

    @rule(path=fresh, kind=st.sampled_from([stat.S_IFIFO, stat.S_IFREG, stat.S_IFSOCK]), mode=mode)
    def mknod(self, path: bytes, kind: int, mode: int) -> None:
        self.both(lambda fs: fs.mknod(path, kind | mode))

    @rule(path=path)
    def unlink(self, path: bytes) -> None:
        self.both(lambda fs: fs.unlink(path))

    @rule(source=path, to=fresh, flags=st.sampled_from([0, 0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE]))
    def rename(self, source: bytes, to: bytes, flags: int) -> None:
        self.both(lambda fs: fs.rename(source, to, flags))

    @rule(source=path, to=fresh)
    def link(self, source: bytes, to: bytes) -> None:
        self.both(lambda fs: fs.link(source, to))

    @rule(text=st.sampled_from([b"a", b"b", b"../b", b"nowhere", b"x" * 4000]), path=fresh)
    def symlink(self, text: bytes, path: bytes) -> None:
        self.both(lambda fs: fs.symlink(text, path))

    @rule(path=any_path)
    def look(self, path: bytes) -> None:
        self.both(lambda fs: sorted(fs.listdir(path)))
        self.both(lambda fs: fs.readlink(path))
        self.both(lambda fs: stat.filemode(fs.lstat(path).st_mode))

    @rule(path=any_path, mode=mode)
    def chmod(self, path: bytes, mode: int) -> None:
        self.both(lambda fs: fs.chmod(path, mode))

    @rule(path=any_path, uid=owner, gid=owner)
    def chown(self, path: bytes, uid: int, gid: int) -> None:
        self.both(lambda fs: fs.chown(path, uid, gid))

    @rule(path=any_path, times=st.one_of(st.none(), st.tuples(moment, moment)))
    def utime(self, path: bytes, times: tuple[int, int] | None) -> None:
        self.both(lambda fs: fs.utime(path, times))
        if times:
            self.both(lambda fs: (fs.lstat(path).st_atime_ns, fs.lstat(path).st_mtime_ns))

    @rule(
        path=any_path,
        name=xattr_name,
        value=xattr_value,
        flags=st.sampled_from([0, 0, os.XATTR_CREATE, os.XATTR_REPLACE]),
    )
    def setxattr(self, path: bytes, name: bytes, value: bytes, flags: int) -> None:
        self.both(lambda fs: fs.setxattr(path, name, value, flags))

    @rule(path=any_path, name=xattr_name)
    def removexattr(self, path: bytes, name: bytes) -> None:
        self.both(lambda fs: fs.removexattr(path, name))

    @invariant()
    def the_trees_agree(self) -> None:
        self.tree = read_tree(self.real)
        if found := differences(read_tree(self.tested), self.tree):
            self.differ("\n".join(found))

    @invariant()
    def the_state_is_sound(self) -> None:
        if found := self.unsound():
            self.differ("\n".join(found))

    def unsound(self) -> list[str]:
        """What `mountfs.local.checking` finds in the state directory behind ``tested``, if there is one."""
        return []

    def teardown(self) -> None:
        self.close_all()


def _described(call: Callable[[FileSystem], object]) -> str:
    """A step in words: the name of its rule and what the rule got."""
    variables = zip(call.__code__.co_freevars, call.__closure__ or (), strict=True)
    values = {name: cell.cell_contents for name, cell in variables if name != "self"}
    inner = values.pop("call", None)
    described = f"{_described(inner)} " if inner else f"{call.__qualname__.split('.')[1]} "
    return described + " ".join(f"{name}={_short(value)}" for name, value in values.items())


def _outcome(call: Callable[[FileSystem], object], fs: FileSystem) -> Outcome:
    try:
        return "value", call(fs)
    except OSError as error:
        return "error", errno.errorcode[error.errno or 0]
