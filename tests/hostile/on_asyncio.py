"""`python -m tests.hostile.on_asyncio`: `penstock serve` on Python's own event loop, where there is no uvloop."""

import asyncio

from gateway.logs import json_logs
from gateway.ownership import sole_owner
from gateway.serve import _serve
from gateway.settings import Settings


def main() -> None:
    settings = Settings()
    with sole_owner(settings.data_dir), json_logs() as lines, asyncio.Runner() as runner:
        runner.run(_serve(settings, lines))


if __name__ == "__main__":
    main()
