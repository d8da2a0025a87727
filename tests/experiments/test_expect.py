"""What to expect of a log: nothing where a fact is undefined, and files are refused by name."""

import json
import math

import numpy as np
import pytest
from click.testing import CliRunner
from toy import make_toy

from lcn.cli import cli
from lcn.data.dataset import open_dataset
from lcn.errors import DataError
from lcn.experiments.expect import LIFT, Known, expect, load_known
from lcn.experiments.facts import read_facts

FACTS = {"source": 100.0, LIFT: 0.01}


def point(**more):
    gains = {"LAP": {"gain": 0.1, "low": 0.0, "high": 0.2}}
    return {"dial": "rho", "value": 0.5, "facts": FACTS, "gains": gains, **more}


def written(path, *points):
    path.write_text(json.dumps({"data": {"points": points}}))
    return path


@pytest.mark.parametrize(
    "damage",
    [
        {"gains": {"LAP": {"gain": "n/a", "low": 0.0, "high": 0.2}}},
        {"facts": [1, 2]},
        {"value": "much"},
        {"gains": None},
    ],
)
def test_a_damaged_point_is_refused_by_the_files_name(tmp_path, damage):
    path = written(tmp_path / "conditions.json", point(), point(**damage))
    with pytest.raises(DataError, match=r"conditions\.json holds no dose-response"):
        load_known(path)


def test_a_file_that_is_no_text_is_refused_by_name(tmp_path):
    (tmp_path / "conditions.json").write_bytes(b'{"data": "\xff"}')
    with pytest.raises(DataError, match=r"conditions\.json holds no dose-response"):
        load_known(tmp_path / "conditions.json")


def test_logs_with_something_undefined_are_left_out(tmp_path):
    gains = {"LAP": {"gain": None, "low": None, "high": None}}
    facts = {**FACTS, LIFT: None}
    path = written(tmp_path / "c.json", point(), point(gains=gains), point(facts=facts))
    assert [one.gain for one in load_known(path)] == [0.1]


def test_nothing_is_expected_of_an_undefined_fact():
    known = [Known("one", FACTS, 0.1, 0.0, 0.2), Known("two", {"source": 1.0}, 0.1, 0.0, 0.2)]
    for value in (math.nan, math.inf):
        with pytest.raises(DataError, match=f"nothing can be said.*{LIFT}"):
            expect({**FACTS, LIFT: value}, known[:1])
    with pytest.raises(DataError, match="other facts"):
        expect(FACTS, known)


def test_the_command_says_that_nothing_can_be_said(tmp_path):
    toy = make_toy(tmp_path / "toy", users=40)
    path = toy.folder / "samples" / "test" / "label.npy"
    np.save(path, np.zeros(len(toy.samples["test"]), np.uint8))
    dataset = open_dataset(toy.folder)
    assert math.isnan(read_facts(dataset, resamples=4).drivers[LIFT])
    command = ["diagnose", str(toy.folder), "--resamples", "4"]
    plain = CliRunner().invoke(cli, command)
    assert plain.exit_code == 0 and "nan" not in plain.output
    assert "Nothing can be said" in plain.output
    tree = json.loads(CliRunner().invoke(cli, [*command, "--json"]).output)
    assert tree["expectation"] is None and tree["undefined"] == [LIFT]
