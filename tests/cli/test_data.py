"""`lcn data`: thin, teaching, and free of torch."""

import json
import subprocess
import sys

import pytest
import yaml
from click.testing import CliRunner

from lcn.cli.data import data
from lcn.data.mapping import Mapping
from lcn.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LCN_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache"


def run(*words: str, fails: bool = False):
    result = CliRunner().invoke(data, words, catch_exceptions=False)
    assert (result.exit_code != 0) == fails, result.output
    return result


def test_list_names_sources_and_licences(cache):
    text = run("list").stdout
    for word in ("movielens-1m", "taobao-ad", "kuairand", "synthetic", "CC BY-SA", str(cache)):
        assert word in text
    rows = json.loads(run("list", "--json").stdout)
    assert rows["cache"] == str(cache)
    assert {row["name"] for row in rows["sources"]} == {
        *("movielens-1m", "taobao-ad", "kuairand", "synthetic")
    }


def test_generate_then_fetch_and_map(tmp_path):
    out = tmp_path / "out"
    words = ("--users", "50", "--source-events", "5", "--set", "days=20", "--json")
    told = json.loads(run("generate", "synthetic", str(out), *words).stdout)
    assert (told["config"]["users"], told["config"]["days"]) == (50, 20)
    found = run("path", "synthetic", "--path", str(out))
    assert found.stdout == f"{out}\n"
    assert "Generated data" in found.stderr
    assert "Generated data" in run("fetch", "synthetic", "--path", str(out)).stdout
    mapping = yaml.safe_load(run("mapping", "synthetic", "--path", str(out)).stdout)
    assert Mapping.model_validate(mapping).impressions[0].probability == "probability"


def test_generate_taobao_and_its_option(tmp_path):
    out = str(tmp_path / "tb")
    words = ("--behaviours", "100", "--impressions", "50", "--users", "9", "--set", "ads=20")
    assert "lcn data fetch taobao-ad" in run("generate", "taobao-ad", out, *words).stdout
    shown = run("mapping", "taobao-ad", "--path", out, "--set", "drop_6_may=true", "--json").stdout
    assert json.loads(shown)["impressions"][0]["where"].startswith("time_stamp >=")


def test_wrong_usage_exits_with_two(tmp_path):
    result = run("fetch", "movielens", fails=True)
    assert result.exit_code == 2
    assert "did you mean 'movielens-1m'" in result.stderr
    result = run("mapping", "kuairand", "--set", "domains=tag", fails=True)
    assert result.exit_code == 2
    assert "did you mean 'domain'" in result.stderr
    assert run("mapping", "kuairand", "--set", "domain", fails=True).exit_code == 2


def test_errors_of_the_library_reach_the_caller(tmp_path):
    with pytest.raises(DataError, match="needs a login"):
        run("fetch", "taobao-ad")
    with pytest.raises(ConfigError, match="did you mean 'rho'"):
        run("generate", "synthetic", str(tmp_path / "x"), "--set", "rhoo=1")


def test_no_torch_for_data():
    code = (
        "import sys, lcn.cli.data, lcn.data.sources; "
        "sys.exit('torch' in sys.modules or 'duckdb' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
