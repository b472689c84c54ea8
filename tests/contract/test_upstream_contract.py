"""Everything that answers, on one suite: the sandbox, and the wire against a provider that follows a script."""

import asyncio
import gzip
import json
from contextlib import aclosing

import msgspec
import pytest

from kernel import Component
from router import (
    UpstreamBroken,
    UpstreamBusy,
    UpstreamError,
    UpstreamFailed,
    UpstreamOverlong,
    UpstreamRefused,
    UpstreamSettings,
    UpstreamTimeout,
)
from tests.fakes.routing import TARGET, Sent, chat
from tests.fakes.scripted_upstream import (
    CUT,
    DONE,
    EVENTS,
    HALF_CLOSE,
    HOLD,
    LAST_CHUNK,
    REPLY,
    RESET,
    ROLE,
    STREAM_HEAD,
    Drip,
    Repeat,
    ScriptedUpstream,
    Step,
    Wait,
    chunked,
    event,
    finished,
    said,
    used,
    whole,
)
from tests.fakes.upstream_subjects import IN_BAND, PATIENT, SECRET, SHORT, WHOLE_STREAM, Subject, provider_says, taken


class TestEveryUpstream:
    async def test_gives_a_whole_answer_with_usage_and_id(self, subject: Subject):
        reply = await subject.complete("answers")
        assert json.loads(reply.body)["choices"][0]["message"]["content"]
        assert reply.usage is not None
        assert reply.usage.output_tokens == 2
        assert reply.provider_request_id

    async def test_streams_role_content_finish_usage_and_then_ends(self, subject: Subject):
        chunks, error = await taken(subject.stream("answers"))
        assert error is None
        assert [chunk.content for chunk in chunks] == [False, True, True, True, False]
        assert [chunk.usage_only for chunk in chunks] == [False, False, False, False, True]
        assert [chunk.usage is not None for chunk in chunks] == [False, False, False, False, True]
        assert [chunk.final for chunk in chunks] == [False, False, False, False, True]
        assert chunks[-1].usage.tokens[Component.OUTPUT] == 2
        assert all(json.loads(chunk.data)["id"] and chunk.provider_request_id for chunk in chunks)

    @pytest.mark.parametrize("streamed", [False, True])
    @pytest.mark.parametrize(
        ("behaviour", "error", "unbilled", "curable"),
        [
            ("500", UpstreamFailed, True, True),
            ("429", UpstreamBusy, True, True),
            ("400", UpstreamRefused, True, False),
            ("cut first", UpstreamBroken, False, True),
            ("cut later", UpstreamBroken, False, True),
            ("500 later", UpstreamBroken, False, True),
            ("hang", UpstreamTimeout, False, True),
            ("hang later", UpstreamTimeout, False, True),
        ],
    )
    async def test_says_how_it_failed(self, subject: Subject, behaviour, error, unbilled, curable, streamed):
        if streamed:
            chunks, failure = await taken(subject.stream(behaviour))
            assert [chunk.content for chunk in chunks] == ([False, True, True] if "later" in behaviour else [])
        else:
            with pytest.raises(UpstreamError) as caught:
                await subject.complete(behaviour)
            failure = caught.value
        assert type(failure) is error
        assert (failure.unbilled, failure.curable) == (unbilled, curable)
        assert subject.sent.times == 1
        if behaviour == "429":
            assert failure.retry_after_seconds == 1.0

    async def test_says_sent_once_and_not_before_it_is_iterated(self, subject: Subject):
        stream = subject.stream("answers")
        await asyncio.sleep(0)
        assert subject.sent.times == 0
        await taken(stream)
        assert subject.sent.times == 1

    async def test_a_stream_never_started_is_closed_without_being_sent(self, subject: Subject):
        await subject.stream("answers").aclose()
        assert subject.sent.times == 0

    async def test_cancelling_a_whole_answer_ends_it_at_once(self, subject: Subject):
        task = asyncio.ensure_future(subject.complete("hang"))
        while not subject.sent.times:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 1)

    async def test_answers_many_at_a_time(self, subject: Subject):
        replies = await asyncio.gather(*(subject.complete("answers") for _ in range(50)))
        assert {reply.usage.output_tokens for reply in replies} == {2}
        assert subject.sent.times == 50


def unfinished(usage: object) -> bytes:
    """A word as some providers write it, with a finish_reason that is none."""
    return event({"choices": [{"index": 0, "delta": {"content": "b"}, "finish_reason": ""}], "usage": usage})


