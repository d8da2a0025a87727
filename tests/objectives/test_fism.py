"""FISM: each response from all the others, in closed form."""

import pytest
import torch
from objective_bench import build, make_batch, make_model, make_setup, make_view
from test_crp import ordinary
from toy import KINDS, make_toy

from lcn.data.dataset import open_dataset
from lcn.errors import ConfigError
from lcn.objectives.fism import Fism
from lcn.schema import write_manifest


@torch.no_grad()
def twin(fism: Fism, item_ID, rows) -> list[float]:
    """Row by row, over an explicit list of the user's other rows."""
    logits = []
    for j in range(len(rows.item_T)):
        others = [k for k in range(len(rows.item_T)) if k != j and rows.user_T[k] == rows.user_T[j]]
        given = sum(
            (fism.gain_V[rows.kind_T[k]] * item_ID[rows.item_T[k]] for k in others),
            start=torch.zeros_like(item_ID[0]),
        )
        own = item_ID[rows.item_T[j]]
        known = [float(rows.sign_T[k]) for k in others if rows.sign_T[k]]
        mean = sum(known) / (len(known) + fism.config.prior)
        match = (own * given).sum() / max(len(others), 1) ** fism.config.alpha
        logits.append(float(match + fism.bias(own)[0] + fism.mean_weight * mean))
    return logits


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_equals_the_sum_over_the_other_rows(toy, alpha):
    model = make_model(toy).double()
    view = make_view(model, make_batch(toy, ordinary()))
    view.batch.source.context_TG[0] = KINDS["unsure"]
    fism = build("fism", toy, alpha=alpha).double()
    torch.nn.init.normal_(fism.gain_V)
    rows = fism.rows(view.batch, view.latest_candidates())
    assert {-1.0, 0.0, 1.0} <= set(rows.sign_T.tolist())
    logit_T = fism.logits(view.item_ID, rows, len(view.batch.address_U))
    expected_T = torch.tensor(twin(fism, view.item_ID, rows), dtype=torch.float64)
    torch.testing.assert_close(logit_T, expected_T)
    known_T = rows.sign_T != 0
    loss = torch.nn.functional.softplus(-rows.sign_T[known_T] * expected_T[known_T]).mean()
    torch.testing.assert_close(fism(view).double(), loss, rtol=1e-6, atol=1e-6)


def test_words_of_the_mapping_decide_what_is_a_click(toy):
    fism = build("fism", toy)
    signs = {word: float(fism.sign_V[code]) for word, code in KINDS.items()}
    assert signs == {"liked": 1.0, "loved": 1.0, "seen": -1.0, "unsure": 0.0}
    assert fism.sign_V[:2].tolist() == [0.0, 0.0]


def test_domains_have_gains_of_their_own(toy):
    view = make_view(make_model(toy), make_batch(toy, ordinary()))
    rows = build("fism", toy).rows(view.batch, view.latest_candidates())
    size, targets = 6, len(view.batch.target.item_T)
    assert (rows.kind_T[:targets] < size).all() and (rows.kind_T[targets:] >= size).all()


def test_a_log_that_tells_nothing_is_refused(tmp_path):
    toy = make_toy(tmp_path / "toy")
    write_manifest(toy.folder, toy.manifest.model_copy(update={"mapping": {}}))
    with pytest.raises(ConfigError, match="responses"):
        Fism(Fism.Config(), make_setup(open_dataset(toy.folder)))
