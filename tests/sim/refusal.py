"""Why a request gets an error instead of an answer. What that looks like is for its wire to say."""

from dataclasses import dataclass

from tests.sim.script import Script


@dataclass(eq=False)
class Refusal(Exception):
    """An error answer, which is not billed. code, param: in OpenAI's words."""

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    retry_after_seconds: float | None = None


def scripted_refusal(script: Script) -> Refusal | None:
    """The error status the script wishes for."""
    if script.status is None:
        return None
    code = "rate_limit_exceeded" if script.status == 429 else None
    return Refusal(
        script.status, f"The script asked for {script.status}.", code, retry_after_seconds=script.retry_after
    )


def unreadable(error: Exception) -> Refusal:
    """What a body earns that cannot be read."""
    # msgspec ends its message with the place: `... - at `$.messages[0].role``.
    message = str(error)
    place = message.rpartition("`$")[2].strip("`.") if "`$" in message else ""
    return Refusal(400, f"The request is not valid: {message}", "invalid_value", place or None)
