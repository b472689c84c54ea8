"""Observability, proven with Debian's Prometheus and a collector that reads OTLP as the standard says."""

import asyncio
import contextlib
import gzip
import json
import shutil
import signal
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import yaml
from aiohttp import ClientError, web

from tests.prove.books import open_holds
from tests.prove.company import chat
from tests.prove.proofs import Bench, NotRun, Outcome, proof
from tests.prove.server import Gateway, Process, free_port

_TOKEN = "metrics-token"
_TRACE, _PARENT = f"{0xABCDEF:032x}", f"{0x123456:016x}"
_DATA_SECONDS = 90.0
HELLO = [{"role": "user", "content": "How deep is the river?"}]
_BUDGET = "budgets: [{name: demo-month, scope: department, of: demo, period: month, limit_usd: '100'}]"


class Collector:
    """Takes traces by OTLP over HTTP and keeps their spans; told to hang, it takes them and never answers."""

    def __init__(self) -> None:
        self.port = free_port()
        self.spans: list[dict[str, Any]] = []
        self.headers: list[Mapping[str, str]] = []
        self.asked = 0
        self.hangs = False
        self._let_go = asyncio.Event()

    @property
    def url(self) -> str:
        """What a gateway is told."""
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_post("/v1/traces", self._take)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._let_go.set()
        await self._runner.cleanup()

    async def _take(self, request: web.Request) -> web.Response:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (  # noqa: PLC0415 - an extra
            ExportTraceServiceRequest,
        )

        self.asked += 1
        if self.hangs:
            await self._let_go.wait()
            return web.Response(status=503)
        body = await request.read()
        self.headers.append(dict(request.headers))
        with contextlib.suppress(gzip.BadGzipFile):  # aiohttp unpacks it, unless it was told not to
            body = gzip.decompress(body)
        told = ExportTraceServiceRequest.FromString(body)
        for resource in told.resource_spans:
            about = _attributes(resource.resource.attributes)
            self.spans += [_read(span) | {"resource": about} for scope in resource.scope_spans for span in scope.spans]
        return web.Response(content_type="application/x-protobuf")


def _read(span: Any) -> dict[str, Any]:
    return {
        "name": span.name,
        "trace": span.trace_id.hex(),
        "id": span.span_id.hex(),
        "parent": span.parent_span_id.hex(),
        "kind": span.kind,
        "seconds": (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
        "attributes": _attributes(span.attributes),
    }


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}


