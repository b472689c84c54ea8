"""Trials: one small call to a target in an operator's own name, to see whether it answers and what that costs.

A trial is a turn. It walks the five beats that every turn walks, so that it has its hold, its row and its place in the
trail; only policy is not asked, because a target is tried before any policy lets anybody in. Who may try is the
route's to say.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from msgspec import Raw

from cost import ModelUnpriced
from gateway.chat import Chat
from gateway.errors import NotFound
from gateway.history import History
from gateway.trace import Trace
from governance import Policy, Verdict
from kernel import AuditRecord, Caller, Clock, ModelRequest, Operation, Plan, PlatformError, Target, format_usd
from router import (
    Catalogue,
    TargetsResting,
    UpstreamBroken,
    UpstreamBusy,
    UpstreamFailed,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnreachable,
)

_MESSAGES = Raw(b'[{"role": "user", "content": "Reply with OK."}]')
_INPUT_TOKENS_MAX = 64
_OUTPUT_TOKENS_MAX = 16
# In brackets, which no declared use case can have in its name.
_USE_CASE = "(trial)"

# For failures whose own words do not say it; the first that fits.
_CURES: tuple[tuple[type[PlatformError], str], ...] = (
    (UpstreamUnreachable, "Check the provider's base_url, certificates and proxy, and that its credential is sealed."),
    (UpstreamTimeout, "See whether the provider is slow today, or give it longer times, such as answer_seconds."),
    (UpstreamBusy, "Wait, or have the provider raise its limit."),
    (
        UpstreamFailed,
        "401, 403: seal the credential again (penstock credential); 404: correct base_url or upstream_model.",
    ),
    (UpstreamRefused, "These are the provider's own words; correct what they name, often upstream_model."),
    (UpstreamBroken, "Check that base_url leads to what the provider's dialect names."),
    (TargetsResting, "Wait until it is tried again, or declare draining: false where it drains."),
    (ModelUnpriced, "Declare a price for it, a base that has one, or unpriced: true."),
)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a trial came to nothing. cure: what to do, where the message does not say it."""

    status: int
    code: str
    message: str
    cure: str | None


@dataclass(frozen=True, slots=True)
class Report:
    """What a trial showed. milliseconds: from asking the target to its whole answer; the rest as the books have it.

    request_id: of the turn, for `/v1/requests/`. provider_request_id: what the provider called it.
    """

    model: str
    provider: str
    upstream_model: str
    state: Literal["answered", "failed"]
    milliseconds: float
    request_id: str
    cost_usd: str = format_usd(0)
    estimated: bool = False
    price_id: str | None = None
    provider_request_id: str | None = None
    tokens: Mapping[str, int] = field(default_factory=dict)
    error: Failure | None = None


class Unjudged(Policy):
    """Policy for trials: an operator may know of every target and try it. It is asked nothing else."""

    def visible(self, caller: Caller, target: Target) -> bool:  # noqa: ARG002 - as Policy's
        """Always."""
        return True

    def use_case(self, caller: Caller, hint: str | None) -> str:  # noqa: ARG002 - as Policy's
        """What reports call trials."""
        return _USE_CASE

    def allowed(self, caller: Caller, plan: Plan) -> tuple[Plan, Verdict]:  # noqa: ARG002 - as Policy's
        """All of the plan; the trail shows that nothing was judged."""
        return plan, Verdict(())


class Trials:
    """Tries targets. chat: whose beats are walked; its policy is replaced."""

    def __init__(
        self, chat: Chat, policy: Unjudged, *, catalogue: Callable[[], Catalogue], history: History, clock: Clock
    ) -> None:
        self._chat = Chat(
            router=chat.router,
            policy=policy,
            guard=chat.guard,
            limits=chat.limits,
            ledger=chat.ledger,
            upstreams=chat.upstreams,
        )
        self._catalogue = catalogue
        self._history = history
        self._clock = clock

    async def run(self, caller: Caller, name: str) -> Report:
        """One call of at most 16 tokens, booked, and recorded as `model.tested` however it ended.

        A target that fails is a report. Raises NotFound for what is no model, and StoreUnavailable.
        """
        target, request = self._asking(name)
        trace, failure = Trace(self._clock), None
        trace.facts["trial"] = True
        try:
            await self._chat.complete(caller, request, trace)
        except PlatformError as error:
            failure = error
        finally:
            _release(trace)
        report = await self._report(caller, target, trace, failure)
        await self._chat.ledger.record(_record(caller, report))
        return report

    def _asking(self, name: str) -> tuple[Target, ModelRequest]:
        """The target, and a question that its provider understands without a translation."""
        catalogue = self._catalogue()
        target = catalogue.targets.get(name)
        if target is None:
            of_alias = f" `{name}` is an alias; test one of its models." if catalogue.knows(name) else ""
            raise NotFound(f"There is no model `{name[:128]}`.{of_alias}")
        speaks_messages = catalogue.provider(target.provider).dialect == "anthropic"
        return target, ModelRequest(
            model=name,
            fields={"messages": _MESSAGES},
            input_tokens_max=_INPUT_TOKENS_MAX,
            output_tokens_max=_OUTPUT_TOKENS_MAX,
            operation=Operation.MESSAGES if speaks_messages else Operation.CHAT,
        )

    async def _report(self, caller: Caller, target: Target, trace: Trace, failure: PlatformError | None) -> Report:
        booked = dict[str, Any]()
        if trace.turn is not None:
            await trace.turn.settled()
            told = await self._history.explain(caller, trace.turn_id)
            for attempt in told["attempts"]:
                booked = {name: attempt[name] for name in ("estimated", "price_id", "provider_request_id", "tokens")}
                booked["cost_usd"] = format_usd(attempt["cost_nano_usd"])
        return Report(
            target.name,
            target.provider,
            target.upstream_model,
            "answered" if failure is None else "failed",
            milliseconds=trace.turn.milliseconds["do"] if trace.turn else 0.0,
            request_id=trace.turn_id,
            error=None if failure is None else _told(failure),
            **booked,
        )


def _release(trace: Trace) -> None:
    if trace.permit is not None:
        if trace.turn is not None and trace.turn.usage is not None:
            trace.permit.settle_tokens(trace.turn.usage.total_tokens)
        trace.permit.release()


def _told(error: PlatformError) -> Failure:
    cure = next((cure for kind, cure in _CURES if isinstance(error, kind)), None)
    return Failure(error.status, error.code, error.message, cure)


def _record(caller: Caller, report: Report) -> AuditRecord:
    """For the trail: never the message, which may be in the provider's words.

    It names the turn instead of being one of its records, whose last is what the turn came to.
    """
    body = {
        "by": caller.user or caller.key_id,
        "turn": report.request_id,
        "model": report.model,
        "provider": report.provider,
        "state": report.state,
        "code": report.error.code if report.error else None,
        "milliseconds": report.milliseconds,
        "cost_usd": report.cost_usd,
    }
    return AuditRecord("model.tested", body, app=caller.app, department=caller.department)
