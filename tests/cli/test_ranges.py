"""Numbers out of range are wrong usage, not a traceback."""

import pytest
from click.testing import CliRunner

from lcn.cli import cli


@pytest.mark.parametrize(
    "given",
    [
        ["consistency", "run", "--size", "0"],
        ["consistency", "run", "--limit", "-1"],
        ["consistency", "run", "--k1", "-1"],
        ["half-width", "run", "--keep", "-5"],
        ["experiment", "table5", "data", "--set", "train.seed=7"],
    ],
)
def test_out_of_range_is_wrong_usage(given):
    result = CliRunner().invoke(cli, given)
    assert result.exit_code == 2, result.output
    assert given[-2] in result.output
