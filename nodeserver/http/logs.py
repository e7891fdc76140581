"""What clients make the server write into its log: one line for each thing, a short one, and not too many."""

from __future__ import annotations

import logging
import time

CUT = 200
"""Characters of what a client sent that a line shows."""
RATE, BURST = 5.0, 100.0
"""Lines a second about refused requests, in the long run and at once."""

_CONTROL = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))} | {
    0x2028: "\\u2028",
    0x2029: "\\u2029",
}


class OneLine(logging.Formatter):
    """A message is one line, whatever is in it; those of a traceback behind it are indented."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return super().formatMessage(record).translate(_CONTROL)

    def formatException(self, ei: object) -> str:  # noqa: N802
        text = super().formatException(ei)  # type: ignore[arg-type]
        return "\n".join(f"  {line.translate(_CONTROL)}" for line in text.split("\n"))


def cut(text: str) -> str:
    """``text`` for a line of the log: printable, and not long."""
    shown = text.translate(_CONTROL)
    return shown if len(shown) <= CUT else f"{shown[:CUT]}… ({len(text)} characters)"


class Sparing:
    """Lets so many lines through, and counts the others."""

    def __init__(self) -> None:
        self._left = BURST
        self._then = time.monotonic()
        self._dropped = 0

    def allows(self) -> bool:
        """Whether a line may be written now."""
        now = time.monotonic()
        self._left = min(BURST, self._left + (now - self._then) * RATE)
        self._then = now
        if self._left < 1:
            self._dropped += 1
            return False
        self._left -= 1
        return True

    def dropped(self) -> int:
        """How many lines were not written since this was asked last."""
        count, self._dropped = self._dropped, 0
        return count
