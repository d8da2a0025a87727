"""Shared fixtures; every test keeps user state in a temporary folder."""

import os
from pathlib import Path

import pytest
from hypothesis import settings
from toy import make_toy

from lcn.data.dataset import Dataset

# How long an example takes says what else the machine does, not whether the code is right.
settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")


@pytest.fixture(autouse=True)
def _own_user_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LCN_DATA", str(tmp_path / "lcn-data"))


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A small dataset with a planted signal."""
    return make_toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real logs beside the checkout; tests that need it skip without it."""
    root = Path(__file__).resolve().parents[1]
    folder = Path(os.environ.get("LCN_SHARED_DATA", root.parent / "shared" / "data"))
    if not folder.exists():
        pytest.skip(f"no real logs at {folder}")
    return folder