async def streamed(make, server: ScriptedUpstream, *steps: Step, **provider: object):
    """Chunks and error of one stream over the wire against these steps."""
    server.will(*steps)
    return await taken(make(**provider).stream(TARGET, chat(stream=True), Sent().call()))


async def completed(make, server: ScriptedUpstream, *steps: Step, **provider: object):
    """The error of one whole answer over the wire against these steps."""
    server.will(*steps)
    with pytest.raises(UpstreamError) as caught:
        await make(**provider).complete(TARGET, chat(), Sent().call())
    return caught.value


class TestAWholeAnswer:
    @pytest.mark.parametrize(
        "steps",
        [
            pytest.param((whole(b"not json"),), id="not JSON"),
            pytest.param((whole([1]),), id="not an object"),
            pytest.param((whole(b""),), id="empty"),
            pytest.param((whole(REPLY, length=9999), CUT), id="shorter than its content-length"),
            pytest.param((whole(REPLY, length=40), CUT), id="longer than its content-length"),
            pytest.param((whole(REPLY)[:60], RESET), id="reset in the headers"),
            pytest.param((whole(REPLY)[:-9], RESET), id="reset in the body"),
            pytest.param((whole(REPLY)[:-9], HALF_CLOSE), id="half closed in the body"),
            pytest.param((b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",), id="huge header"),
            pytest.param((b"garbage\r\n\r\n",), id="not HTTP"),
            pytest.param((whole(IN_BAND),), id="200 with an error"),
            pytest.param((whole(b"\xff{}", "Content-Encoding: gzip"),), id="not the gzip it says"),
            pytest.param((whole(b'{"usage":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),), id="too deep"),
        ],
    )
    async def test_that_is_not_one_is_broken_and_billed(self, make, server, steps):
        error = await completed(make, server, *steps)
        assert type(error) is UpstreamBroken
        assert not error.unbilled
        assert error.curable

    async def test_is_bounded(self, make, server):
        server.will(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n", Repeat(b"x" * 65536, 1500), HOLD)
        with pytest.raises(UpstreamOverlong, match="more than 100000 bytes"):
            await make(UpstreamSettings(reply_bytes_max=100_000)).complete(TARGET, chat(), Sent().call())
        await asyncio.wait_for(server.hung_up.wait(), 1)

    async def test_is_bounded_after_decompression(self, make, server):
        server.will(whole(gzip.compress(b" " * 50_000_000), "Content-Encoding: gzip"))
        with pytest.raises(UpstreamOverlong, match="more than"):
            await make(UpstreamSettings(reply_bytes_max=1_000_000)).complete(TARGET, chat(), Sent().call())

    async def test_may_be_compressed(self, make, server):
        server.will(whole(gzip.compress(json.dumps(REPLY).encode()), "Content-Encoding: gzip"))
        reply = await make().complete(TARGET, chat(), Sent().call())
        assert json.loads(reply.body) == REPLY

    async def test_without_usage_says_none(self, make, server):
        server.will(whole({**REPLY, "usage": None}))
        assert (await make().complete(TARGET, chat(), Sent().call())).usage is None

    async def test_prefers_the_request_id_of_the_header(self, make, server):
        server.will(whole(REPLY, "x-request-id: req-9"))
        assert (await make().complete(TARGET, chat(), Sent().call())).provider_request_id == "req-9"

    @pytest.mark.parametrize("at", range(0, len(whole(REPLY)), 7))
    async def test_is_the_same_however_it_is_split(self, make, server, at):
        server.will(whole(REPLY)[:at], Wait(0), whole(REPLY)[at:])
        assert json.loads((await make().complete(TARGET, chat(), Sent().call())).body) == REPLY

    async def test_with_slow_headers_runs_out_of_time_and_hangs_up(self, make, server):
        error = await completed(make, server, whole(REPLY)[:30], HOLD, **SHORT)
        assert type(error) is UpstreamTimeout
        assert "`answer`" in error.message
        assert not error.unbilled
        await asyncio.wait_for(server.hung_up.wait(), 1)

    async def test_has_a_limit_over_everything(self, make, server):
        error = await completed(make, server, Wait(0.5), whole(REPLY), total_seconds=0.05)
        assert "`total`" in error.message

    @pytest.mark.parametrize("streaming", [False, True])
    async def test_that_nobody_waits_for_is_hung_up_on(self, make, server, streaming):
        server.will(HOLD)
        upstreams = make(answer_seconds=60)
        if streaming:
            waiting = anext(upstreams.stream(TARGET, chat(stream=True), Sent().call()))
        else:
            waiting = upstreams.complete(TARGET, chat(), Sent().call())
        task = asyncio.ensure_future(waiting)
        await asyncio.wait_for(server.asked.wait(), 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(server.hung_up.wait(), 1)


class TestAnErrorStatus:
    @pytest.mark.parametrize(
        ("status", "unbilled"),
        [(401, True), (403, True), (404, True), (408, False), (500, True), (502, True), (503, True), (504, False)],
    )
    async def test_that_another_target_may_cure(self, make, server, status, unbilled):
        error = await completed(make, server, provider_says(f"{status} X", "your key is wrong"))
        assert type(error) is UpstreamFailed
        assert (error.status, error.code, error.unbilled, error.curable) == (502, "upstream_error", unbilled, True)
        assert "key" not in error.message

    @pytest.mark.parametrize("status", [400, 413, 422])
    async def test_that_refuses_is_passed_on(self, make, server, status):
        error = await completed(make, server, provider_says(f"{status} X", "y" * 900))
        assert type(error) is UpstreamRefused
        assert (error.status, error.code, error.param) == (status, "bad", "messages")
        assert error.message == "y" * 500

    async def test_never_repeats_the_credential(self, make, server):
        error = await completed(make, server, provider_says("400 X", f"wrong key {SECRET}"))
        assert error.message == "wrong key [credential]"

    @pytest.mark.parametrize("body", [b"", b"<html>", b'{"error": 7}', b'{"error": {"message": 7}}', b"[]"])
    async def test_says_something_whatever_the_body(self, make, server, body):
        error = await completed(make, server, whole(body, status="400 X"))
        assert error.message == "The target `m` refused the request with status 400."

    async def test_counts_even_if_its_body_is_cut(self, make, server):
        error = await completed(make, server, whole(b"{", status="503 X", length=50), CUT)
        assert type(error) is UpstreamFailed

    @pytest.mark.parametrize("streaming", [False, True])
    @pytest.mark.parametrize("limits", [SHORT, PATIENT])
    @pytest.mark.parametrize(("status", "kind"), [("429 X", UpstreamBusy), ("503 X", UpstreamFailed)])
    async def test_counts_even_if_its_body_never_ends(self, make, server, status, kind, limits, streaming):
        server.will(whole(b"{", "Retry-After: 5", status=status, length=50), HOLD)
        upstreams = make(UpstreamSettings(error_seconds=0.3), **limits)  # longer than the short limits, on purpose
        async with asyncio.timeout(2):
            if streaming:
                _, error = await taken(upstreams.stream(TARGET, chat(stream=True), Sent().call()))
            else:
                with pytest.raises(UpstreamError) as caught:
                    await upstreams.complete(TARGET, chat(), Sent().call())
                error = caught.value
        assert type(error) is kind
        assert (error.unbilled, error.retry_after_seconds) == (True, 5)
        await asyncio.wait_for(server.hung_up.wait(), 1)

    @pytest.mark.parametrize(
        ("status", "told"), [("429 X", (429, "rate_limit_exceeded")), ("503 X", (502, "upstream_error"))]
    )
    async def test_passes_on_when_to_come_back(self, make, server, status, told):
        error = await completed(make, server, provider_says(status, "no", "retry-after-ms: 1500"))
        assert ((error.status, error.code), error.retry_after_seconds) == (told, 1.5)

    async def test_begins_no_stream(self, make, server):
        chunks, error = await streamed(make, server, provider_says("503 X"))
        assert (chunks, type(error)) == ([], UpstreamFailed)


class TestAStream:
    @pytest.mark.parametrize("piece_bytes", [1, 2, 3, 7, 64])
    async def test_is_the_same_however_it_is_split(self, make, server, piece_bytes):
        chunks, error = await streamed(make, server, Drip(WHOLE_STREAM, piece_bytes))
        assert error is None
        assert [chunk.data for chunk in chunks] == [each[6:-2] for each in EVENTS[:-1]]

    async def test_knows_the_provider_by_its_header(self, make, server):
        chunks, _ = await streamed(make, server, WHOLE_STREAM)
        assert {chunk.provider_request_id for chunk in chunks} == {"req-7"}

    @pytest.mark.parametrize(
        "steps",
        [
            pytest.param((STREAM_HEAD + LAST_CHUNK,), id="without events"),
            pytest.param((STREAM_HEAD + chunked(*EVENTS[:3]) + LAST_CHUNK,), id="that ends quietly"),
            pytest.param((STREAM_HEAD + chunked(*EVENTS[:4]) + LAST_CHUNK,), id="without usage and DONE"),
            pytest.param(
                (STREAM_HEAD + chunked(ROLE, used(7, 0), said("a"), finished()), CUT), id="with usage too early, cut"
            ),
            pytest.param(
                (STREAM_HEAD + chunked(ROLE, said("a"), unfinished({"prompt_tokens": 7, "completion_tokens": 1})), CUT),
                id="with an empty finish_reason, cut",
            ),
            pytest.param((STREAM_HEAD + chunked(*EVENTS[:3], DONE) + LAST_CHUNK,), id="done before finished"),
            pytest.param((STREAM_HEAD + chunked(DONE) + LAST_CHUNK,), id="done at once"),
            pytest.param((STREAM_HEAD + chunked(*EVENTS[:3]), CUT), id="cut"),
            pytest.param((STREAM_HEAD + chunked(*EVENTS[:3]), RESET), id="reset"),
            pytest.param((STREAM_HEAD + chunked(*EVENTS[:3]), HALF_CLOSE), id="half closed"),
            pytest.param((STREAM_HEAD + chunked(ROLE, b"data: {oops\n\n") + LAST_CHUNK,), id="malformed JSON"),
            pytest.param((STREAM_HEAD + chunked(ROLE) + b"zz\r\n",), id="malformed HTTP chunk"),
            pytest.param((STREAM_HEAD + chunked(event(IN_BAND)) + LAST_CHUNK,), id="error at once"),
            pytest.param((whole(REPLY),), id="that is none"),
            pytest.param(
                (STREAM_HEAD + chunked(said("a"), said("b", 1), finished(0), used(), DONE) + LAST_CHUNK,),
                id="with a choice left open",
            ),
        ],
    )
    async def test_that_is_not_whole_is_broken(self, make, server, steps):
        _, error = await streamed(make, server, *steps)
        assert type(error) is UpstreamBroken
        assert not error.unbilled

    @pytest.mark.parametrize("end", [LAST_CHUNK, CUT, RESET, HOLD])
    async def test_without_done_is_whole_once_it_finished_and_told_its_usage(self, make, server, end):
        chunks, error = await streamed(make, server, STREAM_HEAD + chunked(*EVENTS[:-1]), Wait(0.02), end, **SHORT)
        assert error is None
        assert chunks[-1].usage.output_tokens == 2

    async def test_gives_what_came_before_an_error(self, make, server):
        steps = STREAM_HEAD + chunked(*EVENTS[:3], event(IN_BAND), DONE) + LAST_CHUNK
        chunks, error = await streamed(make, server, steps)
        assert len(chunks) == 3
        assert type(error) is UpstreamBroken

    async def test_with_cumulative_usage_gives_each_and_sums_none(self, make, server):
        usages = [{"prompt_tokens": 7, "completion_tokens": count} for count in (1, 2)]
        events = [ROLE, said("a"), finished(usage=usages[0]), used(7, 1), used(7, 2), DONE]
        chunks, error = await streamed(make, server, STREAM_HEAD + chunked(*events) + LAST_CHUNK)
        assert error is None
        assert [chunk.usage.output_tokens for chunk in chunks if chunk.usage] == [1, 1, 2]

    async def test_knows_its_last_word_on_usage_from_a_running_count(self, make, server):
        steps = STREAM_HEAD + chunked(ROLE, used(7, 0), said("a"), finished(), used(7, 1), DONE) + LAST_CHUNK
        chunks, error = await streamed(make, server, steps)
        assert error is None
        assert [chunk.final for chunk in chunks if chunk.usage] == [False, True]

    async def test_of_several_choices_has_its_last_word_after_the_last_of_them(self, make, server):
        one_by_one = [ROLE, said("a"), finished(usage={"prompt_tokens": 7, "completion_tokens": 1}), said("b", 1)]
        server.will(STREAM_HEAD + chunked(*one_by_one, finished(1), used(), DONE) + LAST_CHUNK)
        request = msgspec.structs.replace(chat(stream=True, n=2), choices=2)
        chunks, error = await taken(make().stream(TARGET, request, Sent().call()))
        assert error is None
        assert [chunk.final for chunk in chunks if chunk.usage] == [False, True]

    async def test_without_usage_ends_well_and_says_none(self, make, server):
        chunks, error = await streamed(make, server, STREAM_HEAD + chunked(*EVENTS[:4], DONE) + LAST_CHUNK)
        assert error is None
        assert not any(chunk.usage for chunk in chunks)

    async def test_of_a_fifty_megabyte_event_is_cut_short(self, make, server):
        block = chunked(b"x" * 65536)
        chunks, error = await streamed(
            make, server, STREAM_HEAD + chunked(b"data: "), Repeat(block, 800), HOLD, answer_seconds=10
        )
        assert chunks == []
        assert type(error) is UpstreamOverlong
        assert "more than 4194304 bytes" in error.message
        await asyncio.wait_for(server.hung_up.wait(), 1)

    async def test_is_not_kept_alive_by_comments(self, make, server):
        pings = [step for _ in range(40) for step in (chunked(b": ping\n\n"), Wait(0.02))]
        chunks, error = await streamed(make, server, STREAM_HEAD + chunked(*EVENTS[:2]), *pings, CUT, **SHORT)
        assert len(chunks) == 2
        assert type(error) is UpstreamTimeout
        assert "`event`" in error.message

    async def test_has_a_limit_over_everything(self, make, server):
        words = [step for _ in range(40) for step in (chunked(said("a")), Wait(0.02))]
        chunks, error = await streamed(make, server, STREAM_HEAD, *words, CUT, total_seconds=0.3)
        assert chunks
        assert "`total`" in error.message

    async def test_has_its_time_between_events_from_when_somebody_waits(self, make, server):
        server.will(STREAM_HEAD + chunked(*EVENTS[:2]), Wait(0.7), chunked(*EVENTS[2:]) + LAST_CHUNK)
        chunks = []
        async with aclosing(make(event_seconds=0.4).stream(TARGET, chat(stream=True), Sent().call())) as stream:
            async for chunk in stream:
                if len(chunks) == 1:
                    await asyncio.sleep(0.5)  # with it the provider's 0.7 would be too long, without it they are not
                chunks.append(chunk)
        assert len(chunks) == 5

    async def test_names_the_phase_before_the_first_event(self, make, server):
        _, error = await streamed(make, server, STREAM_HEAD, HOLD, **SHORT)
        assert "`answer`" in error.message

    @pytest.mark.parametrize("after", [1, 2])
    async def test_that_is_closed_hangs_up_within_a_second(self, make, server, after):
        server.will(STREAM_HEAD + chunked(*EVENTS[:3]), HOLD)
        async with aclosing(make(event_seconds=60).stream(TARGET, chat(stream=True), Sent().call())) as stream:
            for _ in range(after):
                await anext(stream)
        await asyncio.wait_for(server.hung_up.wait(), 1)

    async def test_gives_its_connection_back_even_if_the_end_comes_late(self, make, server):
        server.will(STREAM_HEAD + chunked(*EVENTS), Wait(0.01), LAST_CHUNK)
        upstreams = make(UpstreamSettings(drain_seconds=2))
        for _ in range(3):
            _, error = await taken(upstreams.stream(TARGET, chat(stream=True), Sent().call()))
            assert error is None
            await asyncio.sleep(0.2)  # the caller has its answer, the connection is read to its end
        assert server.connections == 1

    async def test_is_over_with_done_however_long_its_connection_stays_open(self, make, server):
        server.will(STREAM_HEAD + chunked(*EVENTS), HOLD)
        upstreams = make(UpstreamSettings(drain_seconds=60))
        async with asyncio.timeout(1):
            _, error = await taken(upstreams.stream(TARGET, chat(stream=True), Sent().call()))
            assert error is None
            assert not server.hung_up.is_set()
            await upstreams.close()
            await server.hung_up.wait()

    async def test_that_never_ends_after_done_ends_for_us(self, make, server):
        chunks, error = await streamed(make, server, STREAM_HEAD + chunked(*EVENTS), HOLD)
        assert (len(chunks), error) == (5, None)
        await asyncio.wait_for(server.hung_up.wait(), 1)
