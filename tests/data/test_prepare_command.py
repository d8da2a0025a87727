"""`lcn prepare`: it parses, calls and prints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from prepare_twin import Event, Item, Logs, enough, mapping, write

from lcn.api import prepare
from lcn.cli import cli
from lcn.config import dump_config
from lcn.data.dataset import open_dataset
from lcn.errors import ConfigError, LcnError


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    write(
        tmp_path / "logs",
        enough(Logs([Event("2", "a", 1, None, None)], [], [Item("a", 7, "t")], [])),
    )
    (tmp_path / "logs" / "mapping.yaml").write_text(dump_config(mapping()), encoding="utf-8")
    return tmp_path / "logs"


def _run(*arguments: object):
    return CliRunner().invoke(cli, ["prepare", *map(str, arguments)])


def test_mapping_files_name_logs_relative_to_themselves(logs: Path, tmp_path: Path) -> None:
    result = _run(logs / "mapping.yaml", tmp_path / "out", "--threads", 1, "--memory", "1GB")
    assert result.exit_code == 0, result.output
    assert "2 users" in result.stdout
    assert "target events: 2" in result.stdout
    assert "sort target events" in result.stderr
    assert open_dataset(tmp_path / "out").manifest.count.events == {"source": 0, "target": 2}


def test_json_is_the_manifest(logs: Path, tmp_path: Path) -> None:
    result = _run(logs / "mapping.yaml", tmp_path / "out", "--json")
    tree = json.loads(result.stdout)
    assert tree["folder"] == str(tmp_path / "out")
    assert tree["checksums"] == open_dataset(tmp_path / "out").manifest.checksums


def test_wrong_usage_and_wrong_logs(logs: Path, tmp_path: Path) -> None:
    assert _run().exit_code == 2
    assert _run(logs / "mapping.yaml", tmp_path / "out", "--set", "domain=tab").exit_code == 2
    unknown = _run("movielens-2m", tmp_path / "out")
    assert isinstance(unknown.exception, LcnError)
    assert "did you mean 'movielens-1m'" in str(unknown.exception)
    option = _run("kuairand", tmp_path / "out", "--set", "domian=tab")
    assert option.exit_code == 2 and "did you mean 'domain'" in option.stderr
    assert not (tmp_path / "out").exists()


def test_preparation_never_imports_torch() -> None:
    code = "import sys, lcn.cli.prepare, lcn.data.prepare; assert 'torch' not in sys.modules"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_a_mapping_file_has_no_options(logs: Path, tmp_path: Path) -> None:
    for wrong in ({"memory": "1KB"}, {"path": tmp_path}):
        with pytest.raises(ConfigError, match=f"{next(iter(wrong))}: only built-in sources"):
            prepare(logs / "mapping.yaml", tmp_path / "out", **wrong)
