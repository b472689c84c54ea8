"""`penstock translator` and `penstock prices import`: what litellm is good for, from the command line.

How a command reaches the store and shows rows is handed in by cli.py, which mounts these. Litellm itself is never
imported: it runs in its own environment, and its map of prices is asked for or read from a file.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping
from decimal import Decimal
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Annotated, Any, Protocol
from urllib.parse import urlsplit

import msgspec
import typer

from cost import Found, LeftOut, Wanted, read_prices
from gateway.translator import PROGRAM, not_started
from gateway.wiring import Platform
from governance import Change, Declaration, render
from kernel import Clock, PlatformError, SystemClock, Target
from router import Provider

Rows = list[dict[str, Any]]
Read = list[Found | LeftOut]
Run = Callable[[Callable[[Platform], Awaitable[Any]]], Any]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

_MAP_BYTES_MAX = 64 * 1024 * 1024
_MAP_SECONDS = 30.0
_OPENAI_HOSTS = frozenset({"api.openai.com", "eu.api.openai.com", "us.api.openai.com"})


class NoPrices(PlatformError):
    """There is no map of prices to read from; the message says where it was looked for."""


class ShowChanges(Protocol):
    """Prints what applying would change, or has changed."""

    def __call__(self, changes: list[Change], *, as_json: bool) -> None:
        """Print them."""
        ...


def translator(
    *,
    host: Annotated[str, typer.Option(help="Where to listen; beyond this machine, put TLS in front.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen on.", min=0, max=65535)] = 8090,
    token: Annotated[
        str,
        typer.Option(
            envvar="PENSTOCK_TRANSLATOR_TOKEN",
            help="What callers must show; by the variable, as arguments can be seen.",
        ),
    ],
    python: Annotated[
        Path, typer.Option(envvar="PENSTOCK_TRANSLATOR_PYTHON", help="The interpreter made by make translator.")
    ] = Path(".venv-translator/bin/python"),
) -> None:
    """Run the translator in the foreground, for deployment beside. Example: penstock translator --port 8090."""
    if not python.exists():
        raise not_started(f"has no interpreter at {python}")
    arguments = [str(python), "-I", str(PROGRAM), "--host", host, "--port", str(port)]
    os.execve(python, arguments, {"PENSTOCK_TRANSLATOR_TOKEN": token})  # noqa: S606 - a program of ours, no shell


def prices(
    run: Run, show_changes: ShowChanges, *, author: Callable[[], str], clock: Clock | None = None
) -> typer.Typer:
    """The commands under `prices`. run: does work on the platform of this folder. author: who changes things."""
    app = typer.Typer(no_args_is_help=True, help="Take over prices from litellm's map.")
    present = clock or SystemClock()

    @app.command("import")
    def import_(
        names: Annotated[list[str] | None, typer.Argument(help="Models; default: all that have no price.")] = None,
        *,
        known_as: Annotated[
            list[str] | None, typer.Option("--as", metavar="MODEL=NAME", help="What the map calls a model.")
        ] = None,
        file: Annotated[
            Path | None, typer.Option("--file", "-f", help="Litellm's map; default: the translator's.", exists=True)
        ] = None,
        apply: Annotated[bool, typer.Option("--apply", help="Declare them, instead of printing a file.")] = False,
        as_json: Json = False,
    ) -> None:
        """Print prices as a file that apply takes. Example: penstock prices import > prices.yaml."""
        aliases = dict(_pair(each) for each in known_as or ())

        async def work(platform: Platform) -> tuple[Read, list[Change]]:
            wanted = wanted_of(platform, present, names or (), aliases)
            listed, source = await _map_of(platform, file)
            read = read_prices(listed, wanted, source=source)
            if not apply:
                return read, []
            documents = platform.register.parse(as_file(read))
            return read, await platform.register.apply(documents, by=author(), prune=False)

        read, changes = run(work)
        for line in remarks_of(read):
            typer.echo(line, err=True)
        if apply:
            show_changes(changes, as_json=as_json)
        elif as_json:
            typer.echo(msgspec.json.format(msgspec.json.encode([each.body for each in _found(read)])).decode())
        else:
            typer.echo(as_file(read), nl=False)

    return app


def wanted_of(platform: Platform, clock: Clock, names: Iterable[str], known_as: Mapping[str, str]) -> list[Wanted]:
    """The declared models of these names, or all that have no price in force; known_as: what the map calls them."""
    view, now = platform.snapshot.view, clock.now()
    targets = view.catalogue.targets
    chosen = [*names, *known_as] or [name for name in sorted(targets) if view.book.price(name, now) is None]
    unknown = [name for name in chosen if name not in targets]
    if unknown:
        raise NoPrices(f"{', '.join(unknown)}: declare a model of that name first.")
    found = [(targets[name], view.catalogue.provider(targets[name].provider)) for name in dict.fromkeys(chosen)]
    return [_wanted(target, provider, known_as.get(target.name)) for target, provider in found]


def _wanted(target: Target, provider: Provider, known_as: str | None) -> Wanted:
    name, word = target.upstream_model, provider.translate_as or provider.dialect
    if known_as is not None:
        return Wanted(target.name, (known_as,), context_tokens=target.context_tokens)
    if provider.dialect == "openai" and urlsplit(provider.base_url or "").hostname not in _OPENAI_HOSTS:
        return Wanted(target.name, ())  # whoever speaks OpenAI's wire may ask any price: say with --as whose it is
    if provider.dialect in {"sandbox", "vllm"}:
        return Wanted(target.name, ())
    return Wanted(target.name, (f"{word}/{name}", name), word, target.context_tokens)


def as_file(read: Read) -> str:
    """The prices that were found, as a file that `apply` takes."""
    return render(Declaration("price", each.model, each.body) for each in _found(read)) if _found(read) else ""


def remarks_of(read: Read) -> list[str]:
    """A line for each model that was left out, and for each that costs more than its price says."""
    return [
        f"{each.model} is left out: {each.reason}" if isinstance(each, LeftOut) else f"{each.model}: {remark}"
        for each in read
        for remark in (("",) if isinstance(each, LeftOut) else each.remarks)
    ]


def _found(read: Read) -> list[Found]:
    return [each for each in read if isinstance(each, Found)]


def _pair(text: str) -> tuple[str, str]:
    model, equals, name = text.partition("=")
    if not (model and equals and name):
        raise typer.BadParameter("--as takes MODEL=NAME, such as fast=groq/llama-3.3-70b-versatile")
    return model, name


async def _map_of(platform: Platform, file: Path | None) -> tuple[dict[str, Any], str]:
    """Litellm's map with its numbers as they are written, and a word for where it is from. Raises NoPrices."""
    if file is not None:
        raw, source = await asyncio.to_thread(file.read_bytes), f"litellm's map in {file.name}"
    else:
        try:
            raw, source = await _ask_translator(platform), "litellm's map"
        finally:
            await platform.translator.close()
    try:
        return msgspec.json.Decoder(dict[str, Any], float_hook=Decimal).decode(raw), source
    except msgspec.MsgspecError as wrong:
        raise NoPrices(f"{source} is no JSON object.") from wrong


async def _ask_translator(platform: Platform) -> bytes:
    address = await platform.translator.address()
    return await asyncio.to_thread(_fetch, address.url.removesuffix("/v1"), address.token)


def _fetch(url: str, token: str) -> bytes:
    parts = urlsplit(url)
    connects = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    connection = connects(parts.hostname or "", parts.port, timeout=_MAP_SECONDS)
    try:
        connection.request("GET", f"{parts.path}/prices", headers={"Authorization": f"Bearer {token}"})
        answer = connection.getresponse()
        body = answer.read(_MAP_BYTES_MAX)
    except (OSError, HTTPException) as lost:
        raise NoPrices(f"The translator does not answer ({type(lost).__name__}).") from lost
    finally:
        connection.close()
    if answer.status != HTTPStatus.OK:
        raise NoPrices(f"The translator answers with status {answer.status}; check PENSTOCK_TRANSLATOR_TOKEN.")
    return body
