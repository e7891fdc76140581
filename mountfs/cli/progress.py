"""Tell a person at a terminal how far something is that takes longer than a second."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.progress import ProgressColumn

T = TypeVar("T")

PATIENCE = 1.0
"""Seconds before a terminal shows anything."""
REFRESH = 0.25


@dataclasses.dataclass
class Count:
    """How many of the things to do are done; kept by who does them."""

    done: int = 0
    total: int | None = None


def waiting(text: str, work: Callable[[], T], remaining: Callable[[], int | None] | None = None) -> T:
    """What ``work`` returns or raises. ``remaining`` tells how many bytes are left, None when nobody knows.

    Without a terminal on standard error nothing is shown.
    """
    return _watched(work, lambda thread: _show_bytes(text, thread, remaining))


def counting(text: str, work: Callable[[Count], T]) -> T:
    """What ``work`` returns or raises; it counts what it does. Shown as :func:`waiting` does."""
    count = Count()
    return _watched(lambda: work(count), lambda thread: _show_count(text, thread, count))


def _watched(work: Callable[[], T], show: Callable[[threading.Thread], None]) -> T:
    box: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            box.append(work())
        except BaseException as error:  # raised again below, in the caller's thread
            failure.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    if thread.is_alive():
        show(thread)
    if failure:
        raise failure[0]
    return box[0]


def _show_bytes(text: str, thread: threading.Thread, remaining: Callable[[], int | None] | None) -> None:
    from rich.progress import BarColumn, DownloadColumn

    most = 0

    def look() -> tuple[int, int] | None:
        nonlocal most
        if not remaining or (left := remaining()) is None:
            return None
        most = max(most, left)
        return most - left, most

    _show(text, thread, [BarColumn(), DownloadColumn(binary_units=True)] if remaining else [], look)


def _show_count(text: str, thread: threading.Thread, count: Count) -> None:
    from rich.progress import BarColumn, MofNCompleteColumn

    _show(text, thread, [BarColumn(), MofNCompleteColumn()], lambda: (count.done, count.total))


def _show(
    text: str,
    thread: threading.Thread,
    measure: list[ProgressColumn],
    look: Callable[[], tuple[int, int | None] | None],
) -> None:
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        thread.join()
        return
    columns = [SpinnerColumn(), TextColumn("{task.description}"), *measure, TimeElapsedColumn()]
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(text, total=None)
        while thread.is_alive():
            if seen := look():
                progress.update(task, completed=seen[0], total=seen[1])
            thread.join(REFRESH)
