"""Cutting content into chunks where the content itself says (FastCDC 2020).

A boundary depends only on the bytes since the one before it, so an insertion changes the chunks
around it and no others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyfastcdc import FastCDC

from nodeserver.content.codec import MAX_CHUNK

if TYPE_CHECKING:
    from typing_extensions import Buffer

MIN_CHUNK = 256 * 1024
"""Bytes in the smallest chunk but a file's last."""
AVG_CHUNK = 1024 * 1024
"""Bytes around which chunks are likeliest to end."""


def cut(data: Buffer, *, final: bool = True) -> list[int]:
    """The lengths of the chunks of ``data``, in order.

    Unless ``final``, more bytes may follow: what could still grow at the end is left out, and must
    be passed again in front of them. Feeding a stream so gives the boundaries of the whole.
    """
    view = memoryview(data).cast("B")
    cutter = FastCDC(AVG_CHUNK, min_size=MIN_CHUNK, max_size=MAX_CHUNK)
    lengths = [chunk.length for chunk in cutter.cut_buf(view)]
    if lengths and not final and lengths[-1] < MAX_CHUNK:
        lengths.pop()
    return lengths


class StreamCutter:
    """Cuts content that arrives in pieces, holding at most ``MAX_CHUNK`` bytes and one piece.

    >>> cutter = StreamCutter()
    >>> chunks = [chunk for piece in pieces for chunk in cutter.feed(piece)] + cutter.finish()
    """

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, piece: Buffer) -> list[bytes]:
        """Take more content; the chunks that are complete with it."""
        self._held += piece
        # Less than a largest chunk may end nowhere yet: cutting then would scan it again each time.
        return self._take(final=False) if len(self._held) >= MAX_CHUNK else []

    def finish(self) -> list[bytes]:
        """The chunks of what is left. The cutter is then as new."""
        return self._take(final=True)

    def _take(self, *, final: bool) -> list[bytes]:
        chunks: list[bytes] = []
        taken = 0
        with memoryview(self._held) as view:
            for length in cut(view, final=final):
                chunks.append(bytes(view[taken : taken + length]))
                taken += length
        del self._held[:taken]
        return chunks
