"""Files that appear whole or not at all, and that are on the disk once they have their name."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield the name to write a file under; it becomes `path` when the block ends well.

    A block that raises leaves the older file and nothing else. The folder is made if missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        sync(partial)
        partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise
    sync(path.parent)


@contextmanager
def filled_whole(folder: Path, *, last: str) -> Iterator[Path]:
    """Yield a folder to fill; what is in it goes to `folder` when the block ends well.

    An absent folder appears at once. One that is there (a mount point, say) gets its entries one
    after the other, `last` at the end. A block that raises leaves nothing.

    Args:
        folder: absent or empty.
        last: name of the entry that says that all others are there.
    """
    folder = folder.resolve()
    there = folder.is_dir()
    within = folder if there else folder.parent
    within.mkdir(parents=True, exist_ok=True)
    partial = within / f".{folder.name}-{os.getpid()}-partial"
    partial.mkdir()
    try:
        yield partial
        for path in partial.rglob("*"):
            sync(path)
        sync(partial)
        if there:
            for path in sorted(partial.iterdir(), key=lambda path: path.name == last):
                path.replace(folder / path.name)
        else:
            partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    sync(within)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file; one that holds this content (UTF-8) already is left alone."""
    content = content.encode() if isinstance(content, str) else content
    if path.exists() and path.read_bytes() == content:
        return
    with written_whole(path) as partial:
        partial.write_bytes(content)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Bring a file's bytes, or a folder's entries, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
