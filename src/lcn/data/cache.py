"""The cache of fetched logs: where it is, how bytes get into it, and how they are checked.

Nothing half-written is ever visible under its final name: a download or a converted folder is
made beside its destination and renamed when it is complete and its checksums are recorded.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from pathlib import Path

from lcn.errors import DataError
from lcn.files import sha256_of, written_whole

SEAL = "seal.json"
"""Written last into a converted folder: its version, origin, and each file's size and SHA-256."""

_BLOCK = 1 << 20


def cache_home(environ: Mapping[str, str]) -> Path:
    """Return the folder for fetched logs: LCN_DATA, or `lcn` in the user's cache folder.

    Args:
        environ: environment variables, usually `os.environ`.
    """
    if named := environ.get("LCN_DATA"):
        return Path(named).expanduser().absolute()
    base = environ.get("XDG_CACHE_HOME") or environ.get("LOCALAPPDATA")
    return (Path(base) if base else Path.home() / ".cache").absolute() / "lcn"


def verify(path: Path, sha256: str) -> None:
    """Check a file against its known SHA-256.

    Raises:
        DataError: the bytes are others than expected.
    """
    got = sha256_of(path)
    if got != sha256:
        raise DataError(
            f"{path} has SHA-256 {got}, expected {sha256}: the file is damaged or of another "
            "version; delete it and fetch again"
        )


def download(url: str, path: Path, *, sha256: str, timeout: float = 10.0) -> Path:
    """Download a file into the cache unless it is there; only verified bytes get the final name.

    Args:
        url: an http(s) address.
        path: where the file belongs.
        sha256: what its bytes must hash to.
        timeout: seconds without an answer or a byte after which to give up.

    Raises:
        DataError: no connection, an error status, too little disk, or other bytes than expected.
    """
    if path.exists() and sha256_of(path) == sha256:
        return path
    with clear_errors(f"download {url}"), written_whole(path) as partial:
        with partial.open("wb") as file, urllib.request.urlopen(url, timeout=timeout) as answer:
            shutil.copyfileobj(answer, file, _BLOCK)
        verify(partial, sha256)
    return path


def is_sealed(folder: Path, version: str, *, deep: bool = True) -> bool:
    """Tell whether a folder was completed by this version of a conversion and is undamaged.

    Args:
        folder: a folder made by `build`.
        version: the conversion's version; another one counts as absent.
        deep: compare checksums; otherwise only sizes, for files of many gigabytes.
    """
    try:
        seal = json.loads((folder / SEAL).read_text(encoding="utf-8"))
        if seal["version"] != version:
            return False
        for name, facts in seal["files"].items():
            path = folder / name
            if path.stat().st_size != facts["bytes"]:
                return False
            if deep and sha256_of(path) != facts["sha256"]:
                return False
    except (OSError, ValueError, KeyError):
        return False
    return True


def build(folder: Path, version: str, make: Callable[[Path], str], *, deep: bool = True) -> Path:
    """Make a folder of converted files once, atomically.

    Args:
        folder: where it belongs; used as it is when already complete and undamaged.
        version: the conversion's version.
        make: fills the empty folder it is given and returns a word on where the data came from.
        deep: as in `is_sealed`.

    Returns:
        `folder`, complete.

    Raises:
        DataError: `make` failed, or the disk is full.
    """
    if is_sealed(folder, version, deep=deep):
        return folder
    with clear_errors(f"write {folder}"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with clear_errors(f"write {folder}"):
            origin = make(partial)
            _seal(partial, version, origin)
            partial.chmod(0o755)
            _move_into_place(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _seal(folder: Path, version: str, origin: str) -> None:
    files = {
        path.relative_to(folder).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": sha256_of(path),
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    seal = {"version": version, "origin": origin, "files": files}
    (folder / SEAL).write_text(json.dumps(seal, indent=1) + "\n", encoding="utf-8")


def _move_into_place(partial: Path, folder: Path) -> None:
    """Rename a finished folder over an absent, stale or damaged one."""
    if not folder.exists():
        partial.rename(folder)
        return
    stale = Path(tempfile.mkdtemp(prefix=f".{folder.name}-stale-", dir=folder.parent))
    try:
        folder.rename(stale / "old")
        partial.rename(folder)
    finally:
        shutil.rmtree(stale, ignore_errors=True)


@contextmanager
def clear_errors(doing: str):
    """Turn operating-system errors of a step into a DataError that says what to do."""
    try:
        yield
    except urllib.error.URLError as error:
        raise DataError(f"could not {doing}: {error.reason}") from error
    except TimeoutError as error:
        raise DataError(f"could not {doing}: no answer in time") from error
    except OSError as error:
        hint = "; free some space, or set LCN_DATA to a larger disk" if error.errno == 28 else ""
        raise DataError(f"could not {doing}: {error.strerror or error}{hint}") from error
