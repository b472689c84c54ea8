"""A provider that is out of order whenever it is asked something new: 503 the first time, the real one afterwards.

It looks at nothing but whether it saw the same body before, so it has no wire of its own.
"""

from types import TracebackType
from typing import Self

import aiohttp
from aiohttp import web

from tests.prove.server import free_port

_HANDED_ON = ("authorization", "x-api-key", "anthropic-version", "content-type")


class Flaky:
    """Stands before the provider at `url`, on 127.0.0.1."""

    def __init__(self, url: str) -> None:
        self._target = url
        self._seen = set[bytes]()
        self._session: aiohttp.ClientSession | None = None
        application = web.Application()
        application.router.add_post("/{path:.*}", self._answer)
        self._runner = web.AppRunner(application)
        self._port = free_port()

    @property
    def url(self) -> str:
        """Where it is, without a path."""
        return f"http://127.0.0.1:{self._port}"

    async def _answer(self, request: web.Request) -> web.Response:
        body = await request.read()
        if body not in self._seen:
            self._seen.add(body)
            return web.json_response({"error": {"message": "Out of order."}}, status=503)
        assert self._session is not None
        headers = {name: request.headers[name] for name in _HANDED_ON if name in request.headers}
        async with self._session.post(self._target + request.path_qs, data=body, headers=headers) as answer:
            return web.Response(body=await answer.read(), status=answer.status, content_type=answer.content_type)

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(trust_env=False)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port).start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self._runner.cleanup()
        assert self._session is not None
        await self._session.close()
