"""The `penstock` command: a thin reader of arguments over the same objects that serve. It decides nothing.

Commands work on the store named by the settings; a serving process takes their changes in within two seconds.
"""

import asyncio
import getpass
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, TypeVar

import msgspec
import typer
import yaml
from pydantic import ValidationError
from rich.console import Console
from sqlalchemy.exc import SQLAlchemyError

from cost import BudgetState, InvalidReport, ReconcileReport, read_csv, read_jsonl
from gateway import cli_models, cli_targets
from gateway.cli_show import change_rows, rendered
from gateway.doctor import diagnose
from gateway.ownership import AlreadyServed
from gateway.schema import NotDurable, SchemaBusy, SchemaNewer, migrate
from gateway.secrets import SecretsUnusable
from gateway.serve import serve as run_server
from gateway.settings import Settings
from gateway.telemetry import TelemetryUnusable
from gateway.wiring import Platform, build
from governance import Allowance, Change, NewKey, render
from kernel import Hints, ModelRequest, Plan, PlatformError, Role, format_usd
from router import prompt_bytes

Result = TypeVar("Result")
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
File = Annotated[
    Path, typer.Option("--file", "-f", help="YAML or JSON file of declarations.", exists=True, dir_okay=False)
]

Prune = Annotated[bool, typer.Option("--prune", help="Also withdraw what the file does not name.")]

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)
keys_app = typer.Typer(no_args_is_help=True, help="Make, list and revoke keys.")
audit_app = typer.Typer(no_args_is_help=True, help="Verify the audit trail.")
app.add_typer(keys_app, name="keys")
app.add_typer(audit_app, name="audit")
aliases_app = typer.Typer(no_args_is_help=True, help="Explain what a name stands for.")
app.add_typer(aliases_app, name="aliases")

_out = Console(soft_wrap=True)
_err = Console(stderr=True, soft_wrap=True)


def main() -> None:
    """Run the command; a failure is one line that names the cure, and exit status 1."""
    try:
        app()
    except (
        PlatformError,
        SecretsUnusable,
        TelemetryUnusable,
        AlreadyServed,
        SchemaNewer,
        SchemaBusy,
        NotDurable,
    ) as refused:
        _err.print(f"penstock: {refused}", markup=False)
        raise SystemExit(1) from None
    except (OSError, UnicodeError, OverflowError) as unusable:
        _err.print(f"penstock: {type(unusable).__name__}: {unusable}", markup=False)
        raise SystemExit(1) from None
    except SQLAlchemyError as lost:  # its text may quote the URL, which holds a password
        _err.print(
            f"penstock: the store cannot be used ({type(lost).__name__}); penstock doctor says more", markup=False
        )
        raise SystemExit(1) from None
    except yaml.YAMLError as wrong:
        _err.print(f"penstock: penstock.yaml is not valid YAML: {wrong}", markup=False)
        raise SystemExit(1) from None
    except ValidationError as wrong:
        for problem in wrong.errors():
            name = ".".join(str(part) for part in problem["loc"])
            _err.print(f"penstock: setting {name}: {problem['msg']}", markup=False)
        raise SystemExit(1) from None


@app.command()
def serve() -> None:
    """Serve the gateway. Example: PENSTOCK_PORT=9000 penstock serve."""
    run_server(Settings())


@app.command("migrate")
def migrate_() -> None:
    """Bring the store's schema to this release. Example: penstock migrate."""
    _run(lambda platform: migrate(platform.engine), migrated=False)
    _out.print("the schema is current")


@app.command()
def plan(file: File, *, prune: Prune = False, as_json: Json = False) -> None:
    """Show what applying a file would change. Example: penstock plan -f company.yaml."""
    changes = _run(lambda platform: platform.register.plan(platform.register.parse(file.read_text()), prune=prune))
    _show_changes(changes, as_json=as_json)


@app.command("apply")
def apply_(file: File, *, prune: Prune = False, as_json: Json = False) -> None:
    """Declare what a file says. Example: penstock apply -f company.yaml."""

    async def work(platform: Platform) -> list[Change]:
        wanted = platform.register.parse(file.read_text())
        return await platform.register.apply(wanted, by=_author(), prune=prune)

    changes = _run(work)
    _show_changes(changes, as_json=as_json)


@app.command()
def export() -> None:
    """Print everything declared as a file that `apply` takes. Example: penstock export > all.yaml."""
    _out.print(_run(_export), markup=False, highlight=False, end="")


