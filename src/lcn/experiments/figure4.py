"""Figure 4: item vectors with and without CRP, coloured by category, with cluster quality.

Shapes: V items, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from lcn.data.corpus import build_corpus
from lcn.data.dataset import Dataset, open_dataset
from lcn.data.names import Names
from lcn.errors import ConfigError, DataError
from lcn.evaluate.tables import plain
from lcn.experiments.claims import Claimed, settle
from lcn.experiments.clusters import measure_clusters, purity, unit_rows
from lcn.experiments.facts import category_field
from lcn.experiments.figures import (
    OverSeeds,
    gap_over_seeds,
    open_runs,
    over_seeds,
    rows_of_table5,
    seeds_cell,
)
from lcn.experiments.record import (
    Cell,
    Cloud,
    Panel,
    ScatterPanel,
    TablePanel,
    Verdict,
)
from lcn.experiments.runner import Fitted, Workspace, fit_rows, fitted_ok
from lcn.experiments.tables import row_record
from lcn.experiments.work import Finding
from lcn.schema import DOMAINS, FIRST_VALUE, Domain
from lcn.train.run import Run

ITEMS = 1000
"""Most frequent items of each domain that are looked at."""
SHOWN = 6
"""Categories with a colour of their own."""
WITHOUT, WITH = "LCN-200-50 w/o CRP", "LCN-200-50"
_MEASURES = ("silhouette", "neighbour purity")


@dataclass(frozen=True, slots=True)
class Labelled:
    """Items of one domain, with their categories."""

    address_V: NDArray[np.int64]
    label_V: NDArray[np.int64]


def run(workspace: Workspace) -> Finding:
    """Train the pyramid with and without CRP and look at its item vectors."""
    dataset = open_dataset(workspace.dataset)
    items: dict[Domain, Labelled] = {domain: labelled_items(dataset, domain) for domain in DOMAINS}
    fitted = fit_rows(workspace, rows_of_table5(workspace.sizes, WITHOUT, WITH))
    panels: list[Panel] = []
    quality: dict[str, dict[str, list[float]]] = {}
    for each in fitted_ok(fitted):
        quality[each.row.name] = {}
        for number, opened in enumerate(open_runs(workspace, each)):
            _measure(opened, items, quality[each.row.name])
            if number == 0:
                panels += [
                    _scatter(opened, each.row.name, domain, items[domain]) for domain in DOMAINS
                ]
    over = {
        name: {key: over_seeds(values) for key, values in found.items()}
        for name, found in quality.items()
    }
    return Finding(
        title="Item vectors with and without CRP",
        summary=(
            f"The {ITEMS} most frequent items of each domain. `own` vectors are the item's alone, "
            "without what its category adds to the vector that the model uses (`whole`)."
        ),
        panels=(*panels, _table(over, fitted)),
        verdicts=_verdicts(over),
        rows=tuple(row_record(workspace, each) for each in fitted),
        data=plain(quality),
    )


def labelled_items(dataset: Dataset, domain: Domain) -> Labelled:
    """The most frequent items of a domain that have a known category.

    The category is the item field that counting goes by, too (`facts.category_field`).

    Raises:
        ConfigError: items have no second field, or fewer than two have a known value there.
    """
    place = category_field(dataset)
    if place == 0:
        raise ConfigError(
            "items of this dataset have no field beside the item itself, so there are no "
            "categories to compare: map one as an item field and prepare again"
        )
    items = build_corpus(dataset).domains[domain]
    address_V = items.address_V.numpy()
    label_V = np.asarray(dataset.item_IF[address_V, place], np.int64)
    known_V = label_V >= FIRST_VALUE
    if known_V.sum() < 2:
        raise ConfigError(
            f"{int(known_V.sum())} items of the {domain} domain have a known "
            f"{dataset.manifest.item_fields[place].name!r}; clusters need at least 2"
        )
    address_V, label_V = address_V[known_V], label_V[known_V]
    often_V = np.argsort(-items.count_I.numpy()[address_V], kind="stable")[:ITEMS]
    return Labelled(address_V[often_V], label_V[often_V])


@torch.inference_mode()
def item_vectors(opened: Run, address_V: NDArray[np.int64], *, whole: bool) -> NDArray[np.float32]:
    """vector_VD: what the model uses for the items, or their own tables' rows alone."""
    index_VF = torch.from_numpy(np.asarray(opened.dataset.item_IF[address_V], np.int64))
    encoder = opened.model.contrasted_item
    vector_VD = encoder(index_VF) if whole else encoder.embed.tables[0](index_VF[:, 0])
    return vector_VD.numpy()


