"""Files that only their owner reads, written whole or not at all; and being the only process on a directory."""

import contextlib
import fcntl
import os
from collections.abc import Generator
from pathlib import Path

from headframe.model.errors import Conflicting


def write_private(path: Path, data: bytes, *, durable: bool = True) -> None:
    """With mode 0600, in one step, and on disk when this returns unless it need not be `durable`."""
    fresh = path.with_name(path.name + ".new")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(data)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    fresh.rename(path)


@contextlib.contextmanager
def alone(lock: Path, refusal: str, next_step: str) -> Generator[None]:
    """Hold a lock file; raises Conflicting where another process does."""
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflicting(refusal, next_step) from None
        yield
