"""What a server's page says, what is made of it, and that nothing a server says does harm."""

import asyncio
import logging
import random
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kernel import Target
from router import Catalogue, Health, Router, TargetsResting
from router.catalogue import Provider
from router.load import EVERY_SECONDS, Load, Lookout, read_load
from tests.fakes.routing import asking, document

GUIDE = Path(__file__).parents[3] / "docs/guides/vllm.md"
A, B = "http://a.test:8000/v1", "http://b.test:8000/v1"


def line(name: str, value: object, **labels: object) -> bytes:
    told = ",".join(f'{label}="{said}"' for label, said in {"model_name": "tiny", **labels}.items())
    return f"vllm:{name}{{{told}}} {value}\n".encode()


def page(running: object = 0, waiting: object = 0, cache: object = 0.25, **labels: object) -> bytes:
    """As vLLM writes it, with what else is on it."""
    return b"".join(
        [
            b"# HELP vllm:num_requests_running Number of requests in model execution batches.\n",
            b"# TYPE vllm:num_requests_running gauge\n",
            line("num_requests_running", running, **labels),
            line("num_requests_waiting", waiting, **labels),
            line("num_requests_waiting_by_reason", 77, reason="capacity"),
            line("kv_cache_usage_perc", cache, **labels),
            line("prompt_tokens_total", 12345),
            b"process_open_fds 17.0\n",
        ]
    )


class TestReading:
    async def test_says_what_runs_what_waits_and_how_full_the_cache_is(self):
        assert await read_load(page("3.0", "2.0", "0.5")) == Load(3, 2, 0.5)

    async def test_engines_are_added_up_and_the_fullest_cache_counts(self):
        both = page(3, 2, 0.5, engine=0) + page(4, 1, 0.75, engine=1)
        assert await read_load(both) == Load(7, 3, 0.75)

    async def test_a_page_without_its_last_line_feed_is_read_to_its_end(self):
        said = line("num_requests_running", 1) + line("num_requests_waiting", 2)
        assert await read_load(said.rstrip()) == Load(1, 2)

    @pytest.mark.parametrize("engines", [20, 200])
    async def test_many_engines_are_read_too(self, engines):
        pages = b"".join(page(1, 2, 0.1, engine=number) + b"# beside it\n" * 50 for number in range(engines))
        assert (len(pages) > 128 * 1024) is (engines == 200)  # which is read beside the loop
        assert await read_load(pages) == Load(engines, 2 * engines, 0.1)

    @pytest.mark.parametrize(
        "said",
        [
            b"",
            b"<html>not found</html>",
            line("num_requests_running", 1),
            line("num_requests_waiting", 1),
            page(-1),
            page("NaN"),
            page("+Inf"),
            page(1, 1, "NaN"),
            page("many"),
            page("9" * 900),
            page(1, 1) + b"vllm:num_requests_running{ 1\n",
            page(1, 1) + b"vllm:num_requests_running{a=b} 1\n",
            page(1, 1) + b"vllm:num_requests_running 1 " + b"9" * 900 + b"\n",
            page(1, 1) + b'vllm:num_requests_running{a="\xff"} 1\n',
            b"".join(page(1, 1, engine=number) for number in range(1000)),
        ],
    )
    async def test_nonsense_and_what_is_missing_or_too_much_says_nothing(self, said):
        assert await read_load(said) is None

    @given(st.binary(max_size=400))
    def test_no_bytes_do_harm(self, said):
        asyncio.run(read_load(said))

    @given(
        st.lists(
            st.tuples(
                st.sampled_from(["num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"]),
                st.text(alphabet='{}=,"\\ \t#_e+-.0123456789abNn\u00a0\u0663', max_size=40),
            ),
            max_size=4,
        )
    )
    def test_no_lines_that_begin_well_do_harm(self, said):
        asyncio.run(read_load(b"".join(f"vllm:{name}{rest}\n".encode() for name, rest in said)))


