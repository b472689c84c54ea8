"""What a request asks the simulator to do to it. Parsing only: nothing here waits, cuts or bills."""

from enum import StrEnum
from typing import Annotated, Literal

import msgspec

MARK = "sim:"

Count = Annotated[int, msgspec.Meta(ge=0)]
Place = Annotated[int, msgspec.Meta(ge=-1)]
Milliseconds = Annotated[float, msgspec.Meta(ge=0)]


class Fault(StrEnum):
    """How an answer may go wrong on its way."""

    STALL = "stall_at"
    RST = "rst_at"
    FIN = "fin_at"
    END = "end_at"
    ERROR = "error_at"
    MALFORMED = "malformed_at"


class Script(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One request's wishes. A place `k` is after k events; -1, where a connection may end, is before the
    status line.

    tokens, text: what to say, per choice. pace_ms: wait before each event. first_ms: wait before the status line.
    stall_at: nothing more, for ever (`ping_ms`: but pings of the wire at this pace). rst_at, fin_at: the connection is
    reset, or closed in mid-body. end_at: the body ends properly, the answer does not. error_at: an error event, then
    the end (without a stream: 500). malformed_at: one event that is no JSON, then on. split: pieces of so many bytes.
    usage `zero` is reported and billed as such. cached, cache_write, cache_write_1h: of the prompt's tokens. reasoning,
    audio_output: tokens beside the text, under the same ceiling. What a wire has no word for is plain input or output
    there. status: an error answer, not billed unless `bill_errors`. event_bytes: the first event is at least this large
    and no token more.
    """

    tokens: Count | None = None
    text: str | None = None
    pace_ms: Milliseconds = 0
    first_ms: Milliseconds = 0
    ping_ms: Milliseconds = 0
    stall_at: Place | None = None
    rst_at: Place | None = None
    fin_at: Place | None = None
    end_at: Count | None = None
    error_at: Count | None = None
    malformed_at: Count | None = None
    split: Count | Literal["byte"] = 0
    usage: Literal["normal", "missing", "duplicate", "cumulative", "zero"] = "normal"
    cached: Count = 0
    cache_write: Count = 0
    cache_write_1h: Count = 0
    reasoning: Count = 0
    audio_output: Count = 0
    status: Annotated[int, msgspec.Meta(ge=400, le=599)] | None = None
    retry_after: Milliseconds | None = None
    bill_errors: bool = False
    event_bytes: Count = 0

    @property
    def piece_bytes(self) -> int:
        """How many bytes to send at a time; 0 is all at once."""
        return 1 if self.split == "byte" else self.split

    def fault_after(self, events: int) -> Fault | None:
        """What happens once so many events have been sent."""
        for fault in Fault:
            if getattr(self, fault.value) == events:
                return fault
        return None

    @property
    def fault(self) -> Fault | None:
        """The first fault this script names wherever it stands, for answers that are not streams."""
        return next((fault for fault in Fault if getattr(self, fault.value) is not None), None)


def read_script(last_user_text: str) -> Script:
    """The script that the message carries, or one that wishes nothing. Raises msgspec.DecodeError."""
    text = last_user_text.lstrip()
    if not text.startswith(MARK):
        return Script()
    return msgspec.json.decode(text.removeprefix(MARK), type=Script)
