"""The report page: whole, self-contained, escaped, reproducible."""

import builtins
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from fake_report import HOSTILE, RUNS, fake_report

from lcn.errors import DataError
from lcn.evaluate.bootstrap import Interval
from lcn.evaluate.plots import Curve, NamedInterval, curves_svg, forest_svg, reliability_svg
from lcn.report.page import render_report, write_report

VOID = {"meta", "br", "path", "use", "rect", "image"}


class Page(HTMLParser):
    """Checks that tags close in order, and gathers ids, links, scripts and text."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.links, self.tags, self.text = [], set(), [], [], []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        self.ids.add(attrs.get("id"))
        self.links += [attrs[name] for name in ("href", "src", "xlink:href") if name in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def report():
    return fake_report()


@pytest.fixture(scope="module")
def html(report):
    return render_report(report)


@pytest.fixture(scope="module")
def page(html):
    page = Page()
    page.feed(html)
    return page


def test_every_tag_closes_and_every_link_stays_on_the_page(page):
    assert page.open == []
    assert page.links
    for link in page.links:
        assert link.startswith("#") and link[1:] in page.ids, link


def test_nothing_is_fetched(html):
    without_names = re.sub(r'xmlns(:xlink)?="[^"]*"', "", html)
    assert "http" not in without_names.replace("http-equiv", "")
    assert "@import" not in html and "url(http" not in html


def test_titles_are_escaped(page, html):
    assert page.tags.count("script") == 1
    assert "<script>alert" not in html
    assert "alert('x')" in "".join(page.text)
    # Once as user, once as candidate, and wherever it was kept.
    assert "".join(page.text).count(HOSTILE) >= 3


def test_sections_hold_what_was_given(page):
    text = " ".join("".join(page.text).split())
    sections = {"data", "models", "differences", "curves", "reliability", "attention", "provenance"}
    assert sections <= page.ids
    assert "kept 200 of 843, strongest 5" in text
    assert "kept 96 of 96, strongest 5" in text
    assert "no events" in text
    assert "c001e48f" in text and "lcn demo --out demo-out" in text and "7 min 11 s" in text
    for run in RUNS:
        assert run in text
    # Three forests, two curves, one reliability plot.
    assert page.tags.count("svg") == 6


def test_numbers_on_the_page_are_those_of_the_records(report, html):
    result = report.results[-1].intervals.auc
    assert f"{result.estimate:.4f}<small>{result.low:.4f}, {result.high:.4f}</small>" in html
    assert f'data-sort="{result.estimate!r}"' in html
    difference = report.differences[-1].log_loss
    assert difference.high < 0
    assert f'class="better">−{-difference.difference:.4f} ▼' in html


def test_worse_and_open_are_marked(report):
    one = report.differences[0]
    auc = replace(one.auc, difference=-0.01, low=-0.02, high=-0.005)
    loss = replace(one.log_loss, difference=0.001, low=-0.02, high=0.02)
    html = render_report(replace(report, differences=(replace(one, auc=auc, log_loss=loss),)))
    assert 'class="worse">−0.0100 ▼<small>−0.0200, −0.0050' in html
    assert 'class="open">+0.0010<small>−0.0200, +0.0200' in html


def test_same_report_same_bytes(report, html, tmp_path):
    path = write_report(tmp_path / "new" / "report.html", report)
    assert path.read_text(encoding="utf-8") == html
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_empty_sections_are_left_out(report):
    bare = replace(report, differences=(), curves=(), reliability=(), attention=(), results=())
    page = Page()
    page.feed(render_report(bare))
    assert page.open == []
    assert not page.ids & {"differences", "curves", "reliability", "attention"}
    assert set(page.links) <= {"#data", "#models", "#provenance"}


def test_undefined_metrics_show_a_dash(report):
    nan = Interval(np.nan, np.nan, np.nan, np.nan)
    result = replace(report.results[0], intervals=replace(report.results[0].intervals, gauc=nan))
    html = render_report(replace(report, results=(result,)))
    assert not re.search(r"\bnan\b", html)
    assert 'class="">−</td>' in html


def test_unwritable_folder_teaches(report, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="choose another folder"):
        write_report(tmp_path / "file" / "report.html", report)


def test_missing_extra_teaches(report, monkeypatch):
    real = builtins.__import__

    def without_jinja(name, *args, **kwargs):
        if name == "jinja2":
            raise ModuleNotFoundError("No module named 'jinja2'", name="jinja2")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_jinja)
    with pytest.raises(DataError, match=r"jinja2, which is not installed.*lcn\[report\]"):
        render_report(report)


def test_pictures_are_deterministic_and_take_the_page_ink():
    rows = [
        NamedInterval(HOSTILE, Interval(0.1, -0.1, 0.3, 0.1)),
        NamedInterval("b", Interval(0.1, np.nan, np.nan, np.nan)),
    ]
    picture = forest_svg(rows, "difference in AUC", 0.0)
    assert picture == forest_svg(rows, "difference in AUC", 0.0)
    assert "currentColor" in picture and "#010203" not in picture
    assert "&lt;script&gt;" in picture and "$5" in picture and r"\$" not in picture


def test_curves_leave_gaps_and_refuse_nonsense():
    picture = curves_svg([Curve("a", [1, 2, 3], [0.5, np.nan, 0.4])], "steps", "loss")
    assert picture.startswith("<svg") and "nan" not in picture.lower()
    with pytest.raises(ValueError, match="one y per x"):
        curves_svg([Curve("a", [1, 2], [0.5])], "steps", "loss")
    for draw in (reliability_svg, lambda none: curves_svg(none, "x", "y")):
        with pytest.raises(ValueError, match="at least one run"):
            draw([])
