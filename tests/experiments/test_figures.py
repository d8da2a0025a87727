"""Figures: what they measure is what they say."""

import numpy as np
import pytest
import torch
from tiny_experiments import workspace_of

from lcn.errors import ConfigError
from lcn.experiments import figure4, figure5a, figure5b, mass
from lcn.experiments.clusters import measure_clusters, purity, unit_rows
from lcn.experiments.figures import exact_set, over_seeds
from lcn.experiments.record import CurvePanel, ScatterPanel, TablePanel
from lcn.experiments.rows import Sizes


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("figures")


@pytest.fixture
def workspace(little, root):
    return workspace_of(little, root)


def panel(finding, kind, number=0):
    return [each for each in finding.panels if isinstance(each, kind)][number]


def test_consistency_by_system(workspace):
    finding = figure5a.run(workspace)
    table = panel(finding, TablePanel)
    names = [row[0].text for row in table.rows]
    assert "TWIN (own aggregation)" in names and "LCN w/o integration" in names
    own = table.rows[names.index("TWIN (own aggregation)")]
    assert own[1].value == pytest.approx(1.0)
    for row in table.rows:
        assert 0 <= row[1].value <= 1 + 1e-9 and 0 < row[2].value <= 1
    claims = {each.claim: each for each in finding.verdicts}
    assert "integration of the three levels raises consistency" in claims


def test_consistency_by_k1_rises_to_that_of_all_rows(workspace):
    finding = figure5b.run(workspace)
    table, curve = panel(finding, TablePanel), panel(finding, CurvePanel)
    assert table.head == ("row", "3", "6", "12", "30", "60", "all")
    assert len(curve.lines) == 2 and len(curve.lines[0].x) == 6
    for row in table.rows:
        assert row[-1].value >= row[1].value - 1e-9


def test_attention_mass_of_the_models(workspace):
    finding = mass.run(workspace)
    lines = {line.name: line for line in panel(finding, CurvePanel).lines}
    assert {"full attention", "LCN-200-50, complete scope", "LCN-200-50, focused scope"} <= set(
        lines
    )
    for line in lines.values():
        y = np.asarray(line.y)
        assert y[0] == 0 and y[-1] == pytest.approx(1)
        assert (np.diff(y) >= -1e-12).all() and (y >= np.asarray(line.x) - 1e-6).all()


def test_mass_of_known_scores():
    span_C2 = torch.tensor([[0, 4], [4, 6]])
    score_SH = torch.tensor([[0.0], [0.0], [0.0], [0.0], [50.0], [0.0]])
    mass_CG = mass.spread(score_SH, span_C2)
    np.testing.assert_allclose(mass_CG[0], mass.SHARES, atol=1e-12)
    assert mass_CG[1][25] == pytest.approx(1.0)
    heads = torch.tensor([[50.0, 0.0], [0.0, 50.0]])
    both = mass.spread(heads, torch.tensor([[0, 2]]))[0]
    np.testing.assert_allclose(both, mass.SHARES, atol=1e-9)


def test_clusters_against_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(0)
    vector, label = generator.normal(size=(60, 5)), generator.integers(0, 4, 60)
    label[0] = 9  # a category of one
    found = measure_clusters(vector, label, neighbours=3)
    expected = metrics.silhouette_score(vector, label, metric="cosine")
    assert found.silhouette == pytest.approx(expected)
    unit = unit_rows(vector)
    hits = []
    for i in range(60):
        near = sorted((j for j in range(60) if j != i), key=lambda j: -(unit[i] @ unit[j]))[:3]
        hits += [label[j] == label[i] for j in near]
    assert found.purity == pytest.approx(np.mean(hits))


def test_clusters_that_are_and_clusters_that_are_not():
    generator = np.random.default_rng(0)
    label = np.repeat(np.arange(3), 40)
    apart = np.eye(3)[label] + 0.01 * generator.normal(size=(120, 3))
    found = measure_clusters(apart, label)
    assert found.silhouette > 0.9 and found.purity == 1
    mixed = measure_clusters(generator.normal(size=(120, 3)), label)
    assert abs(mixed.silhouette) < 0.1 and abs(mixed.purity - mixed.chance) < 0.1
    assert mixed.chance == pytest.approx(39 / 119)
    assert np.isnan(measure_clusters(apart, np.zeros(120, int)).silhouette)
    other = unit_rows(apart[label == 1])
    assert purity(other, label[label == 1], unit_rows(apart), label, 5) == 1
    with pytest.raises(ValueError, match="at least 2"):
        measure_clusters(apart[:1], label[:1])


def test_item_vectors_with_and_without_crp(workspace, monkeypatch):
    monkeypatch.setattr(figure4, "embed_plane", lambda vector_VD: vector_VD[:, :2].astype(float))
    finding = figure4.run(workspace)
    scatters = [each for each in finding.panels if isinstance(each, ScatterPanel)]
    assert len(scatters) == 4
    assert sum(len(cloud.x) for cloud in scatters[0].clouds) <= 40
    table = panel(finding, TablePanel)
    assert table.head == ("measure", figure4.WITHOUT, figure4.WITH)
    assert "across, own: neighbour purity" in [row[0].text for row in table.rows]
    assert len(finding.verdicts) == 10


def test_items_without_categories_are_refused_before_training(workspace, monkeypatch):
    monkeypatch.setattr(figure4, "FIRST_VALUE", 10**6)
    with pytest.raises(ConfigError, match="0 items of the source domain have a known"):
        figure4.run(workspace)
    assert workspace.workers.jobs_run == []


def test_the_plane_keeps_clusters_apart():
    pytest.importorskip("sklearn")
    generator = np.random.default_rng(0)
    label = np.repeat(np.arange(2), 20)
    vector = (np.eye(2)[label] + 0.05 * generator.normal(size=(40, 2))).astype(np.float32)
    point = figure4.embed_plane(vector)
    assert point.shape == (40, 2)
    centre = [point[label == each].mean(0) for each in (0, 1)]
    width = max(point[label == each].std() for each in (0, 1))
    assert np.linalg.norm(centre[0] - centre[1]) > width


def test_over_seeds():
    found = over_seeds([0.1, 0.2, 0.3])
    assert found.estimate == pytest.approx(0.2)
    # t(2, .975) = 4.3027
    assert found.high - found.estimate == pytest.approx(4.3027 * 0.1 / 3**0.5, rel=1e-3)
    assert np.isnan(over_seeds([0.1]).low)
    assert exact_set(Sizes()).size == 50 and exact_set(Sizes()).least == 100
    assert exact_set(Sizes()).recall_sizes == (10, 20, 50, 100, 200)
