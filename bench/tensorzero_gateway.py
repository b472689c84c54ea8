"""Run by TensorZero's own Python: the HTTP gateway inside its wheel, which chooses its port and tells it in a file.

What starts it is private to the wheel; the version is pinned.
"""

import sys
import threading
from pathlib import Path
from urllib.parse import urlsplit

import tensorzero


def main() -> None:
    """Serve `argv[1]` until a signal ends it; `argv[2]` is the file for the port."""
    gateway = tensorzero._start_http_gateway(  # noqa: SLF001 - the wheel offers no other way
        config_file=sys.argv[1], clickhouse_url=None, postgres_url=None, valkey_url=None, async_setup=False
    )
    told = Path(sys.argv[2])
    draft = told.with_suffix(".draft")
    draft.write_text(str(urlsplit(gateway.base_url).port))
    draft.replace(told)
    threading.Event().wait()


if __name__ == "__main__":
    main()
