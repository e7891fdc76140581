"""Tell a person at a terminal how far something is that takes longer than a second."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE = 1.0
"""Seconds before a terminal shows anything."""
REFRESH = 0.25


def waiting(text: str, work: Callable[[], T], remaining: Callable[[], int | None] | None = None) -> T:
    """What ``work`` returns or raises. ``remaining`` tells how many bytes are left, None when nobody knows.

    Without a terminal on standard error nothing is shown.
    """
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
        _show(text, thread, remaining)
    if failure:
        raise failure[0]
    return box[0]


def _show(text: str, thread: threading.Thread, remaining: Callable[[], int | None] | None) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        thread.join()
        return
    measure = [BarColumn(), DownloadColumn(binary_units=True)] if remaining else []
    columns = [SpinnerColumn(), TextColumn("{task.description}"), *measure, TimeElapsedColumn()]
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(text, total=None)
        most = 0
        while thread.is_alive():
            if remaining and (left := remaining()) is not None:
                most = max(most, left)
                progress.update(task, total=most, completed=most - left)
            thread.join(REFRESH)
