"""The results site: every number with its provenance, nothing lost, nothing unescaped."""

from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from lcn.cli import cli
from lcn.errors import DataError
from lcn.experiments.record import (
    Bar,
    Cell,
    Cloud,
    CurvePanel,
    ExperimentRecord,
    ForestPanel,
    Line,
    Origin,
    RowRecord,
    ScatterPanel,
    TablePanel,
    Verdict,
    count_runs,
    keep_fullest,
    load_record,
    save_record,
)
from lcn.experiments.report import publish, read_records, write_site
from lcn.experiments.report_html import render_site
from lcn.experiments.report_markdown import render_markdown
from lcn.experiments.report_parts import page_name


def origin(**more) -> Origin:
    given = {
        "command": "lcn experiment table5 data/toy",
        "commit": "abc123",
        "version": "0.1.0",
        "machine": "machine x 2",
        "date": datetime(2026, 1, 2, 3, 4, tzinfo=UTC),
        "seconds": 12.0,
        "dataset": "toy",
        "fingerprint": "f00",
        "seeds": (0, 1),
        "trials": 3,
        "settings": ("model.width=8",),
        "sizes": (12, 4),
    }
    return Origin(**{**given, **more})


def record(**more) -> ExperimentRecord:
    table = TablePanel(
        title="Results",
        head=("row", "AUC", "AUC quoted"),
        rows=(
            (Cell(text="LCN <b>"), Cell(text="0.7000", detail="0.6900, 0.7100", value=0.7,
                                        mark="best"), Cell(text="0.7294", mark="quoted")),
            (Cell(text="a|b"), Cell(text="-"), Cell(text="-")),
        ),
        note="A note.",
    )  # fmt: skip
    panels = (
        table,
        ForestPanel(title="Forest", xlabel="AUC", zero=None,
                    bars=(Bar(name="x", estimate=0.5, low=float("nan"), high=float("nan")),)),
        CurvePanel(title="Curve", xlabel="K1", ylabel="consistency",
                   lines=(Line(name="l", x=tuple(range(51)), y=tuple(range(51))),)),
        ScatterPanel(title="Scatter", clouds=(Cloud(name="c", x=(0.0, 1.0), y=(1.0, 0.0)),)),
    )  # fmt: skip
    given = {
        "experiment": "table5",
        "title": "Everything",
        "panels": panels,
        "verdicts": (
            Verdict(claim="A beats B", holding="open", evidence="AUC +0.1"),
            Verdict(claim="C beats D", holding="holds", evidence="AUC +0.2"),
        ),
        "origin": origin(),
    }
    return ExperimentRecord(**{**given, **more})


@pytest.fixture
def store(tmp_path: Path) -> Path:
    save_record(tmp_path / "toy-f00" / "records" / "table5.json", record())
    quick = record(origin=origin(quick=True))
    save_record(tmp_path / "toy-f00" / "records" / "table5-quick.json", quick)
    return tmp_path


def test_a_record_survives_its_file(store):
    path = store / "toy-f00" / "records" / "table5.json"
    again = load_record(path)
    assert again.model_dump_json() == record().model_dump_json()
    path.write_text("{}")
    with pytest.raises(DataError, match="run the experiment again"):
        load_record(path)


def test_markdown_has_the_numbers_and_where_they_come_from():
    text = render_markdown(record())
    assert "| LCN <b> | **0.7000** [0.6900, 0.7100] | *0.7294* |" in text
    assert r"a\|b" in text and "A note." in text
    for fact in ("abc123", "lcn experiment table5 data/toy", "0, 1", "machine x 2", "2026-01-02",
                 "model.width=8", "f00"):  # fmt: skip
        assert fact in text
    assert "| C beats D | holds |" in text
    # A long curve is thinned, its last point stays.
    assert "50.0000" in text and "49.0000" not in text


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.links, self.ids = [], [], set()

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if given.get("id"):
            self.ids.add(given["id"])
        for name in ("src", "href"):
            if name in given and tag != "use":
                self.links.append(given[name])


def test_the_page_needs_nothing_else_and_escapes():
    page = render_site([record()])
    assert "LCN &lt;b&gt;" in page and "<b>" not in page
    tags = Tags()
    tags.feed(page)
    assert tags.links and all(link.startswith("#") for link in tags.links)
    assert {link[1:] for link in tags.links if "-" in link} <= tags.ids
    assert page.count("<svg") == 3
    assert page.index("C beats D") < page.index("A beats B")
    assert "Of 2 claims 1 hold, 0 do not, 1 are open." in page


def test_quick_looks_count_only_when_asked(store):
    assert len(read_records(store)) == 1
    both = read_records(store, quick=True)
    assert sorted(page_name(each) for each in both) == ["table5-toy", "table5-toy-quick"]
    assert "Not a result" in render_markdown(both[0] if both[0].origin.quick else both[1])
    with pytest.raises(DataError, match="no findings"):
        read_records(store / "nothing")


def test_the_newest_finding_of_a_dataset_counts(store):
    newer = origin(fingerprint="f01", date=datetime(2026, 1, 3, tzinfo=UTC))
    save_record(store / "toy-f01" / "records" / "table5.json", record(origin=newer))
    save_record(store / "toy-a00" / "records" / "table5.json", record(origin=origin(seconds=1.0)))
    (found,) = read_records(store)
    assert found.origin.fingerprint == "f01"


def _row(runs: int, name: str = "x") -> RowRecord:
    named = tuple(f"run{number}" for number in range(runs))
    return RowRecord(name=name, recipe="lap", overrides=(), chosen=(), trials=(), runs=named)


