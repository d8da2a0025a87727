"""Pictures of an evaluation as SVG text, for embedding in a page.

Text, axes and grid take the colour of the page around them (`currentColor`), so a picture follows
light and dark; lines keep their colours. The same input gives the same text. Sizes are chosen for
reading at the width of a phone. Shapes: N points of a curve.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from lcn.evaluate.bootstrap import Interval
from lcn.evaluate.checks import Float64, Int64
from lcn.evaluate.metrics import Calibration

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#3d7fd9", "#e08a1e", "#2ca37a", "#c2549d", "#d6524a", "#7a6fd0", "#5f9ea0", "#9a7b4f")
"""Line colours, readable on white and on near-black; they repeat after eight."""
_MARKERS = "osD^vPX*"
_INK = "#010203"  # replaced by currentColor
_WIDTH = 4.6  # inches: at 390 pixels, 9 points are about 11 pixels
_LEGEND_LETTERS, _MARK_LETTERS = 60, 6  # across the picture; of a line's mark and the gap
_FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans'"
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "lcn",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 1.6,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": _INK,
    "grid.alpha": 0.13,
    "grid.linewidth": 0.6,
}


@dataclass(frozen=True, slots=True)
class Curve:
    """One line of a learning-curve plot."""

    name: str
    x_N: Sequence[float]
    y_N: Sequence[float]


@dataclass(frozen=True, slots=True)
class NamedCalibration:
    """One run's line in a reliability plot."""

    name: str
    table: Calibration


@dataclass(frozen=True, slots=True)
class NamedInterval:
    """One row of a forest plot."""

    name: str
    interval: Interval


def reliability_svg(runs: Sequence[NamedCalibration]) -> str:
    """Draw click rate against predicted probability, one point per bin of equal mass.

    Bars are 95 % Wilson intervals of the click rate (impressions counted as independent).

    Args:
        runs: what `calibration` returned, with names for the legend.

    Raises:
        ValueError: nothing to draw.
    """
    _check_any(runs, "reliability plot")

    def draw(axes: Axes) -> None:
        highest = 0.0
        for i, run in enumerate(runs):
            table = run.table
            low_B, high_B = _wilson(table.rate_B, table.impressions_B)
            colour = COLOURS[i % len(COLOURS)]
            axes.vlines(table.probability_B, low_B, high_B, color=colour, alpha=0.35, linewidth=1.2)
            axes.plot(
                table.probability_B,
                table.rate_B,
                color=colour,
                marker=_MARKERS[i % len(_MARKERS)],
                markersize=3.2,
                linewidth=1.1,
                label=_plain(f"{run.name} (ECE {table.ece:.3f})"),
            )
            highest = max(highest, float(table.probability_B.max()), float(high_B.max()))
        limit = min(1.0, 1.04 * highest)
        axes.plot([0, limit], [0, limit], color=_INK, alpha=0.55, linewidth=0.8, linestyle="--")
        axes.set(xlim=(0, limit), ylim=(0, limit), aspect="equal")
        axes.set_xlabel("predicted click probability")
        axes.set_ylabel("observed click rate")
        axes.legend(loc="upper left", borderaxespad=0.2)

    return _svg(draw, 4.4, "Reliability: observed click rate against predicted probability")


def curves_svg(curves: Sequence[Curve], xlabel: str, ylabel: str) -> str:
    """Draw learning curves; points that are not finite leave a gap.

    Args:
        curves: lines, in the order of the legend.
        xlabel: what x counts, with its unit, e.g. `training samples`; thousands and millions
            are marked k and M.
        ylabel: what y measures, with its unit, e.g. `validation log loss (nats)`.

    Raises:
        ValueError: nothing to draw, or a curve whose x and y differ in length.
    """
    from matplotlib.ticker import EngFormatter

    _check_any(curves, "learning-curve plot")
    for curve in curves:
        if len(curve.x_N) != len(curve.y_N):
            raise ValueError(
                f"curve {curve.name!r} has {len(curve.x_N)} x values and {len(curve.y_N)} y "
                "values; give one y per x"
            )

    def draw(axes: Axes) -> None:
        for i, curve in enumerate(curves):
            y_N = np.asarray(curve.y_N, dtype=np.float64)
            axes.plot(
                np.asarray(curve.x_N, dtype=np.float64),
                np.where(np.isfinite(y_N), y_N, np.nan),
                color=COLOURS[i % len(COLOURS)],
                marker=_MARKERS[i % len(_MARKERS)] if len(y_N) <= 25 else None,
                markersize=3.2,
                linewidth=1.3,
                label=_plain(curve.name),
            )
        axes.locator_params(axis="x", nbins=6)
        ends = [abs(float(curve.x_N[-1])) for curve in curves if len(curve.x_N)]
        if max(ends, default=0.0) >= 1000:
            axes.xaxis.set_major_formatter(EngFormatter(sep="\N{THIN SPACE}"))
        axes.set_xlabel(_plain(xlabel))
        axes.set_ylabel(_plain(ylabel))
        _legend_above(axes, len(curves))

    return _svg(draw, 3.1, f"{ylabel} against {xlabel}")


