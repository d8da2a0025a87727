"""The cache shows only complete, verified files."""

import hashlib
from pathlib import Path

import pytest

from lcn.data import cache
from lcn.errors import DataError


def test_home_follows_the_environment(tmp_path):
    assert cache.cache_home({"LCN_DATA": str(tmp_path)}) == tmp_path
    assert cache.cache_home({"XDG_CACHE_HOME": str(tmp_path)}) == tmp_path / "lcn"
    assert cache.cache_home({}) == Path.home() / ".cache" / "lcn"


def test_download_keeps_only_verified_bytes(tmp_path):
    origin = tmp_path / "origin"
    origin.write_bytes(b"ratings")
    good = hashlib.sha256(b"ratings").hexdigest()
    path = tmp_path / "cache" / "file"
    with pytest.raises(DataError, match="expected 0000"):
        cache.download(origin.as_uri(), path, sha256="0" * 64)
    assert list(path.parent.iterdir()) == []
    assert cache.download(origin.as_uri(), path, sha256=good).read_bytes() == b"ratings"
    origin.unlink()
    assert cache.download(origin.as_uri(), path, sha256=good) == path
    with pytest.raises(DataError, match="could not download"):
        cache.download(origin.as_uri(), tmp_path / "other", sha256=good)


def test_build_runs_once_and_repairs_damage(tmp_path):
    runs = []

    def make(folder: Path) -> str:
        runs.append(folder)
        (folder / "table").write_text("rows")
        return "here"

    folder = tmp_path / "a" / "tables"
    assert cache.build(folder, "v1", make) == folder
    cache.build(folder, "v1", make)
    assert len(runs) == 1
    (folder / "table").write_text("ROWS")
    assert cache.is_sealed(folder, "v1", deep=False)
    cache.build(folder, "v1", make)
    assert len(runs) == 2
    assert (folder / "table").read_text() == "rows"
    cache.build(folder, "v2", make)
    assert len(runs) == 3
    assert [path.name for path in folder.parent.iterdir()] == ["tables"]


def test_a_failed_build_leaves_nothing(tmp_path):
    def make(folder: Path) -> str:
        (folder / "half").write_text("")
        raise OSError(28, "No space left on device")

    with pytest.raises(DataError, match="LCN_DATA to a larger disk"):
        cache.build(tmp_path / "tables", "v1", make)
    assert list(tmp_path.iterdir()) == []
