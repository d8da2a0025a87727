"""Turn the records of `make bench` into the tables of docs/performance.md.

    python benchmarks/tables.py                 # prints them
    python benchmarks/tables.py --write         # puts them between the page's markers

Reads runs/bench/*.jsonl (one record a line, as `lcn bench --json` prints them); files that are
missing leave their table out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from lcn.train.record import commit, processor

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
START, END = "<!-- tables: start -->", "<!-- tables: end -->"
Record = dict[str, Any]


def main() -> None:
    """Read, lay out, print or write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/bench"))
    parser.add_argument("--write", action="store_true", help="into docs/performance.md")
    arguments = parser.parse_args()
    text = "\n\n".join(part for part in parts(arguments.folder) if part)
    if not arguments.write:
        print(text)
        return
    page = PAGE.read_text()
    before, rest = page.split(START)
    PAGE.write_text(f"{before}{START}\n\n{text}\n\n{END}{rest.split(END)[1]}")


def parts(folder: Path) -> list[str]:
    """Provenance and every table whose records are there."""
    train = read(folder / "train.jsonl")
    return [
        provenance(train or read(folder / "score.jsonl")),
        section("Training, 100k items, one thread", pairs(train), TRAIN),
        section("Catalogue", pairs(read(folder / "items.jsonl")), SIZES),
        section("Lengths of histories", pairs(read(folder / "lengths.jsonl")), LENGTHS),
        section("Threads", pairs(read(folder / "threads.jsonl")), LENGTHS),
        section("Memory, batch 2048", pairs(read(folder / "memory.jsonl")), TRAIN),
        section("Scoring candidates of one user", pairs(read(folder / "score.jsonl")), SCORE),
    ]


def read(path: Path) -> list[Record]:
    """The records of one file, if it is there."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def pairs(records: Sequence[Record]) -> list[tuple[Record | None, Record]]:
    """Each fast record with the padded one of the same case."""
    found: list[tuple[Record | None, Record]] = []
    slow: dict[tuple[Any, ...], Record] = {}
    for record in records:
        names = ("backbone", "n", "items", "group", "lengths", "threads")
        case = tuple(record.get(name) for name in names)
        if record["variant"] == "reference":
            slow[case] = record
        else:
            found.append((slow.get(case), record))
    return found


def provenance(records: Sequence[Record]) -> str:
    """Where the figures come from."""
    if not records:
        return ""
    first = records[0]
    text = f"`make bench`, commit {commit()}, {processor()}, {date.today()}"
    if "matrix_gflop_per_s" not in first:
        return text + "."
    loads = [record["load"] for record in records]
    return (
        f"{text}; load {min(loads):.1f} to {max(loads):.1f}; allocator: {first['allocator']}. "
        f"{first['matrix_gflop_per_s']:.0f} GFLOP/s in a large matrix product, "
        f"{first['read_gib_per_s']:.1f} GiB/s reading."
    )


def value(name: str, form: str = ",.0f") -> Callable[[Record | None, Record], str]:
    """A column of the fast record."""
    return lambda slow, fast: "-" if fast.get(name) is None else format(fast[name], form)


def of_reference(name: str, form: str = ",.0f") -> Callable[[Record | None, Record], str]:
    """A column of the padded record."""
    return lambda slow, fast: (
        "-" if slow is None or slow.get(name) is None else format(slow[name], form)
    )


def share(slow: Record | None, fast: Record) -> str:
    """How many times the padded path's memory is ours."""
    if slow is None or not slow.get("peak_mib") or not fast.get("peak_mib"):
        return "-"
    return f"{slow['peak_mib'] / fast['peak_mib']:.0f}x"


def faster(slow: Record | None, fast: Record) -> str:
    """How many times the padded request takes."""
    return "-" if slow is None else f"{slow['p50_ms'] / fast['p50_ms']:.0f}x"


Column = tuple[str, Callable[[Record | None, Record], str]]
TRAIN: list[Column] = [
    ("backbone", value("backbone", "")),
    ("N", value("n", ",")),
    ("g", value("group", "")),
    ("batch", value("batch", "")),
    ("padded/s", of_reference("samples_per_s")),
    ("fast/s", value("samples_per_s")),
    ("fast/CPU s", value("samples_per_cpu_s")),
    ("speed-up", value("speedup", ".1f")),
    ("MiB padded", of_reference("peak_mib")),
    ("MiB fast", value("peak_mib")),
    ("less memory", share),
    ("ideal/s", value("bound_samples_per_s")),
    ("times ideal", value("over_bound", ".1f")),
    ("reachable/s", value("reachable_samples_per_s")),
    ("times reachable", value("over_reachable", ".1f")),
    ("waiting", value("wait_share", ".1%")),
]
SIZES: list[Column] = [
    ("backbone", value("backbone", "")),
    ("N", value("n", ",")),
    ("lengths", value("lengths", "")),
    ("items", value("items", ",")),
    ("g", value("group", "")),
    ("threads", value("threads", "")),
    ("padded/s", of_reference("samples_per_s")),
    ("fast/s", value("samples_per_s")),
    ("fast/CPU s", value("samples_per_cpu_s")),
    ("speed-up", value("speedup", ".1f")),
    ("time over the first", value("over_first_items", ".2f")),
    ("distinct items", value("unique_items", ",")),
    ("waiting", value("wait_share", ".1%")),
]
LENGTHS = [column for column in SIZES if column[0] != "time over the first"]
SCORE: list[Column] = [
    ("backbone", value("backbone", "")),
    ("N", value("n", ",")),
    ("candidates", value("candidates", ",")),
    ("threads", value("threads", "")),
    ("padded p50 ms", of_reference("p50_ms", ".1f")),
    ("p50 ms", value("p50_ms", ".1f")),
    ("p99 ms", value("p99_ms", ".1f")),
    ("encode ms", value("encode_ms", ".1f")),
    ("times faster", faster),
]


def section(
    title: str, found: Sequence[tuple[Record | None, Record]], columns: Sequence[Column]
) -> str:
    """One table under its title."""
    if not found:
        return ""
    lines = [
        f"### {title}\n",
        "| " + " | ".join(name for name, _ in columns) + " |",
        "|" + "---|" * len(columns),
    ]
    lines += ["| " + " | ".join(show(*pair) for _, show in columns) + " |" for pair in found]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
