"""Answers in gzip or deflate, which we ask nobody for, as the plain ones that they stand for. It carries nothing.

They are inflated by the piece, when somebody reads: what a few bytes swell to is bounded by whoever reads them.
"""

import asyncio
import zlib
from collections.abc import Mapping

from router.carrier import Answer
from router.errors import UpstreamBroken

_PIECE_BYTES = 64 * 1024
_ZLIB, _GZIP, _RAW = 15, 31, -15  # zlib's words for the three formats
_METHOD, _DEFLATE = 0x0F, 8


def inflated(answer: Answer) -> Answer:
    """The answer without its content encoding. Raises UpstreamBroken for one that nobody could ask us to know."""
    encoding = answer.headers.get("content-encoding")
    if encoding is None or (encoding := encoding.strip().lower()) == "identity":
        return answer
    if encoding not in {"gzip", "x-gzip", "deflate"}:
        raise UpstreamBroken("The provider sent an answer in an encoding that was not asked for.")
    return _Inflated(answer, gzip=encoding != "deflate")


class _Inflated:
    """An answer whose body is inflated on the way. Several streams in a row are one body."""

    def __init__(self, answer: Answer, *, gzip: bool) -> None:
        self._answer = answer
        self._gzip = gzip
        self._stream: zlib._Decompress | None = None
        self._rest = b""

    @property
    def status(self) -> int:
        """As it came."""
        return self._answer.status

    @property
    def headers(self) -> Mapping[str, str]:
        """As they came."""
        return self._answer.headers

    async def block(self) -> bytes:
        """The next piece, of a bounded size however much it stands for."""
        while True:
            if self._rest:
                await asyncio.sleep(0)  # there may be a thousand pieces to a block, and others wait for their turn
            else:
                self._rest = await self._answer.block()
                if not self._rest:
                    self._require_ended()
                    return b""
            if piece := self._inflate():
                return piece

    def close(self) -> None:
        """Hang up."""
        self._answer.close()

    def keep(self) -> None:
        """Let it end."""
        self._answer.keep()

    def _inflate(self) -> bytes:
        if self._stream is None:
            zlib_head = self._rest[0] & _METHOD == _DEFLATE  # some say deflate and leave zlib's head away
            self._stream = zlib.decompressobj(_GZIP if self._gzip else _ZLIB if zlib_head else _RAW)
        try:
            piece = self._stream.decompress(self._rest, _PIECE_BYTES)
        except zlib.error as error:
            raise UpstreamBroken("The provider sent an answer that is not in the encoding that it names.") from error
        self._rest = self._stream.unconsumed_tail or self._stream.unused_data
        if self._stream.eof:
            self._stream = None
        return piece

    def _require_ended(self) -> None:
        if self._stream is not None:
            raise UpstreamBroken("The provider's answer ends within its encoding.")
