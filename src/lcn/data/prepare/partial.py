"""A folder that appears whole or not at all."""

from __future__ import annotations

import fcntl
import glob
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lcn.data.prepare.engine import explained
from lcn.errors import DataError
from lcn.files import sync

_LOCK = ".lock"


@contextmanager
def partial_folder(folder: Path, *, force: bool) -> Iterator[Path]:
    """Yield `<folder>.partial`, empty, and rename it to `folder` when the block ends well.

    What an interrupted run left is removed at the next start; a block that raises cleans up. A
    folder that is a link is followed: the dataset it names is replaced.

    Raises:
        DataError: the folder exists and `force` is not set, it is no dataset, another process is
            preparing it, or something else stands at `<folder>.partial`.
    """
    folder = Path(folder).resolve()
    partial = folder.with_name(folder.name + ".partial")
    with explained(f"making {partial}"):
        if partial.exists():
            _check_left_behind(partial)
            with _locked(partial):
                _undo_half_a_swap(folder)
                _check_free(folder, force)
                shutil.rmtree(partial)
        else:
            _undo_half_a_swap(folder)
            _check_free(folder, force)
        partial.mkdir(parents=True)
    written = False
    try:
        with _locked(partial):
            yield partial
            written = True
            # Still locked: nobody takes what is finished for what was left behind.
            with explained(f"renaming {partial}"):
                _swap_in(partial, folder)
                (folder / _LOCK).unlink()
    except BaseException:
        if not written:
            shutil.rmtree(partial, ignore_errors=True)
        raise


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


def _check_left_behind(partial: Path) -> None:
    """Refuse to remove what no run of ours left."""
    if not partial.is_dir() or (any(partial.iterdir()) and not (partial / _LOCK).exists()):
        raise DataError(
            f"{partial} exists and is nothing that an interrupted preparation left (it has no "
            f"{_LOCK}); a dataset is written there first: move it away, or choose another folder"
        )


def _undo_half_a_swap(folder: Path) -> None:
    """Put back, or remove, the old dataset that an interrupted run had moved away."""
    # The name is mkdtemp's, and nothing else is in it: else it is not ours.
    for old in folder.parent.glob(f".{glob.escape(folder.name)}-old-????????"):
        if [path.name for path in old.iterdir()] not in ([], [folder.name]):
            continue
        before = old / folder.name
        if before.exists() and not folder.exists():
            before.replace(folder)
        elif (before / "manifest.json").exists():
            shutil.rmtree(before)
        if not before.exists():
            old.rmdir()


def _swap_in(partial: Path, folder: Path) -> None:
    """Rename into place; an old dataset is moved away first and removed last.

    Where a process ends between the two renames, the next start puts the old one back.
    """
    old = None
    if folder.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
        folder.replace(old / folder.name)
    try:
        partial.replace(folder)
    except OSError:
        if old is not None:
            (old / folder.name).replace(folder)
            old.rmdir()
        raise
    sync(folder.parent)
    if old is not None:
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
