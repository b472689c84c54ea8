"""The document says what is answered: every endpoint, every error, and bodies as the doors read them."""

import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import openapi_shapes as shapes
from gateway.dialect import read_chat, read_completion, read_embedding
from gateway.edge import Access, Edge
from gateway.errors import CallerGone, InvalidRequest, MethodNotAllowed
from gateway.messages import read_count, read_message
from gateway.openapi import ENDPOINTS, describe
from gateway.settings import Settings
from gateway.wiring import Platform, build
from governance import NewKey
from kernel import PlatformError, Role
from tests.fakes.chats import RawCaller, company

METHODS = {"get", "post", "put", "delete"}
# Answered to other methods than those described, and to nobody.
UNTOLD = {MethodNotAllowed.code, CallerGone.code}
DOORS = {
    "/v1/chat/completions": (read_chat, shapes.ChatRequest),
    "/v1/completions": (read_completion, shapes.CompletionRequest),
    "/v1/embeddings": (read_embedding, shapes.EmbeddingRequest),
    "/v1/messages": (read_message, shapes.MessageRequest),
    "/v1/messages/count_tokens": (read_count, shapes.CountRequest),
}


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Edge:
    return build(Settings(data_dir=tmp_path_factory.mktemp("described"), demo=False)).edge


@pytest.fixture(scope="module")
def document(edge: Edge) -> dict[str, Any]:
    return json.loads(msgspec.json.encode(edge.describe(edge.endpoints)))


