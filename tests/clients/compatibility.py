"""What the clients found, as a page: docs/compatibility.md. The same findings make the same bytes, whenever."""

from collections.abc import Iterable, Sequence
from types import MappingProxyType

from tests.clients.clients import Row

TOLD = MappingProxyType(
    {
        "chat": "A question is answered, with usage",
        "stream": "A streamed answer is the whole answer",
        "stream_helper": "The client's helper for streams",
        "stream_usage": "Usage comes with a stream",
        "async": "The asynchronous client",
        "tools": "Tools: the call, its result, the answer",
        "tools_streamed": "Tools, streamed",
        "tool_runner": "The client's helper that carries tools out",
        "structured": "An answer by a JSON schema, as an object",
        "structured_by_tools": "The same, by way of a tool",
        "image": "A picture in the question",
        "embeddings": "Embeddings",
        "count_tokens": "Counting tokens beforehand",
        "models": "The list of models, without hidden ones",
        "headers": "The request's id, as the client has it",
        "penstock_headers": "`x-penstock-*` headers can be read",
        "hints": "`penstock` in the body: hints are heard",
        "beta_helpers": "The client's `beta` namespace",
        "error_400": "A wrong request: 400, the client's own error",
        "error_401": "A wrong key: 401",
        "error_402": "A spent budget: 402, not retried",
        "error_403": "A model or data class that policy forbids: 403",
        "error_404": "An unknown model: 404",
        "error_429": "A limit: 429",
        "error_mid_stream": "An error in mid-stream is raised",
        "retry": "What may be tried again is, by the client itself",
        "no_retry": "What may have been billed is not tried again",
        "timeout": "The client's time-out: booked as an estimate, and the provider is hung up on",
        "cancel": "Hanging up in mid-stream: the same",
        "sandbox": "The sandbox answers all of this that is plain",
    }
)
# What every client has: a script that lost one of these would otherwise only show a dash.
EVERYWHERE = frozenset(
    {"chat", "stream", "stream_usage", "tools", "tools_streamed", "structured", "image", "hints", "error_mid_stream"}
    | {f"error_{status}" for status in (400, 401, 402, 403, 404, 429)}
    | {"retry", "no_retry", "timeout", "cancel", "sandbox"}
)
_HEAD = """# Compatibility

Written by `make prove ONLY=wide.clients`; do not edit. Each client is what its vendor publishes, unmodified, at the
version that stands here and in an environment of its own, and talks to a `penstock serve` process. Behind that are the
provider simulator, in OpenAI's wire or in Anthropic's, whichever the client speaks, and the sandbox. What became of
retries, time-outs and streams that were left is also looked up in the gateway's books and on the provider's invoice.

OpenAI's clients take `http://.../v1` as their base URL; Anthropic's take the address without `/v1`. openai-agents is
told to use chat completions (`OpenAIChatCompletionsModel`).

`yes`: as it should be. `no`: not. `-`: the client has nothing of the kind, or it is not tried.
"""
_FURTHER = """
Tried beside these:
"""


def missing(rows: Sequence[Row]) -> list[str]:
    """What should have been tried and was not: of every client, and of all of them together."""
    tried = {(row.client, row.case) for row in rows}
    clients = dict.fromkeys(row.client for row in rows)
    nowhere = sorted(TOLD.keys() - {case for _, case in tried})
    return [
        f"{client}: {case}" for client in clients for case in sorted(EVERYWHERE) if (client, case) not in tried
    ] + nowhere


def page(rows: Sequence[Row]) -> str:
    """The whole page."""
    versions = {row.client: row.version for row in rows}
    cells = {(row.case, row.client): "yes" if row.ok else "no" for row in rows}
    lines = [_line(["", *(f"{client} {version}" for client, version in versions.items())])]
    lines.append("|---" * (len(versions) + 1) + "|")
    for case, told in TOLD.items():
        lines.append(_line([told, *(cells.get((case, client), "-") for client in versions)]))
    further = [f"- {client}: {told}." for client in versions if (told := _further(rows, client))]
    return "\n".join([_HEAD, *lines, _FURTHER, *further]) + "\n"


def _further(rows: Iterable[Row], client: str) -> str:
    found = (row for row in rows if row.client == client and row.case not in TOLD)
    return ", ".join(row.case.replace("_", " ") + ("" if row.ok else " (no)") for row in found)


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
