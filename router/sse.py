"""Server-sent events from bytes, however they were split. It reads `data` alone: no names, ids or reconnection.

Source: WHATWG HTML, 9.2.6 "Interpreting an event stream".
"""

from collections.abc import Iterable, Iterator

from router.errors import UpstreamOverlong

_BOM = b"\xef\xbb\xbf"
_FIELD = b"data: "
_EMPTY_EVENT_BYTES = len(b"data: \n\n")


class EventParser:
    """The data of each event, in order; the same whatever the split, in time linear in the bytes.

    An event is given out when its blank line is complete, so a last one without it is never given out. An event
    without data is passed over. event_bytes_max bounds what is kept between events.
    """

    def __init__(self, event_bytes_max: int) -> None:
        self._event_bytes_max = event_bytes_max
        self._rest = bytearray()  # the line that is not complete yet
        self._data: list[bytes] = []
        self._data_bytes = 0
        self._after_cr = False
        self._at_start = True

    def feed(self, block: bytes) -> Iterable[bytes]:
        """The events that `block` completes; exhaust it before feeding more. Raises UpstreamOverlong past the cap."""
        # Nearly every block is one whole event of one line, and needs no more than to be seen as such.
        is_one = block[:6] == _FIELD and block.find(b"\n") == len(block) - 2 and block[-1:] == b"\n"
        if is_one and b"\r" not in block and not (self._rest or self._data or self._after_cr):
            self._bound(len(block) - 2)
            self._at_start = False
            return (block[6:-2],) if len(block) > _EMPTY_EVENT_BYTES else ()
        return self._events(block)

    def _events(self, block: bytes) -> Iterator[bytes]:
        if self._after_cr and block:
            self._after_cr = False
            block = block.removeprefix(b"\n")
        if not block:
            return
        self._after_cr = block.endswith(b"\r")
        lines = block.splitlines()  # of bytes, so at CR, LF and CRLF and at nothing else
        rest = b"" if block.endswith((b"\n", b"\r")) else lines.pop()
        if lines and self._rest:
            lines[0] = bytes(self._rest + lines[0])
            self._rest.clear()
        for line in lines:
            self._take(line)
            if not line and self._data:
                data = b"\n".join(self._data)
                self._data, self._data_bytes = [], 0
                if data:
                    yield data
        self._rest += rest
        self._bound(len(self._rest))

    def _take(self, line: bytes) -> None:
        self._bound(len(line))
        if self._at_start:
            self._at_start = False
            line = line.removeprefix(_BOM)
        name, _, value = line.partition(b":")
        if name == b"data":
            value = value.removeprefix(b" ")
            self._data.append(value)
            self._data_bytes += len(value) + 1

    def _bound(self, line_bytes: int) -> None:
        if self._data_bytes + line_bytes > self._event_bytes_max:
            raise UpstreamOverlong(f"The provider sent an event of more than {self._event_bytes_max} bytes.")
