"""The translator as serve's child: started once when it is needed, watched, started anew, and gone with its parent."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from gateway.translator import PROGRAM, TranslatorBeside, TranslatorChild
from kernel import SystemClock
from router import UpstreamUnreachable
from tests.conftest import StillClock
from tests.fakes.translators import translator_python

# Announces itself as the translator does, keeps count of its lives, and shows what it was given.
FAKE = """
import argparse, json, os, pathlib, sys, time
given = argparse.ArgumentParser()
given.add_argument("--ready", type=pathlib.Path)
given.add_argument("--with-parent", action="store_true")
given = given.parse_args()
folder = pathlib.Path(__file__).parent
lives = folder / "lives"
lives.write_text((lives.read_text() if lives.exists() else "") + json.dumps([os.getpid(), dict(os.environ)]) + "\\n")
{body}
draft = given.ready.with_suffix(".draft")
draft.write_text(json.dumps({{"port": 4711, "pid": os.getpid()}}))
draft.replace(given.ready)
sys.stdin.read()
"""


@pytest.fixture
async def make(tmp_path: Path, clock: StillClock) -> AsyncIterator[Callable[..., TranslatorChild]]:
    made: list[TranslatorChild] = []

    def making(body: str = "", **how: float) -> TranslatorChild:
        program = tmp_path / "fake.py"
        program.write_text(FAKE.format(body=body))
        made.append(TranslatorChild(Path(sys.executable), clock=clock, program=program, **how))
        return made[-1]

    yield making
    for child in made:
        await child.close()


def lives(tmp_path: Path) -> list[str]:
    path = tmp_path / "lives"
    return path.read_text().splitlines() if path.exists() else []


async def gone(pid: int | None) -> None:
    async with asyncio.timeout(5):
        while Path(f"/proc/{pid}").exists():
            await asyncio.sleep(0.02)


async def until_noticed(child: TranslatorChild) -> None:
    async with asyncio.timeout(5):
        while child.pid is not None:
            await asyncio.sleep(0.02)


async def test_it_is_started_when_it_is_first_needed_and_once_for_all(make, tmp_path) -> None:
    child = make()
    assert lives(tmp_path) == []
    first, *others = await asyncio.gather(*[child.address() for _ in range(20)])
    assert (first.url, set(others)) == ("http://127.0.0.1:4711/v1", {first})
    assert len(lives(tmp_path)) == 1
    assert await child.address() is first


async def test_it_is_given_its_token_and_nothing_else(make, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "not for it")
    child = make()
    address = await child.address()
    (life,) = lives(tmp_path)
    assert address.token in life
    assert len(address.token) >= 32
    assert "not for it" not in life
    assert address.token.encode() not in Path(f"/proc/{child.pid}/cmdline").read_bytes()


async def test_whoever_leaves_does_not_end_what_others_wait_for(make, tmp_path) -> None:
    child = make("time.sleep(0.3)")
    impatient, patient = asyncio.create_task(child.address()), asyncio.create_task(child.address())
    await asyncio.sleep(0.05)
    impatient.cancel()
    assert (await patient).url
    assert len(lives(tmp_path)) == 1


async def test_one_that_died_is_started_anew_when_it_is_needed(make, tmp_path) -> None:
    child = make()
    before = await child.address()
    os.kill(child.pid, 9)
    await until_noticed(child)
    after = await child.address()
    assert after.token != before.token
    assert len(lives(tmp_path)) == 2


async def test_one_that_goes_on_dying_is_left_alone_for_longer_and_longer(make, tmp_path, clock) -> None:
    child = make("sys.exit(3)")
    with pytest.raises(UpstreamUnreachable, match=r"status 3.*make translator"):
        await child.address()
    pauses = []
    for _ in range(8):
        with pytest.raises(UpstreamUnreachable, match="status 3"):
            await child.address()
        with pytest.raises(UpstreamUnreachable) as refused:
            await child.address()
        pauses.append(refused.value.retry_after_seconds)
        clock.advance(pauses[-1])
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30]
    assert len(lives(tmp_path)) == 9


async def test_one_that_lived_long_starts_without_a_pause(make, clock) -> None:
    child = make()
    for _ in range(3):
        await child.address()
        clock.advance(61)
        os.kill(child.pid, 9)
        await until_noticed(child)
    assert (await child.address()).url


async def test_one_that_is_never_ready_is_ended_and_the_message_names_the_cure(make, tmp_path) -> None:
    with pytest.raises(UpstreamUnreachable, match=r"not ready within 0\.5 s.*make translator"):
        await make("time.sleep(60)", start_seconds=0.5).address()
    (life,) = lives(tmp_path)
    await gone(int(life.split(",")[0][1:]))


async def test_without_its_environment_the_message_names_the_cure(tmp_path, clock) -> None:
    child = TranslatorChild(tmp_path / "nowhere" / "python", clock=clock)
    with pytest.raises(UpstreamUnreachable, match="make translator"):
        await child.address()
    await child.close()


async def test_closing_ends_it(make) -> None:
    child = make()
    await child.address()
    pid = child.pid
    await child.close()
    await gone(pid)
    with pytest.raises(UpstreamUnreachable):
        await child.address()


async def test_closing_during_the_start_ends_it_too(make, tmp_path) -> None:
    child = make("time.sleep(60)")
    start = asyncio.create_task(child.address())
    async with asyncio.timeout(5):
        while not lives(tmp_path):
            await asyncio.sleep(0.02)
    await child.close()
    await asyncio.gather(start, return_exceptions=True)
    await gone(int(lives(tmp_path)[0].split(",")[0][1:]))


async def test_one_that_ignores_the_signal_is_killed(make) -> None:
    child = make("import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)")
    await child.address()
    pid = child.pid
    await child.close()
    await gone(pid)


async def test_one_that_is_deployed_beside_is_where_it_was_said() -> None:
    beside = TranslatorBeside("https://translator.internal:8090/", "token")
    address = await beside.address()
    assert (address.url, address.token) == ("https://translator.internal:8090/v1", "token")
    await beside.close()


async def test_the_real_one_is_started_and_ends_with_a_parent_that_is_killed(tmp_path) -> None:
    child = TranslatorChild(await asyncio.to_thread(translator_python), clock=SystemClock())
    assert (await child.address()).url.startswith("http://127.0.0.1:")
    pid = child.pid
    await child.close()
    await gone(pid)
    parent = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "import asyncio, pathlib, sys; from gateway.translator import TranslatorChild; from kernel import SystemClock\n"
        "async def main():\n"
        f"    child = TranslatorChild(pathlib.Path({str(translator_python())!r}), clock=SystemClock())\n"
        "    await child.address(); print(child.pid, flush=True); await asyncio.sleep(60)\n"
        "asyncio.run(main())",
        stdout=asyncio.subprocess.PIPE,
        cwd=PROGRAM.parents[1],
    )
    assert parent.stdout is not None
    orphan = int(await asyncio.wait_for(parent.stdout.readline(), 60))
    parent.kill()
    await parent.wait()
    await gone(orphan)
