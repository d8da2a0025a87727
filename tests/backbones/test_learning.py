"""Every backbone learns what is planted, and finds nothing where nothing is."""

import numpy as np
import pytest
from toy import make_toy

from lcn.backbones import BACKBONES
from lcn.evaluate.metrics import auc
from lcn.evaluate.predict import predict_logits
from lcn.train import RunConfig, open_run, train

pytestmark = pytest.mark.slow

SETTINGS = {
    "sim_hard": {"keep": 16},
    "sim_soft": {"keep": 16},
    "eta": {"keep": 16, "bits": 64},
    "twin": {"keep": 16},
    "lap": {"k1": 30, "k2": 12},
}
LIFELONG = [name for name in BACKBONES if name != "none"]


@pytest.fixture(scope="module")
def test_auc(tmp_path_factory):
    """Test AUC of a backbone on data with or without a signal, trained once each.

    The short-term histories are one event long: what is to be learned is in the lifelong one.
    """
    found, data = {}, {}

    def measure(name, signal):
        if signal not in data:
            folder = tmp_path_factory.mktemp(f"signal-{signal}")
            make_toy(folder, signal=signal, users=600, impressions=30, seed=11)
            data[signal] = folder
        if (name, signal) not in found:
            run = tmp_path_factory.mktemp("runs") / name
            config = RunConfig.model_validate(
                {
                    "dataset": str(data[signal]),
                    "model": {
                        "backbone": {"name": name, **SETTINGS.get(name, {})},
                        "width": 16,
                        "field_width": 16,
                        "hidden": [32],
                        "short": {"width": 16, "heads": 2},
                    },
                    "batch": {"size": 128, "group": 4, "short": 1, "lifelong": 80},
                    "train": {"epochs": 8, "patience": 8, "learning_rate": 1e-2},
                }
            )
            train(config, run, progress=False)
            opened = open_run(run)
            logit_S = predict_logits(opened.model, opened.dataset, "test", config.batch)
            label_S = np.asarray(opened.dataset.samples["test"].label_S)
            found[name, signal] = auc(logit_S, label_S)
        return found[name, signal]

    return measure


@pytest.mark.parametrize("name", LIFELONG)
def test_learns_the_planted_signal(name, test_auc):
    assert test_auc(name, True) > test_auc("none", True) + 0.05


@pytest.mark.parametrize("name", LIFELONG)
def test_does_not_beat_none_on_noise(name, test_auc):
    # 2700 impressions: an AUC of pure chance has a standard error of 0.011.
    assert test_auc(name, False) < max(test_auc("none", False), 0.5) + 0.045
