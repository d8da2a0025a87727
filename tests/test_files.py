"""Files that appear whole or not at all."""

from pathlib import Path

import pytest

from lcn.files import filled_whole, sha256_of, write_whole, written_whole


def test_a_block_that_raises_leaves_the_older_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    write_whole(path, "old")
    with pytest.raises(KeyboardInterrupt), written_whole(path) as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and list(path.parent.iterdir()) == [path]


def test_nothing_is_written_where_nothing_changes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, "é")
    before = path.stat()
    write_whole(path, "é".encode())
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    write_whole(path, b"other")
    assert path.read_bytes() == b"other"


def test_the_sum_is_that_of_the_bytes(tmp_path: Path) -> None:
    write_whole(tmp_path / "empty", b"")
    assert sha256_of(tmp_path / "empty").startswith("e3b0c44298fc1c14")


def test_a_folder_appears_full_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    with pytest.raises(KeyboardInterrupt), filled_whole(folder, last="z") as partial:
        (partial / "a").write_text("half")
        raise KeyboardInterrupt
    assert list(folder.parent.iterdir()) == []
    with filled_whole(folder, last="z") as partial:
        (partial / "a").write_text("whole")
        assert not folder.exists()
    assert [path.name for path in folder.parent.iterdir()] == ["folder"]
    assert (folder / "a").read_text() == "whole"


def test_a_folder_that_is_there_stays_the_same_folder(tmp_path: Path) -> None:
    """It may be a mount point, or a link to another disk."""
    real, link = tmp_path / "real", tmp_path / "link"
    real.mkdir(mode=0o700)
    link.symlink_to(real)
    before = real.stat()
    with pytest.raises(KeyboardInterrupt), filled_whole(link, last="a") as partial:
        (partial / "a").write_text("half")
        raise KeyboardInterrupt
    assert list(real.iterdir()) == []
    with filled_whole(link, last="a") as partial:
        (partial / "a").write_text("whole")
        (partial / "b").mkdir()
        (partial / "b" / "c").write_text("whole")
    assert sorted(path.name for path in real.iterdir()) == ["a", "b"]
    assert (real.stat().st_ino, real.stat().st_mode) == (before.st_ino, before.st_mode)
    assert link.is_symlink() and (link / "b" / "c").read_text() == "whole"