def _measure(opened: Run, items: dict[Domain, Labelled], found: dict[str, list[float]]) -> None:
    for whole in (True, False):
        kind, unit = "whole" if whole else "own", {}
        for domain, each in items.items():
            vector_VD = item_vectors(opened, each.address_V, whole=whole)
            unit[domain] = unit_rows(vector_VD)
            clusters = measure_clusters(vector_VD, each.label_V)
            for name, value in zip(
                (*_MEASURES, "chance"),
                (clusters.silhouette, clusters.purity, clusters.chance),
                strict=True,
            ):
                found.setdefault(f"{domain}, {kind}: {name}", []).append(value)
        source, target = items["source"], items["target"]
        if set(source.label_V.tolist()) & set(target.label_V.tolist()):
            across = purity(unit["target"], target.label_V, unit["source"], source.label_V)
            found.setdefault(f"across, {kind}: {_MEASURES[1]}", []).append(across)


def _scatter(opened: Run, row: str, domain: Domain, items: Labelled) -> ScatterPanel:
    point_V2 = embed_plane(item_vectors(opened, items.address_V, whole=True))
    labels, counts = np.unique(items.label_V, return_counts=True)
    shown = labels[np.argsort(-counts, kind="stable")][:SHOWN]
    field = opened.dataset.manifest.item_fields[category_field(opened.dataset)].name
    clouds = []
    for label in (*shown.tolist(), -1):
        mask_V = items.label_V == label if label >= 0 else ~np.isin(items.label_V, shown)
        if not mask_V.any():
            continue
        x, y = (tuple(column.round(3).tolist()) for column in point_V2[mask_V].T)
        clouds.append(Cloud(name=_category(opened, field, int(label)), x=x, y=y))
    return ScatterPanel(title=f"{row}: {domain} items, coloured by {field}", clouds=tuple(clouds))


def embed_plane(vector_VD: NDArray[np.float32]) -> NDArray[np.float64]:
    """point_V2: t-SNE by cosine, from a fixed start.

    Raises:
        DataError: scikit-learn is not installed.
    """
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise DataError(
            "the t-SNE pictures need scikit-learn, which is not installed; install the optional "
            "packages: pip install 'lcn[report]'"
        ) from error
    perplexity = min(30.0, max(2.0, (len(vector_VD) - 1) / 3))
    # On unit vectors squared Euclidean distance is twice the cosine distance.
    start = TSNE(perplexity=perplexity, init="pca", random_state=0, max_iter=500)
    return np.asarray(start.fit_transform(unit_rows(vector_VD).astype(np.float32)), np.float64)


def _category(opened: Run, field: str, label: int) -> str:
    if label < 0:
        return "others"
    try:
        return Names(opened.dataset.folder).value("item", field, label)
    except DataError:
        return f"{field} {label}"


def _table(over: dict[str, dict[str, OverSeeds]], fitted: tuple[Fitted, ...]) -> TablePanel:
    keys = list(dict.fromkeys(key for found in over.values() for key in found))
    rows = [(Cell(text=key), *(seeds_cell(found[key]) for found in over.values())) for key in keys]
    failed = ", ".join(f"{each.row.name}: {each.error}" for each in fitted if each.error)
    return TablePanel(
        title="Cluster quality by category",
        head=("measure", *over),
        rows=tuple(rows),
        note=("Mean and 95 % interval over seeds; by cosine, 10 neighbours. " + failed).strip(),
    )


def _verdicts(over: dict[str, dict[str, OverSeeds]]) -> tuple[Verdict, ...]:
    if WITH not in over or WITHOUT not in over:
        return ()
    found = []
    for key, with_crp in over[WITH].items():
        if key.endswith("chance"):
            continue
        gap = gap_over_seeds(with_crp, over[WITHOUT][key])
        evidence = (
            f"{gap.estimate:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}] over {len(gap.values)} seeds"
        )
        found.append(Claimed(f"CRP raises {key}", gap, evidence))
    return settle(found)