class Servers:
    """Two servers that answer a look when the test says so. at_most: how many looks at one were under way at once."""

    def __init__(self) -> None:
        self.began: Counter[str] = Counter()
        self.at_most = 0
        self._answers = {at: asyncio.Queue[bytes | None]() for at in (A, B)}
        self._under_way: Counter[str] = Counter()

    async def fetch(self, provider: Provider) -> bytes | None:
        at = provider.base_url or ""
        self.began[at] += 1
        self._under_way[at] += 1
        self.at_most = max(self.at_most, self._under_way[at])
        answer = await self._answers[at].get()
        self._under_way[at] -= 1
        return answer

    async def say(self, *answers: bytes | None, at: str = A) -> None:
        """Each of them answers one look, and what it was taken for is known when this returns."""
        for answer in answers:
            await self._until(lambda: self._under_way[at] > 0)
            began = self.began[at]
            self._answers[at].put_nowait(answer)
            await self._until(lambda: self.began[at] > began)  # noqa: B023 - asked before the next one

    async def _until(self, it_is_so: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not it_is_so():
                await asyncio.sleep(0)


def declared(*more: object, **models: str) -> Catalogue:
    """Models by their provider; `a` and `twin` are on one server, `b` on another, `o` speaks another dialect."""
    return Catalogue.of(
        [
            document("provider", "a", dialect="vllm", base_url=A),
            document("provider", "twin", dialect="vllm", base_url=f"{A}/"),
            document("provider", "b", dialect="vllm", base_url=B),
            document("provider", "o", dialect="openai", base_url="http://o.test/v1"),
            document("provider", "beyond", dialect="vllm", base_url="http://c.test/v1", proxy="http://p.test:3128"),
            *(document("model", name, provider=provider) for name, provider in models.items()),
            document("alias", "least", targets=list(models), choose="least_outstanding"),
            *more,
        ]
    )


class Bench:
    """Lookout, health and router over one catalogue, as they are wired."""

    def __init__(self, servers: Servers, clock, known: Catalogue) -> None:
        self.known = known
        self.servers = servers
        self.lookout = Lookout(lambda: self.known, servers.fetch, dice=random.Random(1), every_seconds=0)
        self.health = Health(lambda: self.known, dice=random.Random(2), clock=clock, seen=self.lookout.of)
        self.router = Router(lambda: self.known, self.health, cost_of=lambda *_: None, dice=random.Random(3))
        self.lookout.start(self.health.open_calls)

    def target(self, name: str) -> Target:
        return self.known.targets[name]

    def walked(self, name: str = "least") -> list[str]:
        return [target.name for target in self.router.walk(self.router.plan(asking(name)))]

    def states(self) -> dict[str, float]:
        return {reading.target: reading.state for reading in self.health.readings()}


@pytest.fixture
def servers() -> Servers:
    return Servers()


@pytest.fixture
async def opened(servers, clock) -> AsyncIterator[Callable[..., Bench]]:
    benches: list[Bench] = []

    def made(*more: object, **models: str) -> Bench:
        benches.append(Bench(servers, clock, declared(*more, **models)))
        return benches[-1]

    yield made
    for bench in benches:
        await bench.lookout.close()


class TestAway:
    async def test_who_does_not_answer_twice_is_passed_over_and_comes_back_at_the_first_answer(self, opened, servers):
        bench = opened(m="a", n="b")
        await servers.say(page(), None)
        assert bench.states() == {"m": 1, "n": 1}
        await servers.say(None)
        assert bench.walked() == ["n"]
        assert bench.states() == {"m": 0, "n": 1}
        await servers.say(None, None, page())
        assert sorted(bench.walked()) == ["m", "n"]
        assert bench.states() == {"m": 1, "n": 1}

    async def test_twice_means_in_a_row(self, opened, servers):
        bench = opened(m="a")
        for _ in range(5):
            await servers.say(page(), None)
            assert bench.states() == {"m": 1}

    async def test_a_target_alone_says_how_long_until_the_next_look(self, opened, servers):
        bench = opened(m="a")
        await servers.say(None, None)
        with pytest.raises(TargetsResting) as caught:
            bench.walked("m")
        assert caught.value.retry_after_seconds == EVERY_SECONDS

    async def test_all_targets_of_a_server_go_and_come_together(self, opened, servers):
        bench = opened(m="a", adapter="a", other="twin", n="b")
        await servers.say(None, None)
        assert bench.states() == {"m": 0, "adapter": 0, "other": 0, "n": 1}

    async def test_an_answer_that_cannot_be_read_is_an_answer(self, opened, servers):
        bench = opened(m="a")
        await servers.say(None, None, b"\x00\xff nothing of ours")
        assert bench.states() == {"m": 1}
        assert next((reading.answers, reading.load) for reading in bench.lookout.readings()) == (True, None)

    async def test_a_target_that_moves_away_from_a_dead_server_is_asked_at_once(self, opened, servers):
        bench = opened(m="a")
        await servers.say(None, None)
        bench.known = declared(m="o")
        assert bench.walked("m") == ["m"]

    async def test_what_was_seen_of_a_server_outlives_a_new_catalogue(self, opened, servers):
        bench = opened(m="a")
        await servers.say(None, None)
        bench.known = declared(m="a", n="b")
        await servers.say(page(), page(), at=B)
        assert bench.states() == {"m": 0, "n": 1}

    async def test_nothing_is_known_once_nobody_looks(self, opened, servers):
        bench = opened(m="a")
        await servers.say(None, None)
        await bench.lookout.close()
        assert bench.walked("m") == ["m"]
        assert list(bench.lookout.readings()) == []

    async def test_coming_and_going_is_logged_once_each_by_the_providers_names_alone(self, opened, servers, caplog):
        opened(m="a")
        with caplog.at_level(logging.INFO, "penstock.load"):
            await servers.say(page(), None, None, None, page(), page())
        assert [record.getMessage() for record in caplog.records] == [
            "the server of a, twin does not answer and is passed over",
            "the server of a, twin answers again",
        ]

    @given(st.binary(max_size=200))
    def test_no_answer_makes_a_server_ill(self, said):
        async def looked() -> None:
            servers, known = Servers(), declared(m="a")
            lookout = Lookout(lambda: known, servers.fetch, dice=random.Random(1), every_seconds=0)
            lookout.start(lambda _: 0)
            await servers.say(said, said, said)
            assert not lookout.of(known.targets["m"]).is_away
            await lookout.close()

        asyncio.run(looked())


class TestLooks:
    async def test_other_dialects_and_what_is_beyond_a_proxy_is_not_looked_at(self, opened, servers):
        opened(m="a", o="o", p="beyond")
        await servers.say(page(), page())
        assert set(servers.began) == {A, B}

    async def test_one_address_is_looked_at_once_at_a_time_however_many_are_declared_on_it(self, opened, servers):
        opened(m="a", adapter="a", other="twin")
        await servers.say(page(), page(), page())
        assert servers.at_most == 1

    async def test_a_server_that_hangs_keeps_nobody_from_the_others(self, opened, servers):
        bench = opened(m="a", n="b")
        await servers.say(page(), None, None, at=B)
        assert servers.began[A] == 1
        assert bench.states() == {"m": 1, "n": 0}

    async def test_a_server_that_leaves_and_returns_is_still_looked_at_once_at_a_time(self, opened, servers):
        bench = opened(m="a")
        before = bench.known
        await servers.say(page(), at=B)
        bench.known = Catalogue.of([document("provider", "b", dialect="vllm", base_url=B)])
        await servers.say(page(), page(), at=B)
        bench.known = before
        await servers.say(page(), page(), at=B)
        await servers.say(page(), page(), at=A)
        assert servers.at_most == 1


class TestLeastOutstanding:
    async def test_goes_where_the_server_reports_less(self, opened, servers):
        bench = opened(m="a", n="b")
        await servers.say(page(5, 2))
        await servers.say(page(1, 0), at=B)
        assert [bench.health.outstanding(bench.target(name)) for name in "mn"] == [7, 1]
        assert bench.walked() == ["n", "m"]

    async def test_our_own_calls_are_not_counted_twice(self, opened, servers):
        bench = opened(m="a", adapter="a")
        with bench.health.call(bench.target("m")), bench.health.call(bench.target("adapter")):
            await servers.say(page(5, 0))
            assert bench.health.outstanding(bench.target("m")) == 5
            with bench.health.call(bench.target("m")):
                assert bench.health.outstanding(bench.target("m")) == 6
        assert bench.health.outstanding(bench.target("m")) == 3

    async def test_calls_that_have_not_arrived_there_still_count(self, opened, servers):
        bench = opened(m="a")
        with bench.health.call(bench.target("m")), bench.health.call(bench.target("m")):
            await servers.say(page(0, 0))
            assert bench.health.outstanding(bench.target("m")) == 2

    async def test_all_targets_of_a_server_share_its_load(self, opened, servers):
        bench = opened(m="a", adapter="twin", n="b")
        await servers.say(page())
        with bench.health.call(bench.target("m")):
            assert bench.health.outstanding(bench.target("adapter")) == 1
            assert bench.health.outstanding(bench.target("n")) == 0

    async def test_a_load_that_is_not_known_leaves_our_own(self, opened, servers):
        bench = opened(m="a")
        await servers.say(page(50, 0), b"")
        assert bench.health.outstanding(bench.target("m")) == 0

    async def test_a_server_that_misses_one_look_is_as_busy_as_it_was(self, opened, servers):
        bench = opened(m="a")
        await servers.say(page(50, 0), None)
        assert bench.health.outstanding(bench.target("m")) == 50

    async def test_what_is_shown_as_open_in_this_process_stays_that(self, opened, servers):
        bench = opened(m="a")
        await servers.say(page(50, 0))
        assert [reading.outstanding for reading in bench.health.readings()] == [0]
        assert [(reading.provider, reading.load) for reading in bench.lookout.readings()][:2] == [
            ("a", Load(50, 0, 0.25)),
            ("twin", Load(50, 0, 0.25)),
        ]


def test_what_the_guide_declares_is_a_catalogue_whose_servers_are_looked_at():
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", GUIDE.read_text(), re.DOTALL)]
    known = Catalogue.of(
        document(kind, each.pop("name"), **each)
        for block in blocks
        for kind in ("provider", "model", "alias")
        for each in block.get(f"{kind}s", block.get(f"{kind}es", []))
    )
    assert {provider.dialect for provider in known.providers.values()} == {"vllm"}
    assert [target.name for target in known.reachable("idlest")] == ["llama", "llama-2"]
