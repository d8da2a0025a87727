"""The folder of a run that is being trained: one training at a time, nothing stale in it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lcn.errors import ConfigError
from lcn.train.checkpoint import unwritable
from lcn.train.config import RunConfig
from lcn.train.record import write_setup


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Make a folder and hold a lock on it, which ends with the process.

    Raises:
        ConfigError: another training holds it.
        CheckpointError: the folder cannot be made.
    """
    with unwritable(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"another process is training in {folder}") from error
        except OSError:
            pass  # A network file system without locks.
        yield
    finally:
        os.close(handle)


def set_up(folder: Path, config: RunConfig, fingerprint: str, *, afresh: bool) -> None:
    """Write what a training begins with; one that begins afresh leaves no predictions of another.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    with unwritable(folder):
        if afresh:
            # They are of another training, which these settings would be taken for.
            for stale in folder.glob("predictions/*.npz"):
                stale.unlink()
        write_setup(folder, config, fingerprint)