def scatter_svg(clouds: Sequence[Curve], title: str) -> str:
    """Draw points in the plane, a colour per cloud; axes have no meaning and no ticks.

    Args:
        clouds: points, in the order of the legend; a ninth and later cloud repeats colours.
        title: said to readers who cannot see the picture.

    Raises:
        ValueError: nothing to draw.
    """
    _check_any(clouds, "scatter plot")

    def draw(axes: Axes) -> None:
        for i, cloud in enumerate(clouds):
            axes.scatter(
                np.asarray(cloud.x_N, dtype=np.float64),
                np.asarray(cloud.y_N, dtype=np.float64),
                s=5,
                linewidths=0,
                alpha=0.75,
                color="#8a8f98" if cloud.name == "others" else COLOURS[i % len(COLOURS)],
                label=_plain(cloud.name),
                zorder=1 if cloud.name == "others" else 2,
            )
        axes.set_xticks([])
        axes.set_yticks([])
        axes.grid(visible=False)
        axes.set_aspect("equal", adjustable="datalim")
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)
        _legend_above(axes, len(clouds))

    return _svg(draw, 4.6, title)


def forest_svg(rows: Sequence[NamedInterval], xlabel: str, reference: float | None = None) -> str:
    """Draw estimates with their intervals, one row each, the first at the top.

    Args:
        rows: what to draw; a row whose bounds are NaN shows its estimate alone.
        xlabel: the metric with its unit.
        reference: draws a vertical line, e.g. at 0 for differences; rows whose interval does not
            leave it out are grey.

    Raises:
        ValueError: nothing to draw.
    """
    _check_any(rows, "forest plot")

    def draw(axes: Axes) -> None:
        for i, row in enumerate(rows):
            one, colour = row.interval, COLOURS[0]
            if reference is not None and not (one.low > reference or one.high < reference):
                colour = "#8a8f98"
            axes.plot([one.low, one.high], [i, i], color=colour, linewidth=2.2)
            axes.plot([one.estimate], [i], color=colour, marker="o", markersize=5.5)
        if reference is not None:
            axes.axvline(reference, color=_INK, alpha=0.6, linewidth=0.8)
        axes.set_yticks(range(len(rows)), [_plain(row.name) for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(visible=False, axis="y")
        axes.locator_params(axis="x", nbins=5)
        axes.margins(x=0.06)
        axes.set_xlabel(_plain(xlabel))

    return _svg(draw, 0.75 + 0.3 * len(rows), f"{xlabel}: estimates with intervals")


def _svg(draw: Callable[[Axes], None], height: float, title: str) -> str:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # A reader's own matplotlib settings must not change the picture.
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_SETTINGS)
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        axes = figure.add_subplot()
        axes.grid(visible=True)
        draw(axes)
        return _inline(figure, title)


def _inline(figure: Figure, title: str) -> str:
    """Turn a figure into an <svg> element that scales and takes the page's ink and fonts."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    head = f'<svg class="plot" role="img" aria-label="{escape(title)}"'
    text = re.sub(r'^<svg (.*?)width="[^"]*" height="[^"]*"', rf"{head} \1", text, count=1)
    # The style sheet of an inline picture would reach the page around it.
    text = text.replace("*{stroke-linejoin", "svg.plot *{stroke-linejoin")
    text = text.replace("'DejaVu Sans'", _FONTS).replace(_INK, "currentColor")
    return text.strip()


def as_file(svg: str) -> str:
    """A picture of this module as the text of a file of its own, which brings its own ink."""
    ink = "<style>svg{color:#1f2328}@media(prefers-color-scheme:dark){svg{color:#d1d7e0}}</style>"
    head, _, body = svg.partition(">")
    return f"{head}>{ink}{body}\n"


def _legend_above(axes: Axes, entries: int) -> None:
    """As many columns as the longest name leaves room for: a wider legend would shrink the axes."""
    longest = max((len(label) for label in axes.get_legend_handles_labels()[1]), default=1)
    fitting = max(1, _LEGEND_LETTERS // (longest + _MARK_LETTERS))
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1.01),
        ncols=min(3, entries, fitting),
        borderaxespad=0,
        columnspacing=1.2,
    )


def _plain(text: str) -> str:
    """Keep a dollar a dollar: names are no formulas."""
    return text.replace("$", r"\$")


def _check_any(items: Sequence[object], what: str) -> None:
    if not items:
        raise ValueError(f"a {what} needs at least one run, got none; leave the picture out")


def _wilson(rate_B: Float64, impressions_B: Int64) -> tuple[Float64, Float64]:
    z2 = 1.96**2
    centre_B = (rate_B + z2 / (2 * impressions_B)) / (1 + z2 / impressions_B)
    half_B = (
        1.96
        * np.sqrt(rate_B * (1 - rate_B) / impressions_B + z2 / (4 * impressions_B**2))
        / (1 + z2 / impressions_B)
    )
    return np.maximum(0, centre_B - half_B), np.minimum(1, centre_B + half_B)