@keys_app.command("create")
def keys_create(
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    *,
    for_app: Annotated[str | None, typer.Option("--app", help="The app that will use it.")] = None,
    user: Annotated[str | None, typer.Option(help="The person who will use it.")] = None,
    role: Annotated[list[Role] | None, typer.Option(help="Roles of an operator's key.")] = None,
    days: Annotated[int | None, typer.Option(help="Days until it expires.", min=1, max=36_500)] = None,
    requests_per_minute: Annotated[int | None, typer.Option(min=1, help="The key's own limit.")] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(min=1, help="The key's own limit.")] = None,
    concurrent: Annotated[int | None, typer.Option(min=1, help="Calls at a time.")] = None,
    as_json: Json = False,
) -> None:
    """Make a key; it is shown once. Example: penstock keys create billing-bot --app billing."""
    own = Allowance(requests_per_minute, tokens_per_minute, concurrent)
    expires = datetime.now(UTC) + timedelta(days=days) if days else None
    new = NewKey(name=name, app=for_app, user=user, roles=frozenset(role or ()), limits=own, expires_at=expires)
    made = _run(lambda platform: platform.keys.create(new, by=_author()))
    _show([{"id": made.id, "key": made.key}], as_json=as_json)


@keys_app.command("list")
def keys_list(*, as_json: Json = False) -> None:
    """List keys, without the keys themselves. Example: penstock keys list --json."""
    _show([msgspec.to_builtins(key) for key in _run(lambda platform: platform.keys.listing())], as_json=as_json)


@keys_app.command("revoke")
def keys_revoke(key_id: str) -> None:
    """Revoke a key on every replica within two seconds. Example: penstock keys revoke key_01..."""
    _run(lambda platform: platform.keys.revoke(key_id, by=_author()))
    _out.print(f"{key_id} is revoked", markup=False)


@app.command()
def credential(
    name: Annotated[str, typer.Argument(help="The name that providers refer to.")],
    *,
    from_file: Annotated[
        Path | None, typer.Option("--from-file", help="Read the secret from a file.", exists=True, dir_okay=False)
    ] = None,
) -> None:
    """Seal a provider's key; asks for it unless a file is given. Example: penstock credential openai."""
    secret = from_file.read_text().strip() if from_file else getpass.getpass(f"secret for {name}: ")
    _run(lambda platform: platform.credentials.put(name, secret, by=_author()))
    _out.print(f"{name} is sealed", markup=False)


@app.command()
def budgets(*, as_json: Json = False) -> None:
    """Show each budget: limit, posted, held, remaining. Example: penstock budgets."""
    states = _run(lambda platform: platform.spend.budget_states())
    _show([_budget_row(state) for state in states], as_json=as_json)


@app.command()
def spend(
    *,
    by: Annotated[
        str, typer.Option(help="Comma-separated: department, app, key, user, model, day, month.")
    ] = "department",
    since: Annotated[datetime | None, typer.Option(help="From this UTC day on; default: this month.")] = None,
    until: Annotated[datetime | None, typer.Option(help="Before this UTC day; default: now.")] = None,
    as_json: Json = False,
) -> None:
    """Show what was spent. Example: penstock spend --by app,model --since 2026-11-01."""
    first, last = _window(since, until)
    rows = _run(lambda platform: platform.spend.report(by.split(","), since=first, until=last))
    _show([dict(row.group) | {k: v for k, v in _plain(row).items() if k != "group"} for row in rows], as_json=as_json)