class Prometheus:
    """Debian's Prometheus with our configuration, looking at one gateway every second."""

    def __init__(self, workdir: Path, gateway: Gateway, root: Path) -> None:
        self._gateway = gateway
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        token = workdir / "token"
        token.write_text(_TOKEN)
        shipped = root / "deploy" / "prometheus"
        told = yaml.safe_load((shipped / "prometheus.yaml").read_text())
        told["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        told["rule_files"] = [str(shipped / "alerts.yaml")]
        told["scrape_configs"] = [_at(job, gateway.port, token) for job in told["scrape_configs"][:1]]
        config = workdir / "prometheus.yaml"
        config.write_text(yaml.safe_dump(told))
        arguments = [
            _binary("prometheus"),
            f"--config.file={config}",
            f"--storage.tsdb.path={workdir / 'prometheus'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        self._process = Process(arguments, workdir / "prometheus.log", root=root, environment={})

    async def __aenter__(self) -> Self:
        await self._process.start_until(self._serves, "prometheus")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._process.stop(signal.SIGTERM)

    async def ask(self, path: str, **query: str) -> Any:
        """The `data` of an answer of its API."""
        async with self._gateway.session.get(f"{self.url}/api/v1/{path}", params=query) as answer:
            return (await answer.json()).get("data")

    async def _serves(self) -> bool:
        with contextlib.suppress(ClientError):
            async with self._gateway.session.get(f"{self.url}/-/ready") as answer:
                return answer.status == 200
        return False


def _at(job: dict[str, Any], port: int, token: Path) -> dict[str, Any]:
    rest = {name: value for name, value in job.items() if name != "dns_sd_configs"}
    return rest | {
        "authorization": {"credentials_file": str(token)},
        "static_configs": [{"targets": [f"127.0.0.1:{port}"]}],
    }


def _binary(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise NotRun(f"no {name} on this machine: apt-get install prometheus")
    return found


async def _promtool(*arguments: str) -> None:
    process = await asyncio.create_subprocess_exec(
        _binary("promtool"), *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, f"promtool {' '.join(arguments[:2])}: {said.decode()[-300:]}"


@asynccontextmanager
async def _gateway(bench: Bench, collector: Collector) -> AsyncIterator[Gateway]:
    settings = {
        "PENSTOCK_METRICS_TOKEN": _TOKEN,
        "PENSTOCK_OTLP_ENDPOINT": collector.url,
        "PENSTOCK_OTLP_HEADERS": "x-collector-key=secret",
        "PENSTOCK_TRACE_SAMPLE_RATIO": "0",
    }
    async with Gateway(bench.workdir, root=bench.root, python=bench.python, environment=settings) as gateway:
        yield gateway


async def _ask(gateway: Gateway, *, sampled: bool = False, model: str = "sandbox-priced", stream: bool = False) -> int:
    headers = {"traceparent": f"00-{_TRACE}-{_PARENT}-01"} if sampled else {}
    answer = await chat(gateway, gateway.quickstart.app_key, HELLO, headers=headers, model=model, stream=stream)
    return answer.status


async def _traffic(gateway: Gateway) -> None:
    """Until cancelled: whole answers, streams, and names that nobody declared."""
    for number in range(10**9):
        await _ask(gateway, stream=bool(number % 2), model="sandbox-priced" if number % 5 else "nobody-declared-this")
        await asyncio.sleep(0.02)


async def _without_data(prometheus: Prometheus, expressions: list[str]) -> set[str]:
    """The expressions that return nothing, though they were given time."""
    missing, until = set(expressions), time.monotonic() + _DATA_SECONDS
    while missing and time.monotonic() < until:
        await asyncio.sleep(1)
        for expression in sorted(missing):
            told = await prometheus.ask("query", query=expression.replace("$__rate_interval", "10s"))
            if told and told["result"] and any(each["value"][1] != "NaN" for each in told["result"]):
                missing.discard(expression)
    return missing


@proof(
    "wide.observe",
    what="Debian's Prometheus scrapes a real process as we configure it; a collector reads one turn by OTLP, and hangs",
    must="rules and their tests pass; every query of the dashboard has data; spans with the right parents; "
    "a collector that hangs costs no turn and no stop",
)
async def observe(bench: Bench) -> Outcome:
    """Everything that an operator sees, by the eyes of the tools that look at it."""
    shipped = bench.root / "deploy"
    await _promtool("check", "config", "--syntax-only", str(shipped / "prometheus/prometheus.yaml"))
    await _promtool("check", "rules", str(shipped / "prometheus/alerts.yaml"))
    await _promtool("test", "rules", str(shipped / "prometheus/alerts.test.yaml"))
    panels = json.loads((shipped / "grafana/dashboards/penstock.json").read_text())["panels"]
    expressions = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    try:
        import opentelemetry.sdk  # noqa: F401, PLC0415
    except ImportError as missing:
        raise NotRun("the extra `telemetry` is not installed") from missing

    async with Collector() as collector, _gateway(bench, collector) as gateway:
        await gateway.apply(_BUDGET)
        async with Prometheus(bench.workdir, gateway, bench.root) as prometheus:
            traffic = asyncio.create_task(_traffic(gateway))
            missing = await _without_data(prometheus, expressions)
            traffic.cancel()
            scraped = await prometheus.ask("query", query='up{job="penstock"}')
            firing = [alert["labels"]["alertname"] for alert in (await prometheus.ask("alerts"))["alerts"]]
        bench.figure("queries", len(expressions))
        bench.figure("without data", len(missing))
        for expression in missing:
            bench.note(f"no data: {expression}")
        bench.figure("alerts firing", ",".join(sorted(set(firing))) or "none")
        spans = await _one_turn(collector, gateway)
        fit = _fits(spans)
        bench.figure("spans of one turn", len(spans))
        refused, seconds, status = await _hung(collector, gateway)
        bench.figure("turns refused beside a hung collector", refused)
        bench.figure("stop beside it, s", seconds)
    logged = f'"trace":"{_TRACE}"' in gateway.logs
    up = bool(scraped and scraped["result"] and scraped["result"][0]["value"][1] == "1")
    met = up and not missing and fit and logged and refused == 0 and status == 0 and seconds < 6
    return Outcome(met)


async def _one_turn(collector: Collector, gateway: Gateway) -> list[dict[str, Any]]:
    assert collector.spans == [], "nobody asked for a trace until now"
    await _ask(gateway, sampled=True, stream=True)
    async with asyncio.timeout(5):
        while not collector.spans:
            await asyncio.sleep(0.05)
    assert collector.headers[0]["x-collector-key"] == "secret"
    return collector.spans.copy()


def _fits(spans: list[dict[str, Any]]) -> bool:
    """Whether these are one turn as the guide draws it."""
    turn, identify, admit, hold, do, attempt, settle = spans
    told = attempt["attributes"]
    return (
        [span["name"] for span in spans]
        == ["chat sandbox-priced", "identify", "admit", "hold", "do", "chat sandbox-priced", "settle"]
        and {span["trace"] for span in spans} == {_TRACE}
        and turn["parent"] == _PARENT
        and {span["parent"] for span in (identify, admit, hold, do, settle)} == {turn["id"]}
        and attempt["parent"] == do["id"]
        and (turn["kind"], attempt["kind"]) == (2, 3)
        and told["gen_ai.operation.name"] == "chat"
        and told["gen_ai.request.model"] == "sandbox-priced"
        and told["gen_ai.usage.output_tokens"] > 0
        and told["gen_ai.request.stream"] is True
        and told["penstock.cost_nano_usd"] == turn["attributes"]["penstock.cost_nano_usd"] > 0
        and turn["resource"]["service.name"] == "penstock"
        and all(span["seconds"] >= 0 for span in spans)
        and HELLO[0]["content"] not in str(spans)
    )


async def _hung(collector: Collector, gateway: Gateway) -> tuple[int, float, int]:
    """Turns that were not answered while every one is traced to a collector that hangs; how long a stop takes."""
    collector.hangs, before = True, collector.asked
    statuses = [await _ask(gateway, sampled=True) for _ in range(200)]
    async with asyncio.timeout(5):
        while collector.asked == before:
            await asyncio.sleep(0.05)
    began = time.monotonic()
    status = await gateway.terminate()
    seconds = time.monotonic() - began
    assert open_holds(gateway.data_dir) == 0
    return sum(status != 200 for status in statuses), seconds, status
