"""Fixtures of the experiments' tests."""

import pytest
from tiny_experiments import InProcess
from toy import make_toy

from lcn.data.dataset import Dataset


@pytest.fixture(scope="session")
def little(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Fewer users than `toy`: a run takes a second."""
    return make_toy(tmp_path_factory.mktemp("little"), users=30, impressions=12, events=20)


@pytest.fixture
def workers() -> InProcess:
    return InProcess()
