"""A run as Markdown: what was promised, what everybody did, and on what. For latest.md and the README."""

from collections.abc import Mapping
from statistics import median
from textwrap import shorten

from bench.figures import Contender, Figure, Sample
from bench.penstock import unseen
from bench.results import Results
from bench.verdicts import STORES, Row

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
_COLUMNS: tuple[tuple[str, Figure, str], ...] = (
    ("CPU us/request", Figure.REQUEST_CPU_US, "{:,.0f}"),
    ("requests/s, 64 clients", Figure.REQUESTS_PER_SECOND, "{:,.0f}"),
    ("p50 ms at 20/s", Figure.LATENCY_P50_MS, "{:.2f}"),
    ("CPU us/chunk", Figure.CHUNK_CPU_US, "{:,.1f}"),
    ("1,000 streams: failed", Figure.STREAM_FAILURES, "{:.0f}"),
    ("p99 ms to first chunk", Figure.FIRST_CHUNK_P99_MS, "{:,.0f}"),
    ("MiB then", Figure.STREAMS_MIB, "{:,.0f}"),
    ("start s", Figure.START_SECONDS, "{:.2f}"),
    ("MiB idle", Figure.IDLE_MIB, "{:,.0f}"),
)


def promises(results: Results) -> str:
    """Each promise with both stores' figures and verdicts."""
    lines = ["| one core, everything on | must | aim | SQLite | PostgreSQL + Redis |", "|---|---|---|---|---|"]
    by_promise: dict[str, dict[str, Row]] = {}
    for row in results.rows:
        by_promise.setdefault(row.what, {})[row.store] = row
    for what, rows in by_promise.items():
        first = rows[STORES[0]]
        lines.append(_line(what, first.must, first.aim, *(_shown(rows[store]) for store in STORES)))
    return "\n".join(lines)


def figures(results: Results) -> str:
    """The medians of every gateway."""
    lines = [_line("gateway", *(name for name, _, _ in _COLUMNS)), "|---" * (len(_COLUMNS) + 1) + "|"]
    for contender in results.contenders:
        mine = [sample for sample in results.samples if sample.gateway == contender.name]
        if why := _why_not(contender, mine):
            lines.append(_line(_title(contender), f"not run: {why}", *[""] * (len(_COLUMNS) - 1)))
            continue
        cells = (_median(mine, figure, shape) for _, figure, shape in _COLUMNS)
        lines.append(_line(_title(contender), *cells))
    return "\n".join(lines)


def evidence(results: Results) -> str:
    """Which checks our own turns show to have been on."""
    told = [sample for sample in results.samples if sample.told is not None]
    if not told:
        return "No turn of ours was asked what was done with it."
    lacking = sorted({check for sample in told if sample.told is not None for check in unseen(sample.told)})
    shown = "all checks on" if not lacking else f"all checks on but: {', '.join(lacking)}"
    return f"Evidence: {len(told)} turns of ours, kept in latest.json with hold, entries and trail: {shown}."


def page(results: Results) -> str:
    """All of it, with the machine and the commit."""
    machine = results.machine
    notes = [
        f"{_rounds(results.rounds)}; {results.at}, commit {results.commit}. {evidence(results)}",
        f"Machine: {machine}. Gateway on core {machine.gateway_core}, all else on core {machine.beside_core}.",
    ]
    if machine.gateway_core == machine.beside_core:
        notes.append("**There was one core for everything: no time here means anything.**")
    failed = [sample for sample in results.samples if sample.failed]
    notes += [f"Failed: {sample.gateway}, round {sample.round}: {_short(sample.failed)}" for sample in failed]
    return "\n\n".join([promises(results), figures(results), *notes]) + "\n"


def between_marks(whole: str, table: str) -> str:
    """The page with the table between its marks. Raises ValueError where a mark is missing."""
    before, begin, rest = whole.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{table.strip()}\n{END}{after}"


def medians(results: Results) -> Mapping[str, Mapping[Figure, float]]:
    """By gateway, the median of each figure over the rounds."""
    found: dict[str, dict[Figure, float]] = {}
    for name in (contender.name for contender in results.contenders):
        mine = [sample.figures for sample in results.samples if sample.gateway == name]
        kinds = {figure for figures in mine for figure in figures}
        found[name] = {figure: median(each[figure] for each in mine if figure in each) for figure in kinds}
    return found


def _why_not(contender: Contender, mine: list[Sample]) -> str:
    if contender.missing:
        return contender.missing
    if any(sample.figures for sample in mine):
        return ""
    return next((_short(sample.failed) for sample in mine if sample.failed), "interrupted")


def _rounds(rounds: int) -> str:
    return "One round" if rounds == 1 else f"{rounds} rounds, medians"


def _short(text: str | None) -> str:
    return shorten(" ".join((text or "").split()), 160, placeholder=" ...")


def _median(mine: list[Sample], figure: Figure, shape: str) -> str:
    values = [sample.figures[figure] for sample in mine if figure in sample.figures]
    return shape.format(median(values)) if values else "-"


def _shown(row: Row) -> str:
    return row.verdict if row.value is None else f"{row.value:.3g} {row.unit} ({row.verdict})".replace("  ", " ")


def _title(contender: Contender) -> str:
    return f"{contender.title} {contender.version}".strip()


def _line(*cells: str) -> str:
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"
