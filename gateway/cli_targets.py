"""`penstock models`: what is declared of models, from the store, and trials of them, by the gateway that runs.

How a command reaches the store and shows rows is handed in by cli.py, which mounts these.
"""

from collections.abc import Awaitable, Callable, Mapping
from decimal import Decimal
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Annotated, Any, Protocol
from urllib.parse import quote, urlsplit

import msgspec
import typer

from gateway.settings import Settings
from gateway.wiring import Platform
from kernel import Clock, Component, PlatformError, SystemClock, Target

Rows = list[dict[str, Any]]
Run = Callable[[Callable[[Platform], Awaitable[Rows]]], Rows]
Ask = Callable[[str, str, str], dict[str, Any]]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

_PICO_PER_USD_PER_MILLION = 1_000_000
_ANSWER_SECONDS = 660.0  # longer than any provider is given by default
_ANSWER_BYTES_MAX = 1024 * 1024
_IN_NAMES = "/:@"
_SHOWN = ("model", "state", "milliseconds", "tokens", "cost_usd", "provider_request_id", "request_id")


class GatewayRefused(PlatformError):
    """The gateway that was asked did not do it, or there is none; the message says which and what to do."""


class Show(Protocol):
    """Prints rows, as a table or as JSON."""

    def __call__(self, rows: Rows, *, as_json: bool) -> None:
        """Print them."""
        ...


def commands(run: Run, show: Show, ask: Ask | None = None) -> typer.Typer:
    """The commands under `models`. run: does work on the platform of this folder. ask: asks the gateway that runs."""
    app = typer.Typer(no_args_is_help=True, help="List models, and test them against the gateway that runs.")

    @app.command("list")
    def list_(*, as_json: Json = False) -> None:
        """List models: provider, base, lifecycle, the price in force, contexts. Example: penstock models list."""

        async def work(platform: Platform) -> Rows:
            return list_of(platform, SystemClock())

        show(run(work), as_json=as_json)

    @app.command("test")
    def test(
        name: Annotated[str, typer.Argument(help="A model, not an alias.")],
        *,
        url: Annotated[str, typer.Option(help="Where the gateway answers.")] = "http://127.0.0.1:8080",
        key: Annotated[
            str | None,
            typer.Option(envvar="PENSTOCK_KEY", help="A platform administrator's key; default: quickstart.json's."),
        ] = None,
        as_json: Json = False,
    ) -> None:
        """Have the gateway call a model once, with 16 tokens at most. Example: penstock models test gpt-4o-mini."""
        report = (ask or ask_gateway)(url, key or _own_key(), f"/api/models/{quote(name, safe=_IN_NAMES)}/test")
        failure = report["error"]
        if as_json:
            show([report], as_json=True)
        else:
            show([{column: report[column] for column in _SHOWN}], as_json=False)
        if failure is not None:
            told = " ".join(filter(None, (f"{failure['code']}: {failure['message']}", failure["cure"])))
            typer.echo(f"penstock: {told}", err=True)
            raise typer.Exit(1)

    return app


def list_of(platform: Platform, clock: Clock) -> Rows:
    """A row per declared model, by name; prices in US dollars per million tokens."""
    view, now = platform.snapshot.view, clock.now()
    catalogue = view.catalogue

    def row(target: Target) -> dict[str, Any]:
        life, price = catalogue.lifecycles.get(target.name), view.book.price(target.name, now)
        rates = price.pico_usd_per_token if price else {}
        return {
            "model": target.name,
            "provider": target.provider,
            "upstream_model": target.upstream_model,
            "base": catalogue.bases.get(target.name),
            "lifecycle": life.stage_on(now.date()) if life else "active",
            "retires_on": life.retires_on.isoformat() if life and life.retires_on else None,
            "successor": life.successor if life else None,
            "price": price.id if price else None,
            "input_usd": _usd_per_million(rates, Component.INPUT),
            "output_usd": _usd_per_million(rates, Component.OUTPUT),
            "context_tokens": target.context_tokens,
            "output_tokens_max": target.output_tokens_max,
        }

    return [row(catalogue.targets[name]) for name in sorted(catalogue.targets)]


def _usd_per_million(rates: Mapping[Component, int], part: Component) -> str | None:
    return f"{(Decimal(rates[part]) / _PICO_PER_USD_PER_MILLION).normalize():f}" if part in rates else None


def ask_gateway(url: str, key: str, path: str) -> dict[str, Any]:
    """POST to the gateway with nothing in the body, and the JSON object of its answer. Raises GatewayRefused.

    No redirect is followed and no proxy of the environment is used: the key goes to the address that is given.
    """
    if not (key.isascii() and key.isprintable()):
        raise GatewayRefused("The key is not one that a gateway made; check --key or PENSTOCK_KEY.")
    try:
        parts = urlsplit(url)
        connects = {"http": HTTPConnection, "https": HTTPSConnection}[parts.scheme if parts.hostname else ""]
        connection = connects(parts.hostname or "", parts.port, timeout=_ANSWER_SECONDS)
    except (KeyError, ValueError):
        raise GatewayRefused("--url is http://HOST:PORT or https://HOST:PORT, as the gateway is reached.") from None
    try:
        headers = {"Authorization": f"Bearer {key}", "Accept": "application/json"}
        connection.request("POST", parts.path.rstrip("/") + path, headers=headers)
        answer = connection.getresponse()
        status, body = answer.status, answer.read(_ANSWER_BYTES_MAX)
        told = msgspec.json.decode(body, type=dict[str, Any])
    except (OSError, HTTPException, msgspec.MsgspecError) as lost:
        raise GatewayRefused(
            f"No gateway answers at {url} ({type(lost).__name__}); start one with penstock serve, or say with --url "
            "where it is."
        ) from lost
    finally:
        connection.close()
    if status != HTTPStatus.OK:
        error = told.get("error") or {}
        raise GatewayRefused(f"{status} {error.get('code')}: {error.get('message')}")
    return told


def _own_key() -> str:
    path: Path = Settings().data_dir / "quickstart.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, str])["admin_key"]
    except (OSError, KeyError, msgspec.MsgspecError):
        raise GatewayRefused(
            f"There is no key in {path}; give a platform administrator's with --key or PENSTOCK_KEY "
            "(penstock keys create operator --role platform_admin)."
        ) from None
