"""From measured rows to panels and verdicts: how every table of the paper is shown."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from lcn.evaluate.bootstrap import Interval
from lcn.evaluate.compare import Difference
from lcn.evaluate.tables import TITLES, interval_text, p_value_text, plain, seeds_text
from lcn.experiments import responses, schedules, table1, table2, table3, table4, table5
from lcn.experiments.claims import holding
from lcn.experiments.measure import METRICS, Compared, Measured, measure
from lcn.experiments.record import (
    Bar,
    Cell,
    ForestPanel,
    Holding,
    Mark,
    Panel,
    RowRecord,
    TablePanel,
    Verdict,
    number_cell,
)
from lcn.experiments.rows import Metric, Sizes, Table
from lcn.experiments.runner import Fitted, Workspace, fit_rows
from lcn.experiments.settings import Options
from lcn.experiments.work import Finding

TABLES: dict[str, Callable[[Sizes], Table]] = {
    "table1": table1.table,
    "table2": table2.table,
    "table3": table3.table,
    "table4": table4.table,
    "table5": table5.table,
    "schedules": schedules.table,
    "responses": responses.table,
}
_RISING = ("auc", "gauc")


def run_table(name: str, workspace: Workspace) -> Finding:
    """Train, measure and judge one of the paper's tables on one dataset."""
    options = workspace.options
    table = TABLES[name](workspace.sizes).select(options.rows, beyond=options.beyond)
    fitted = fit_rows(workspace, table.rows)
    return show(workspace, table, fitted, measure(workspace, table, fitted))


def show(
    workspace: Workspace, table: Table, fitted: Sequence[Fitted], measured: Measured
) -> Finding:
    """Panels and verdicts of a measured table."""
    rising = {each.row.name: _still_rising(workspace, each) for each in fitted}
    panels: list[Panel] = [_results(table, fitted, measured, rising)]
    if measured.compared:
        panels += _forests(table, measured)
        panels.append(_differences(measured))
    if measured.strata:
        panels.append(_strata(measured))
    options = workspace.options
    panels.append(_choices(fitted, options) if options.trials > 1 else _recipes(fitted))
    return Finding(
        title=table.title,
        summary=table.note,
        panels=tuple(panels),
        verdicts=tuple(_verdict(each) for each in measured.compared if each.claim),
        rows=tuple(row_record(workspace, each) for each in fitted),
        data=plain(measured.numbers()),
    )


def row_record(workspace: Workspace, fitted: Fitted) -> RowRecord:
    """How a row came about, for the record."""
    return RowRecord(
        name=fitted.row.name,
        recipe=fitted.row.recipe,
        overrides=fitted.row.overrides,
        chosen=fitted.chosen,
        trials=tuple((trial.overrides, trial.value) for trial in fitted.trials),
        runs=tuple(workspace.store.run_folder(run).name for run in fitted.runs),
        dataset=workspace.store.folder.name,
        error=fitted.error,
    )


def judge(difference: Difference, metric: Metric, p_value: float, level: float = 0.95) -> Holding:
    """Whether a difference settles a claim of "better", after correction for all comparisons.

    It holds (or does not) when the interval leaves out 0 and the corrected p-value agrees; open
    otherwise.
    """
    if metric in _RISING:
        return holding(difference.low, difference.high, p_value, level)
    return holding(-difference.high, -difference.low, p_value, level)


def _verdict(compared: Compared) -> Verdict:
    one, p_value = compared.difference, compared.holm["auc"]
    return Verdict(
        claim=compared.claim,
        holding=judge(one.auc, "auc", p_value, one.level),
        evidence=(
            f"AUC {interval_text(one.auc, 'auc')}, p {p_value_text(one.auc.p_value)}, "
            f"Holm {p_value_text(p_value)}; GAUC {interval_text(one.gauc, 'gauc')}; "
            f"{len(one.seeds)} seed{'s' if len(one.seeds) > 1 else ''}"
        ),
    )


