"""Generated logs and views lie in the store: two that want the same make it once."""

import threading

from lcn.data.dataset import open_dataset
from lcn.data.sources import synthetic
from lcn.data.sources.synthetic_config import SyntheticConfig
from lcn.experiments import store, subset
from lcn.experiments.planted import planted_dataset
from lcn.experiments.subset import take_users


class Counted:
    """Counts calls; the first one waits for a second, which must not come."""

    def __init__(self, real) -> None:
        self._real, self.calls, self._second = real, 0, threading.Event()

    def __call__(self, *args):
        self.calls += 1
        if self.calls > 1:
            self._second.set()
        self._second.wait(1.0)
        return self._real(*args)


def both(work) -> list:
    """The answers of two that do the same at the same time, errors among them."""
    found: list = []

    def one() -> None:
        try:
            found.append(work())
        except Exception as error:
            found.append(error)

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_two_that_want_the_same_log_make_it_once(tmp_path, monkeypatch):
    counted = Counted(synthetic.generate)
    monkeypatch.setattr(synthetic, "generate", counted)
    monkeypatch.setattr(store.os, "getpid", threading.get_ident)
    config = SyntheticConfig(users=40, source_items=60, target_items=30, categories=5,
                             source_events=15, impressions=8.0, seed=2)  # fmt: skip
    one, other = both(lambda: planted_dataset(config, tmp_path))
    assert one == other and counted.calls == 1
    assert len(open_dataset(one).samples["train"]) > 0


def test_two_that_want_the_same_view_make_it_once(little, tmp_path, monkeypatch):
    counted = Counted(subset.write_manifest)
    monkeypatch.setattr(subset, "write_manifest", counted)
    monkeypatch.setattr(store.os, "getpid", threading.get_ident)
    one, other = both(lambda: take_users(little.folder, tmp_path / "view", 10))
    assert one == other == tmp_path / "view" and counted.calls == 1
    assert len(open_dataset(one).samples["train"]) > 0
