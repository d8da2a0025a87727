"""docs/serving.md names tests that exist, and the benchmark of a whole server runs. R-61."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from lcn.cli import cli

ROOT = Path(__file__).resolve().parents[2]


def test_every_test_that_the_page_names_exists() -> None:
    page = (ROOT / "docs" / "serving.md").read_text()
    folder = ROOT / "tests" / "serve"
    code = "".join(path.read_text() for path in sorted(folder.glob("test_*.py")))
    named = set(re.findall(r"(?<!/)\b(test_\w+)(?!\w*\.py)\b", page))
    files = set(re.findall(r"(test_\w+)\.py", page))
    assert files <= {path.stem for path in folder.glob("test_*.py")}
    missing = sorted(name for name in named - files if f"def {name}(" not in code)
    assert missing == []
    assert len(named) > 30


def test_the_benchmark_of_a_server_prints_its_differences() -> None:
    options = ["--n", "40", "--items", "300", "--users", "4", "--candidates", "5"]
    options += ["--seconds", "1.5", "--load", "0.3", "--deadline", "20000", "--json"]
    result = CliRunner().invoke(cli, ["bench", "serve", *options])
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert {model["model"] for model in record["models"]} == {"lap", "sim_soft"}
    assert record["failed"] == 0
    assert record["goodput_per_s"] > 0
    assert isinstance(record["lap_minus_sim_p50_ms"], float)
    assert isinstance(record["lap_minus_sim_p99_ms"], float)


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "lcn.serve.server", None)
    result = CliRunner().invoke(cli, ["serve", str(tmp_path)])
    assert "lcn[serve]" in str(result.exception)
