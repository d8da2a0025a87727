"""What a run writes down: whose commit, and curves that a full disk does not take."""

import json
import subprocess
from pathlib import Path

import pytest

from lcn.train import record
from lcn.train.record import MetricLog, commit


@pytest.fixture(autouse=True)
def read_anew():
    commit.cache_clear()
    yield
    commit.cache_clear()


def checkout(folder: Path) -> Path:
    """A repository with one commit."""
    folder.mkdir(parents=True)
    git = ["git", "-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@t"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "one"], check=True)
    return folder


def installed(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (package / "train").mkdir(parents=True)
    monkeypatch.setattr(record, "__file__", str(package / "train" / "record.py"))


def test_the_commit_is_that_of_the_codes_own_checkout(tmp_path, monkeypatch):
    top = checkout(tmp_path / "lcn")
    installed(top / "src" / "lcn", monkeypatch)
    head = subprocess.check_output(["git", "-C", str(top), "rev-parse", "HEAD"], text=True)
    assert commit() == head[:12]


def test_another_repositorys_commit_is_not_taken(tmp_path, monkeypatch):
    top = checkout(tmp_path / "theirs")
    installed(top / ".venv" / "lib" / "site-packages" / "lcn", monkeypatch)
    assert commit() == "unknown"


def test_the_commit_is_read_once(monkeypatch):
    before = commit()
    monkeypatch.setattr(record, "_git", lambda *_: "another")
    assert commit() == before


def test_a_resumed_log_keeps_its_lines_where_nothing_can_be_written(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step}) + "\n" for step in range(3)]
    path.write_text("".join(lines))

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    log = MetricLog(tmp_path, lines=2, step=2)
    log.close()
    assert path.read_text() == "".join(lines[:2])
