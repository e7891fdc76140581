"""Answers that end by bytes as well as by count, so that no answer outgrows who makes it or who waits for it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any, TypeVar

from sqlalchemy import Connection, Row
from sqlalchemy.sql.selectable import TypedReturnsRows

from nodeserver.protocol.wire import MAX_ANSWER, Entry

AT_ONCE = 32
"""Rows fetched from the database at a time."""
FIRST = 64
"""Rows asked for first,"""
LIGHT = 256 * 1024
"""and twice as many the next time while they take fewer bytes than this."""
FIXED = 150
"""Bytes of an item besides those that vary, about."""

T = TypeVar("T")


def stream(
    connection: Connection, statement: TypedReturnsRows[Any], values: Mapping[str, Any], at_once: int = AT_ONCE
) -> Generator[Row[Any]]:
    """The rows of a query, few of them in memory. Closed when it is read to the end, or by who does not."""
    with connection.execute(statement, values, execution_options={"yield_per": at_once}) as result:
        yield from result


def onwards(
    connection: Connection, statement: TypedReturnsRows[Any], values: Mapping[str, Any], after: str, column: int
) -> Generator[Row[Any]]:
    """As :func:`stream`, of a query with ``limit`` whose rows follow a value named ``after``, each with its own in
    ``column``: with a query for some at a time, more of them while they are light. Small listings take one.
    """
    left, size, behind = values["limit"], FIRST, values[after]
    while left:
        rows = connection.execute(statement, {**values, after: behind, "limit": min(left, size)}).all()
        yield from rows
        if len(rows) < size:
            return
        left, behind = left - len(rows), rows[-1][column]
        if sum(map(weight_of_row, rows)) < LIGHT:
            size *= 2


def page_of(
    items: Iterable[T], limit: int, weight: Callable[[T], int], budget: int = MAX_ANSWER
) -> tuple[list[T], bool]:
    """The first items, and whether there are more: up to ``limit``, and ``budget`` bytes by ``weight``.

    An item over the budget is a page of its own.
    """
    page: list[T] = []
    size = 0
    for item in items:
        size += weight(item)
        if page and (len(page) >= limit or size > budget):
            return page, True
        page.append(item)
    return page, False


def weight_of_row(row: Iterable[Any]) -> int:
    """Bytes that a row takes in an answer, about."""
    return FIXED + sum(len(value) for value in row if isinstance(value, bytes))


def weight_of_entry(entry: Entry) -> int:
    """Bytes that an entry takes in an answer, about."""
    file = entry.file
    slices = len(file.manifest.slices) if file.manifest else 0
    xattrs = sum(len(name) + len(value) for name, value in file.xattrs.items())
    return FIXED + len(entry.name) + len(file.target) + xattrs + 48 * slices
