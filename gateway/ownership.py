"""One serving process per data folder: with SQLite and limits in memory, two could not be correct together."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class AlreadyServed(Exception):
    """Another process serves this data folder."""


@contextmanager
def sole_owner(data_dir: Path) -> Iterator[None]:
    """Hold the folder's lock while the context is open. Raises AlreadyServed.

    The lock is the kernel's: it goes with the process, however that ends.
    """
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(data_dir / "serve.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyServed(
                f"another penstock serves {data_dir}: stop it, or set PENSTOCK_DATA_DIR and PENSTOCK_PORT for this one"
            ) from None
        yield
    finally:
        os.close(descriptor)
