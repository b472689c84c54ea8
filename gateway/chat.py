"""A turn from admission to its last closing, read downward. Each line is one step; the noun does the work.

Chats, messages, completions, embeddings and counts of tokens all pass here; what tells them apart is their wire, which
doors.py reads and the router's upstreams speak.

No step hides in middleware or a callback. It awaits the limits, the hold and the upstream, and for a long text the
thread that looks through it; edge.py identifies before it and waits for the books after it.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec

from cost import Attempt, Ledger
from gateway.trace import Trace
from governance import Guard, Limits, Policy
from kernel import Caller, Chunk, ModelReply, ModelRequest, Plan
from router import ModelNotFound, Router, UpstreamCall, Upstreams

_BYTES_PER_TOKEN = 4
_LIKELY_OUTPUT_TOKENS = 256
_QUIET_CHUNKS_MAX = 64
_INSPECTED_AT_ONCE_BYTES_MAX = 1024 * 1024  # the guard takes a third of a millisecond for it


class Chat:
    """Answers requests for models through the five beats, whole or streamed."""

    def __init__(
        self,
        *,
        router: Router,
        policy: Policy,
        guard: Guard,
        limits: Limits,
        ledger: Ledger,
        upstreams: Upstreams,
    ) -> None:
        self.router = router
        self.policy = policy
        self.guard = guard
        self.limits = limits
        self.ledger = ledger
        self.upstreams = upstreams

    async def complete(self, caller: Caller, request: ModelRequest, trace: Trace) -> ModelReply:
        """The whole answer of the first target that gives one. Raises PlatformError."""
        caller, plan = await self._admit(caller, request, trace)
        async with self.ledger.turn(caller, request, plan, trace.admission()) as turn:
            trace.turn = turn
            for target in self.router.walk(plan):  # those that rest are passed over; a second one is paid for
                async with turn.attempt(target) as attempt:  # held on entering, posted or voided however it is left
                    paid = request.limited(attempt.output_tokens_max)
                    reply = await self.upstreams.complete(target, paid, _call(trace, attempt))
                    attempt.use(reply.usage, reply.provider_request_id)
                    return reply
        raise turn.failure()

    async def stream(self, caller: Caller, request: ModelRequest, trace: Trace) -> AsyncGenerator[Chunk, None]:
        """The answer event by event; after the first content no other target is tried. Raises PlatformError.

        Events without content are kept back until content comes, so that a target which fails before it has
        said anything leaves no trace in the answer of the next.
        """
        caller, plan = await self._admit(caller, request, trace)
        async with self.ledger.turn(caller, request, plan, trace.admission()) as turn:
            trace.turn = turn
            for target in self.router.walk(plan):
                async with turn.attempt(target) as attempt:
                    paid, quiet, name = request.limited(attempt.output_tokens_max), list[Chunk](), None
                    async with aclosing(self.upstreams.stream(target, paid, _call(trace, attempt))) as chunks:
                        async for chunk in chunks:
                            if chunk.usage is not None or chunk.provider_request_id != name:  # few events tell more
                                name = chunk.provider_request_id
                                attempt.use(chunk.usage, name, final=chunk.final)
                            if attempt.is_answered:
                                yield chunk
                                continue
                            quiet.append(chunk)
                            if chunk.content or len(quiet) > _QUIET_CHUNKS_MAX:
                                attempt.answered()
                                for told in quiet:
                                    yield told
                                quiet.clear()
                    for told in quiet:
                        yield told
                    return
        raise turn.failure()

    async def _admit(self, caller: Caller, request: ModelRequest, trace: Trace) -> tuple[Caller, Plan]:
        trace.caller = caller = caller.raised(request.hints.data_class or caller.data_class)
        trace.caller = caller = await self._inspected(caller, request, trace)
        plan = self._known(caller, request)  # 404 for what it may not know of
        trace.facts |= {"requested": request.model, "operation": request.operation, "why": list(plan.why)}
        trace.caller = caller = caller.acting_for(self.policy.use_case(caller, request.hints.use_case))
        plan, verdict = self.policy.allowed(caller, plan)  # 403 before anything costs
        trace.facts |= {"plan": [target.name for target in plan], "policy": verdict.as_json()}
        trace.permit = permit = await self.limits.take(
            caller, _likely_tokens(request, plan)
        )  # per minute, and turns at a time: 429
        trace.facts["limits"] = permit.headers() | ({"observed": permit.observed} if permit.observed else {})
        trace.beat("admit")
        return caller, plan

    async def _inspected(self, caller: Caller, request: ModelRequest, trace: Trace) -> Caller:
        """The caller with the data class that its content asks for; a long text is looked through beside the loop."""
        if request.size < _INSPECTED_AT_ONCE_BYTES_MAX:
            caller, found = self.guard.inspect(caller, request)
        else:
            caller, found = await asyncio.to_thread(self.guard.inspect, caller, request)
        trace.facts["scan"] = found.as_json()
        return caller

    def _known(self, caller: Caller, request: ModelRequest) -> Plan:
        plan = self.router.plan(request)
        visible = tuple(target for target in plan if self.policy.visible(caller, target))
        if not visible:
            raise ModelNotFound(request.model)
        plan = plan if len(visible) == len(plan.targets) else msgspec.structs.replace(plan, targets=visible)
        plan = self.router.current(plan)  # 404 where all of it is retired
        return self.router.offering(plan, request.operation)  # 400 where none of them does this


def _likely_tokens(request: ModelRequest, plan: Plan) -> int:
    """What the turn will probably use, for limits on tokens: charged now, corrected when usage is known."""
    asked = _LIKELY_OUTPUT_TOKENS if request.output_tokens_max is None else request.output_tokens_max
    answer = min(asked, max(target.output_tokens_max for target in plan))
    return (request.input_tokens_max or 0) // _BYTES_PER_TOKEN + answer * request.choices


def _call(trace: Trace, attempt: Attempt) -> UpstreamCall:
    return UpstreamCall(reference=f"{trace.turn_id}/{attempt.number}", sent=attempt.sent)