@app.command()
def reconcile(
    file: Annotated[Path, typer.Option("--file", "-f", help="The provider's invoice, JSONL or CSV.", exists=True)],
    *,
    since: Annotated[datetime | None, typer.Option(help="From this UTC day on; default: this month.")] = None,
    until: Annotated[datetime | None, typer.Option(help="Before this UTC day; default: now.")] = None,
    provider: Annotated[str | None, typer.Option(help="Whose invoice it is; default: whoever its lines name.")] = None,
    complete: Annotated[
        bool, typer.Option(help="The file holds every line of that provider and time; takes --provider and --until.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Correct the books to a provider's invoice. Example: penstock reconcile -f invoice.jsonl --provider openai."""
    if complete and (provider is None or until is None):
        missing = "--provider" if provider is None else "--until"
        raise InvalidReport(f"--complete withdraws what the invoice does not list: say with {missing} what it covers.")
    since_at, until_at = _window(since, until)
    read = read_csv if file.suffix == ".csv" else read_jsonl
    lines = read(file.read_text())

    async def work(platform: Platform) -> ReconcileReport:
        return await platform.reconciliation.run(
            lines, since=since_at, until=until_at, provider=provider, complete=complete, by=_author()
        )

    _show([_plain(_run(work))], as_json=as_json)


@audit_app.command("verify")
def audit_verify(*, as_json: Json = False) -> None:
    """Walk every chain of the trail; exit 1 at the first record that does not fit. Example: penstock audit verify."""
    verdict = _run(lambda platform: platform.trail.verify())
    row = _plain(verdict)
    if not as_json:
        row = {
            "records": verdict.records,
            "chains": len(verdict.heads),
            "intact": verdict.intact,
            "breaks": row["breaks"],
        }
    _show([row], as_json=as_json)
    if not verdict.intact:
        raise typer.Exit(1)


@aliases_app.command("explain")
def aliases_explain(
    name: Annotated[str, typer.Argument(help="An alias or a model.")],
    *,
    prompt_tokens: Annotated[int, typer.Option(min=0, help="How long the prompt is.")] = 0,
    task_type: Annotated[str | None, typer.Option(help="The hint of that name.")] = None,
    max_latency_ms: Annotated[int | None, typer.Option(help="The hint of that name.")] = None,
    quality_level: Annotated[str | None, typer.Option(help="The hint of that name.")] = None,
    as_json: Json = False,
) -> None:
    """Show where a request goes before policy, and why. Example: penstock aliases explain auto --task-type code."""
    hints = Hints(task_type=task_type, max_latency_ms=max_latency_ms, quality_level=quality_level)
    request = ModelRequest(name, {}, input_tokens_max=prompt_bytes(prompt_tokens), hints=hints)

    async def work(platform: Platform) -> tuple[Plan, frozenset[str]]:
        return platform.router.current(platform.router.plan(request)), platform.snapshot.catalogue().draining

    plan, draining = _run(work)
    targets = [{"target": each.name, "provider": each.provider, "draining": each.name in draining} for each in plan]
    if as_json:
        _show([{"name": name, "why": plan.why, "targets": targets}], as_json=True)
        return
    for reason in plan.why:
        _out.print(reason, markup=False, highlight=False)
    _show(targets, as_json=False)


@app.command()
def openapi() -> None:
    """Print what describes every endpoint, for tools. Example: penstock openapi > openapi.json."""
    with TemporaryDirectory() as folder:  # the same for every store, and none is needed
        edge = build(Settings(data_dir=Path(folder), database_url=None, redis_url=None)).edge
    document = msgspec.json.encode(edge.describe(edge.endpoints))
    _out.print(msgspec.json.format(document).decode(), markup=False, highlight=False)


@app.command()
def doctor(*, as_json: Json = False) -> None:
    """Check every dependency and name the cure of what is wrong. Example: penstock doctor."""
    findings = asyncio.run(diagnose(Settings()))
    _show([_plain(finding) for finding in findings], as_json=as_json)
    if any(finding.state == "wrong" for finding in findings):
        raise typer.Exit(1)


def _run(work: Callable[[Platform], Awaitable[Result]], *, migrated: bool = True) -> Result:
    async def run() -> Result:
        settings = Settings()
        if migrated:
            _require_store(settings)
        platform = build(settings)
        try:
            if migrated:
                await migrate(platform.engine)
                await platform.feed.load()
            return await work(platform)
        finally:
            await platform.dispose()

    return asyncio.run(run())


def _require_store(settings: Settings) -> None:
    """A mistyped folder must not become a new, empty company."""
    if settings.embedded and not settings.store_file.exists():
        raise FileNotFoundError(
            f"there is no store at {settings.store_file}; set PENSTOCK_DATA_DIR, or make one with penstock migrate"
        )


async def _export(platform: Platform) -> str:
    _, documents = await platform.register.load()
    return render(platform.register.export(documents))


def _window(since: datetime | None, until: datetime | None) -> tuple[datetime, datetime]:
    now = datetime.now(UTC)
    month = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return (
        since.replace(tzinfo=UTC) if since else month,
        until.replace(tzinfo=UTC) if until else now + timedelta(seconds=1),
    )


def _author() -> str:
    return f"cli:{getpass.getuser()}"


def _plain(row: object) -> dict[str, Any]:
    """A row for people: dollars instead of nano-dollars."""
    plain = msgspec.to_builtins(row)
    assert isinstance(plain, dict)
    return {
        name.replace("_nano_usd", "_usd"): format_usd(value) if name.endswith("_nano_usd") else value
        for name, value in plain.items()
    }


def _budget_row(state: BudgetState) -> dict[str, Any]:
    budget = state.budget
    return {
        "budget": budget.id,
        "of": f"{budget.scope} {budget.of}",
        "period": state.period,
        "limit_usd": format_usd(budget.limit_nano_usd),
        "posted_usd": format_usd(state.posted_nano_usd),
        "held_usd": format_usd(state.held_nano_usd),
        "remaining_usd": format_usd(state.remaining_nano_usd),
        "hard": budget.hard,
    }


def _show_changes(changes: list[Change], *, as_json: bool) -> None:
    rows = [msgspec.to_builtins(change) for change in changes] if as_json else change_rows(changes)
    if as_json or rows:
        _show(rows, as_json=as_json)
    else:
        _out.print("nothing to change")


def _show(rows: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        _out.print(msgspec.json.format(msgspec.json.encode(rows)).decode(), markup=False, highlight=False)
    elif rows:
        _out.print(rendered(rows, _out.width if _out.is_terminal else None), markup=False, highlight=False)
    else:
        _out.print("nothing to show")


app.add_typer(cli_targets.commands(_run, _show), name="models")
app.add_typer(cli_models.prices(_run, _show_changes, author=_author), name="prices")
app.command("translator")(cli_models.translator)
