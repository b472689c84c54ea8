"""Server-sent events from bytes, however they were split. It reads `data` alone: no names, ids or reconnection.

Source: WHATWG HTML, 9.2.6 "Interpreting an event stream".
"""

from collections.abc import Iterable, Iterator

from router.errors import UpstreamOverlong

_BOM = b"\xef\xbb\xbf"
_FIELD, _END = b"data: ", b"\n\n"
_BETWEEN = _END + _FIELD


class EventParser:
    """The data of each event, in order; the same whatever the split, in time linear in the bytes.

    An event is given out when its blank line is complete, so a last one without it is never given out. An event
    without data is passed over. event_bytes_max bounds what is kept between events. together: of how many events the
    last block consisted, where that was seen at once.
    """

    def __init__(self, event_bytes_max: int) -> None:
        self._event_bytes_max = event_bytes_max
        self.together = 0
        self._rest = bytearray()  # the line that is not complete yet
        self._data: list[bytes] = []
        self._data_bytes = 0
        self._after_cr = False
        self._at_start = True

    def feed(self, block: bytes) -> Iterable[bytes]:
        """The events that `block` completes; exhaust it before feeding more. Raises UpstreamOverlong past the cap."""
        # Nearly every block is some whole events of one line each, and needs no more than to be seen as such.
        is_whole = block[:6] == _FIELD and block[-2:] == _END and len(block) <= self._event_bytes_max
        if is_whole and b"\r" not in block and not (self._rest or self._data or self._after_cr):
            events = block[6:-2].split(_BETWEEN)
            if block.count(b"\n") == 2 * len(events) and b"" not in events:
                self._at_start, self.together = False, len(events)
                return events
        self.together = 0
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