def _still_rising(workspace: Workspace, fitted: Fitted) -> str:
    """How many of a row's runs were best where they ended: more epochs might have done better."""
    rising = 0
    for config in fitted.runs:
        done, every = workspace.store.finished(config), config.train.evaluate_every or 1
        # With `evaluate_every` the steps behind the last look are not judged.
        if done is not None:
            rising += done.best_step == (done.steps // every * every or done.steps)
    return f"{rising} of {len(fitted.runs)}"


def _results(
    table: Table, fitted: Sequence[Fitted], measured: Measured, rising: Mapping[str, str]
) -> TablePanel:
    result_of = {result.run: result for result in measured.results}
    sources = list(dict.fromkeys(each.data for row in table.rows for each in row.quoted))
    head = ["row", *(TITLES[name] for name in METRICS), "log loss, Platt", "seeds", "still rising"]
    head += [f"{TITLES[name]} quoted, {source}" for source in sources for name in METRICS]
    best = {name: _best(measured, name) for name in METRICS}
    rows = []
    for each in fitted:
        result = result_of.get(each.row.name)
        name = Cell(text=each.row.name, detail="not in the paper" if _ours(each) else "")
        if result is None:
            failed = Cell(text="not run", detail=each.error[:160])
            cells = [name, failed, *([Cell(text="-")] * (len(METRICS) + 2))]
        else:
            cells = [name]
            for metric in METRICS:
                interval = getattr(result.intervals, metric)
                mark: Mark = "best" if interval.estimate == best[metric] else ""
                cells.append(interval_cell(interval, metric, mark))
            platt = result.platt_log_loss
            cells.append(interval_cell(platt, "log_loss") if platt else Cell(text="-"))
            cells += [Cell(text=seeds_text(result.seeds)), Cell(text=rising[each.row.name])]
        quoted = {one.data: one for one in each.row.quoted}
        for source in sources:
            for metric in METRICS:
                one = quoted.get(source)
                value = getattr(one, metric) if one else math.nan
                cell = number_cell(value)
                cells.append(cell.model_copy(update={"mark": "quoted" if one else ""}))
        rows.append(tuple(cells))
    return TablePanel(
        title="Results on the test days",
        head=tuple(head),
        rows=tuple(rows),
        note=(
            "95 % intervals over users and seeds. Still rising: runs whose best validation was "
            "their last, which more epochs might have helped. Quoted: the paper's numbers, on the "
            "paper's data; compare signs and orders, not values. " + table.note
        ).strip(),
    )


def _ours(fitted: Fitted) -> bool:
    return fitted.row.reference or fitted.row.beyond or not fitted.row.quoted


def interval_cell(interval: Interval | Difference, metric: str, mark: Mark = "") -> Cell:
    """A cell with an estimate and its interval below."""
    text, _, detail = interval_text(interval, metric).partition(" [")
    centre = interval.difference if isinstance(interval, Difference) else interval.estimate
    value = None if math.isnan(centre) else centre
    return Cell(text=text, detail=detail.rstrip("]"), value=value, mark=mark)


def _differences(measured: Measured) -> TablePanel:
    rows = []
    for each in measured.compared:
        one = each.difference
        cells = [Cell(text=f"{one.other} − {one.reference}")]
        for metric in METRICS:
            part = each.of(metric)
            cells.append(interval_cell(part, metric, _mark(part, metric)))
        for value in (one.auc.p_value, each.holm["auc"], each.holm["gauc"]):
            cells.append(Cell(text=p_value_text(value), value=value))
        rows.append(tuple(cells))
    head = ["difference", *(TITLES[name] for name in METRICS)]
    return TablePanel(
        title="Paired differences",
        head=(*head, "p (AUC)", "p (AUC, Holm)", "p (GAUC, Holm)"),
        rows=tuple(rows),
        note=(
            "The same impressions and the same resamples on both sides. Holm corrects for the "
            f"{len(measured.compared)} comparisons of this table, separately for each metric."
        ),
    )


def _forests(table: Table, measured: Measured) -> list[ForestPanel]:
    panels = []
    for reference in table.references:
        pairs = [each for each in measured.compared if each.difference.reference == reference]
        if not pairs:
            continue
        bars = tuple(
            Bar(
                name=each.difference.other,
                estimate=each.difference.auc.difference,
                low=each.difference.auc.low,
                high=each.difference.auc.high,
            )
            for each in pairs
        )
        label = f"AUC minus that of {reference}; right is better"
        panels.append(ForestPanel(title=f"Against {reference}", xlabel=label, bars=bars))
    return panels


def _strata(measured: Measured) -> TablePanel:
    ranges = list(dict.fromkeys((each.shortest, each.longest) for each in measured.strata))
    found = {(each.difference.other, each.shortest): each.difference for each in measured.strata}
    names = list(dict.fromkeys(each.difference.other for each in measured.strata))
    rows = []
    for name in names:
        cells = [Cell(text=name)]
        for shortest, _ in ranges:
            one = found.get((name, shortest))
            if one is None:
                cells.append(Cell(text="-"))
            else:
                cells.append(interval_cell(one.auc, "auc", _mark(one.auc, "auc")))
        rows.append(tuple(cells))
    share = {each.shortest: each.share for each in measured.strata}
    head = [f"{low}–{high} events ({share[low]:.0%})" for low, high in ranges]
    reference = measured.strata[0].difference.reference
    return TablePanel(
        title=f"AUC minus that of {reference}, by length of the lifelong history",
        head=("row", *head),
        rows=tuple(rows),
        note="Not corrected for many comparisons: to see where a gain sits, not whether it is one.",
    )


def _choices(fitted: Sequence[Fitted], options: Options) -> TablePanel:
    count = len(options.tuning_seeds)
    where = "a seed that is" if count == 1 else f"the same {count} seeds, which are"
    rows = []
    for each in fitted:
        value_of = {trial.overrides: trial.value for trial in each.trials}
        rows.append(
            (
                Cell(text=each.row.name),
                Cell(text=str(len(each.trials) or 1)),
                number_cell(value_of.get(each.chosen, math.nan)),
                number_cell(value_of.get((), math.nan)),
                Cell(text=", ".join(each.chosen) or "the recipe as it stands"),
            )
        )
    return TablePanel(
        title="Settings chosen by validation",
        head=("row", "trials", "as chosen", "as it stands", "chosen"),
        rows=tuple(rows),
        note=f"The same number of trials for every row, on {where} not reported.",
    )


def _recipes(fitted: Sequence[Fitted]) -> TablePanel:
    return TablePanel(
        title="Settings",
        head=("row", "recipe"),
        rows=tuple(
            (
                Cell(text=each.row.name),
                Cell(text=" ".join((each.row.recipe, *each.row.overrides))),
            )
            for each in fitted
        ),
        note="Not tuned: every row as its recipe stands.",
    )


def _mark(difference: Difference, metric: Metric) -> Mark:
    if not (difference.low > 0 or difference.high < 0):
        return "open"
    return "better" if (difference.low > 0) == (metric in _RISING) else "worse"


def _best(measured: Measured, metric: Metric) -> float | None:
    values = [getattr(result.intervals, metric).estimate for result in measured.results]
    values = [value for value in values if not math.isnan(value)]
    if len(values) < 2:
        return None
    return max(values) if metric in _RISING else min(values)
