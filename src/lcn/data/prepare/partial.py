"""A folder that appears whole or not at all."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lcn.data.prepare.engine import explained
from lcn.errors import DataError

_LOCK = ".lock"


@contextmanager
def partial_folder(folder: Path, *, force: bool) -> Iterator[Path]:
    """Yield `<folder>.partial`, empty, and rename it to `folder` when the block ends well.

    What an interrupted run left is removed at the next start; a block that raises cleans up.

    Raises:
        DataError: the folder exists and `force` is not set, it is no dataset, or another process
            is preparing it.
    """
    folder = Path(folder).absolute()
    partial = folder.with_name(folder.name + ".partial")
    _check_free(folder, force)
    with explained(f"making {partial}"):
        if partial.exists():
            with _locked(partial):
                shutil.rmtree(partial)
        partial.mkdir(parents=True)
    try:
        with _locked(partial):
            yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    with explained(f"renaming {partial}"):
        (partial / _LOCK).unlink()
        _swap_in(partial, folder)


def _check_free(folder: Path, force: bool) -> None:
    if not folder.exists():
        return
    if not force:
        raise DataError(f"{folder} exists; choose another folder, or replace it with --force")
    if not (folder / "manifest.json").exists() and any(folder.iterdir()):
        raise DataError(
            f"{folder} exists and is no dataset (it has no manifest.json), so --force does not "
            "replace it; choose another folder or remove it yourself"
        )


def _swap_in(partial: Path, folder: Path) -> None:
    """Rename into place; an old dataset is moved away first and removed last."""
    old = folder.with_name(folder.name + ".old")
    if old.exists():
        shutil.rmtree(old)
    if folder.exists():
        folder.replace(old)
    partial.replace(folder)
    descriptor = os.open(folder.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if old.exists():
        shutil.rmtree(old)


@contextmanager
def _locked(partial: Path) -> Iterator[None]:
    """Hold the folder's lock, which the system releases however the process ends."""
    with (partial / _LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(
                f"another process is preparing {partial}; wait for it, or choose another folder"
            ) from error
        yield