@pytest.fixture
async def platform(tmp_path: Path) -> AsyncIterator[Platform]:
    async with company(tmp_path) as made:
        yield made


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def errors(document: dict[str, Any], operation: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """An operation's refusals by status, looked up."""
    told = {status: each for status, each in operation["responses"].items() if status >= "400"}
    found = {status: each.get("$ref", "").rpartition("/")[2] for status, each in told.items()}
    return {status: document["components"]["responses"].get(found[status], each) for status, each in told.items()}


def test_every_endpoint_of_the_table_is_described_and_nothing_else_is(edge: Edge) -> None:
    assert {row.path for row in edge.endpoints} == set(ENDPOINTS)


def test_an_endpoint_without_a_description_is_no_document(edge: Edge) -> None:
    row = edge.endpoints[0]
    with pytest.raises(KeyError, match="/v1/unheard-of"):
        describe([type(row)(row.method, "/v1/unheard-of", Access.KEY, row.answer)], {"paths": {}})


def test_every_operation_says_what_it_is_for_and_how_it_fails(document: dict[str, Any]) -> None:
    for path, method, operation in operations(document):
        assert method in METHODS
        assert operation["summary"], path
        told = errors(document, operation)
        assert {"400", "408", "431", "500", "503"} <= told.keys(), path
        assert ("401" in told) == (operation.get("security") != []), path
        for status, response in told.items():
            assert response["description"], (path, status)
            assert path == "/readyz" or "x-should-retry" in response["headers"], (path, status)


def test_every_error_has_our_shape_or_its_wires(document: dict[str, Any]) -> None:
    for path, _, operation in operations(document):
        for status, response in errors(document, operation).items():
            schema = json.dumps(response["content"]["application/json"]["schema"])
            wanted = "MessagesError" if path.startswith("/v1/messages") else "Error"
            assert f'schemas/{wanted}"' in schema, (path, status)
            assert "HTTPValidationError" not in schema


def test_the_shape_of_errors_is_that_of_the_door(edge: Edge) -> None:
    for row in edge.endpoints:
        told = row.door.error(InvalidRequest("no", param="n"), "req_1")
        assert msgspec.json.decode(told, type=ENDPOINTS[row.path].error)


def test_every_error_that_there_is_stands_somewhere(document: dict[str, Any]) -> None:
    def every(family: type[PlatformError]) -> Iterator[type[PlatformError]]:
        for each in family.__subclasses__():
            yield each
            yield from every(each)

    ours = {each for each in every(PlatformError) if each.__module__.partition(".")[0] != "tests"}
    responses = [each for _, _, operation in operations(document) for each in errors(document, operation).items()]
    codes = {code for _, response in responses for code in re.findall(r"`([a-z_]+)`:", response["description"])}
    statuses = {status for status, _ in responses}
    missing = {each.code for each in ours} - codes - UNTOLD
    assert missing <= {"permission_denied", "validation_error", "invalid_invoice"}, "these are told by their status"
    assert {str(each.status) for each in ours} - statuses == {"405", "499"}


def test_nothing_is_referred_to_that_is_not_there(document: dict[str, Any]) -> None:
    for reference in re.findall(r'"#/([^"]+)"', json.dumps(document)):
        found: Any = document
        for part in reference.split("/"):
            found = found[part]
        assert found
    assert "$defs" not in json.dumps(document)


def test_turns_stream_where_their_door_does(document: dict[str, Any], edge: Edge) -> None:
    turns = [row for row in edge.endpoints if row.asks_model]
    assert len(turns) == len(DOORS)
    for row in turns:
        operation = document["paths"][row.path]["post"]
        assert "requestBody" in operation
        assert {"402", "404", "413", "415", "429", "502", "504"} <= operation["responses"].keys()
        streams = "text/event-stream" in operation["responses"]["200"]["content"]
        assert streams == (not row.path.endswith(("embeddings", "count_tokens")))


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
anything = st.none() | st.booleans() | st.integers(-2, 200) | st.just(0.5) | texts
anything |= st.lists(texts | st.integers(0, 9), max_size=2) | st.dictionaries(texts, texts, max_size=2)
hints = st.fixed_dictionaries(
    {},
    optional={
        "use_case": anything,
        "data_class": st.sampled_from(["public", "restricted", "odd"]) | st.integers(),
        "max_latency_ms": st.integers(-1, 5),
        "tags": anything,
        "odd": texts,
    },
)
told = st.fixed_dictionaries({"role": anything | st.just("user"), "content": anything})
odd = st.one_of(
    *(
        st.tuples(st.just(name), values)
        for name, values in {
            "model": st.sampled_from(["", "m" * 256, "m" * 257]) | anything,
            "messages": st.lists(told, max_size=2) | anything,
            "prompt": anything,
            "input": anything,
            "max_tokens": st.integers(-1, 2) | anything,
            "max_completion_tokens": st.integers(-1, 2) | anything,
            "n": st.sampled_from([0, 1, 128, 129]) | anything,
            "stream": anything,
            "stream_options": anything | st.just({"include_usage": True}),
            "temperature": anything,
            "service_tier": st.sampled_from(["auto", "default", "priority"]) | anything,
            "penstock": hints | anything,
            "metadata": anything,
            "tools": anything | st.sampled_from([[{"type": "custom"}], [{"type": "web_search"}]]),
            "future": anything,
        }.items()
    )
)
GOOD = {"model": "m", "messages": [{"role": "user", "content": "a"}], "prompt": "a", "input": "a", "max_tokens": 5}
bodies = st.lists(odd, max_size=2).map(lambda changes: GOOD | dict(changes))


EDGES = [
    {"n": 128},
    {"n": 129},
    {"model": "m" * 257},
    {"max_tokens": 0},
    {"service_tier": "priority"},
    {"messages": []},
    {"penstock": {"tags": ["a"] * 33}},
    {"penstock": {"tags": ["a" * 129]}},
    {"penstock": {"use_case": "a" * 129}},
    {"penstock": {"max_latency_ms": 86_400_001}},
    {"penstock": None},
]


@pytest.mark.parametrize("path", DOORS)
@given(body=bodies)
def test_a_body_is_described_as_its_door_reads_it(path: str, body: dict[str, Any]) -> None:
    require_agreement(path, body)


@pytest.mark.parametrize("path", DOORS)
@pytest.mark.parametrize("at", EDGES, ids=[str(each)[:30] for each in EDGES])
def test_bounds_are_described_as_the_doors_have_them(path: str, at: dict[str, Any]) -> None:
    require_agreement(path, GOOD | at)


def require_agreement(path: str, body: dict[str, Any]) -> None:
    """The body fits its description where its door takes it, and nowhere else."""
    read, shape = DOORS[path]
    if not path.startswith("/v1/messages"):
        body.pop("tools", None)  # the provider's to understand
    for name in {"prompt", "input"} & body.keys():
        if isinstance(body[name], list) and any(isinstance(each, str) for each in body[name]):
            body[name] = [each for each in body[name] if isinstance(each, str)]
    raw = msgspec.json.encode(body)
    try:
        msgspec.json.decode(raw, type=shape)
    except msgspec.ValidationError:
        with pytest.raises(InvalidRequest):
            read(raw, {})
    else:
        read(raw, {})


async def test_whoever_has_a_key_may_read_it(platform: Platform) -> None:
    made = await platform.keys.create(NewKey(name="k", roles=frozenset({Role.MEMBER})), by="test")
    for key, status in ((made.key, 200), ("pk-none", 401)):
        caller = RawCaller(platform, key, b"", path="/api/openapi.json", method="GET").start()
        await caller.ended()
        assert caller.status == status
        assert ("openapi" in json.loads(caller.answer)) == (status == 200)


async def test_a_method_that_there_is_not_is_told_those_that_there_are(platform: Platform) -> None:
    made = await platform.keys.create(NewKey(name="k", roles=frozenset({Role.PLATFORM_ADMIN})), by="test")
    for path, allowed in (("/v1/models", b"GET"), ("/api/keys", b"GET, POST"), ("/api/documents/a/b", b"DELETE, GET")):
        caller = await RawCaller(platform, made.key, b"", path=path, method="PATCH").start().ended()
        assert caller.status == 405
        assert b"\r\nallow: %b\r\n" % allowed in b"\r\n" + caller.head
        assert caller.head.count(b"x-request-id: ") == 1
