"""Open directories of the past: what was listed keeps its position, whatever comes and goes meanwhile."""

from __future__ import annotations

from bisect import bisect_right
from typing import NamedTuple

from mountfs.vfs.history.nodes import Node


class _Page(NamedTuple):
    """A part of the listing that was handed out, or some of it."""

    start: int
    """Entries before it."""
    mark: bytes
    """Where it begins, as :meth:`Node.listed` takes it."""
    next: bytes | None
    names: tuple[bytes, ...]


class Cursor:
    """An open directory. Index n is that of the n-th entry: once given it means that until a rewind."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self._pages: list[_Page] = []
        self._loaded: dict[bytes, Node] = {}
        """What is on one of them,"""
        self._which = -1
        """on this one."""

    def rewind(self) -> None:
        """The listing begins anew."""
        self._pages, self._loaded, self._which = [], {}, -1

    async def entries(self, index: int) -> list[tuple[bytes, Node, int]]:
        """Entries from ``index`` on, each with its number; none at the end."""
        while True:
            which = bisect_right(self._pages, index, key=lambda page: page.start) - 1
            page = self._pages[which] if which >= 0 else None
            if page is None or index >= page.start + len(page.names):
                if page is not None and page.next is None:
                    return []
                page = await self._following(page)
            elif which != self._which:
                self._loaded, self._which = await self._again(page), which
            numbered = enumerate(page.names, page.start)
            found = [(name, self._loaded[name], n) for n, name in numbered if n >= index and name in self._loaded]
            if found:
                return found
            index = page.start + len(page.names)  # all of them are gone

    async def _following(self, page: _Page | None) -> _Page:
        mark = page.next or b"" if page else b""
        entries, following = await self.node.listed(mark)
        start = page.start + len(page.names) if page else 0
        found = _Page(start, mark, following, tuple(name for name, _ in entries))
        if not found.names and following is None and page:
            self._pages[-1] = page._replace(next=None)
            return found
        self._pages.append(found)
        self._loaded, self._which = dict(entries), len(self._pages) - 1
        return found

    async def _again(self, page: _Page) -> dict[bytes, Node]:
        """What a page holds now; what is new there may have pushed some of it onto the next ones."""
        found: dict[bytes, Node] = {}
        mark: bytes | None = page.mark
        while mark is not None and (page.next is None or mark < page.next):
            entries, mark = await self.node.listed(mark)
            found.update(entries)
        return found