def test_a_finding_of_fewer_runs_does_not_replace_a_fuller_one(tmp_path):
    path = tmp_path / "table5.json"
    assert not keep_fullest(path, record(rows=(_row(0),)))
    assert not path.exists()
    assert not keep_fullest(path, record(rows=(_row(3), _row(3))))
    assert "these are 3 runs" in keep_fullest(path, record(rows=(_row(3),)))
    assert len(load_record(path).rows) == 2
    assert not keep_fullest(path, record(rows=(_row(5), _row(5))))
    assert count_runs(load_record(path)) == 10
    assert "without 'x'" in keep_fullest(path, record(rows=(_row(30, "y"),)))


def test_what_was_published_stays_beside_what_another_store_found(tmp_path):
    docs, later = tmp_path / "docs", datetime(2026, 1, 9, tzinfo=UTC)

    def publish_one(**more) -> list[str]:
        one = record(**more)
        path = tmp_path / "stores" / str(len(list((tmp_path / "stores").glob("*"))))
        save_record(path / "toy" / "records" / "table5.json", one)
        return publish(path, docs)

    (tmp_path / "stores").mkdir()
    assert not publish_one(rows=(_row(3),), data={"many": [1.0]})
    assert not publish_one(rows=(_row(3),), origin=origin(dataset="other"))
    assert [each.origin.dataset for each in read_records(docs)] == ["other", "toy"]
    assert read_records(docs)[1].data == {} and len(read_records(docs)[1].panels) == 4

    long_ago = origin(date=datetime(2025, 1, 1, tzinfo=UTC))
    assert not publish_one(title="older", rows=(_row(3),), origin=long_ago)
    assert len(publish_one(title="fewer", rows=(_row(1),), origin=origin(date=later))) == 1
    assert read_records(docs)[1].title == "Everything"
    assert not publish_one(title="older, fuller", rows=(_row(9),), origin=long_ago)
    assert read_records(docs)[1].title == "older, fuller"
    quick = origin(date=later, quick=True)
    assert "nothing to publish" in publish_one(rows=(_row(3),), origin=quick)[0]
    assert not publish_one(title="newer", rows=(_row(9),), origin=origin(date=later))
    assert [each.title for each in read_records(docs, quick=True)] == ["Everything", "newer"]

    # Another dataset whose page has the same name, and a file that is no record any more.
    assert "finding of table5 on toy;" in publish_one(origin=origin(dataset="TOY"))[0]
    (docs / "records" / "table5-toy.json").write_text("<<<<<<< HEAD")
    assert not publish_one(title="mended", rows=(_row(1),))
    assert read_records(docs)[1].title == "mended"


def test_pages_are_the_same_wherever_they_are_made(tmp_path):
    """Published records alone give the pages that the store gave."""
    docs, again = tmp_path / "docs", tmp_path / "again"
    save_record(tmp_path / "store" / "toy" / "records" / "table5.json", record())
    publish(tmp_path / "store", docs)
    write_site(read_records(docs), tmp_path / "a.html", docs)
    (again / "records").mkdir(parents=True)
    for path in (docs / "records").iterdir():
        (again / "records" / path.name).write_bytes(path.read_bytes())
    write_site(read_records(again), tmp_path / "b.html", again)
    names = sorted(str(path.relative_to(docs)) for path in docs.rglob("*") if path.is_file())
    assert names == ["pictures/table5-toy-3.svg", "pictures/table5-toy-4.svg",
                     "records/table5-toy.json", "table5-toy.md", "what-holds.md"]  # fmt: skip
    assert all((docs / name).read_bytes() == (again / name).read_bytes() for name in names)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    page = (docs / "table5-toy.md").read_text()
    files = {place: f"pictures/table5-toy-{place + 1}.svg" for place in (2, 3)}
    assert page == render_markdown(record(), files)
    assert "![Curve](pictures/table5-toy-3.svg)" in page and "see the HTML page" not in page
    picture = (docs / "pictures" / "table5-toy-3.svg").read_text()
    fewer = record(panels=record().panels[2:])
    write_site([fewer], tmp_path / "a.html", docs)
    shown = sorted(path.name for path in (docs / "pictures").iterdir())
    assert shown == ["table5-toy-1.svg", "table5-toy-2.svg"]
    assert ElementTree.fromstring(picture).tag.endswith("svg") and "prefers-color-scheme" in picture


def test_the_command_writes_the_site(store, tmp_path):
    docs = tmp_path / "docs"
    given = ["experiment", "report", "--store", str(store), "--docs", str(docs)]
    result = CliRunner().invoke(cli, given)
    assert result.exit_code == 0, result.output
    shown = sorted(path.name for path in docs.iterdir())
    assert shown == ["pictures", "records", "table5-toy.md", "what-holds.md"]
    assert (store / "report.html").exists()
    assert "[table5](table5-toy.md)" in (docs / "what-holds.md").read_text()

    # On a machine whose store is empty the published findings are shown.
    html, empty = tmp_path / "page.html", str(tmp_path / "empty")
    again = ["experiment", "report", "--store", empty, "--docs", str(docs), "--html", str(html)]
    result = CliRunner().invoke(cli, again)
    assert result.exit_code == 0, result.output
    assert "C beats D" in html.read_text()


def test_lines_of_other_points_stand_under_their_own():
    lines = (
        Line(name="SIM", x=(0.1, 0.5), y=(1.0, 3.0)),
        Line(name="LCN", x=(0.0, 0.1, 0.5), y=(4.0, 5.0, 6.0)),
    )
    curve = CurvePanel(title="c", xlabel="share", ylabel="gain", lines=lines)
    page = render_markdown(record(panels=(curve,)))
    assert "| gain by share | 0 | 0.1 | 0.5 |" in page
    assert "| SIM | - | 1.0000 | 3.0000 |" in page and "| LCN | 4.0000 | 5.0000 | 6.0000 |" in page
