"""Text files with malformed lines: a copy without them, and a note of each.

The SQL engine finds out quickly that a file has such lines, but when it goes on after one it may
skip others without a word (the rest of a read buffer). So its own recovery is not used: a file it
complains of is read once more here, slowly and surely, record by record.
"""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from lcn.data.mapping import Csv
from lcn.errors import DataError

_LONGEST_RECORD = 1 << 20
_SHOWN = 1000


@dataclass(frozen=True, slots=True)
class Malformed:
    """A line that was left out."""

    reason: str
    number: int
    """From 1 in its file, the header not counted; other lines of a record that spans several are
    not counted either, unless the record is malformed."""
    kept: int
    """Readable records before it."""
    text: str


def mend(file: str, copy: Path, form: Csv, delimiter: str, width: int) -> list[Malformed]:
    """Copy a delimited text file without the lines that cannot be read; return those.

    Args:
        file: the file, compressed if it ends in .gz.
        copy: where the readable records go, uncompressed.
        width: columns a record must have.

    Raises:
        DataError: a quote is never closed.
    """
    bad, kept = list[Malformed](), 0
    with _open(file) as lines, copy.open("wb") as out:
        for line, record in _records(lines, form, delimiter, file):
            if line == 1 and form.header:
                out.write(record)
                continue
            reason = _fault(record, form.quote, delimiter, width)
            if reason is None:
                out.write(record)
                kept += 1
            elif reason:
                # Each line counts: a quote that is closed lines later takes them all with it.
                for part in record.decode(errors="replace").splitlines():
                    bad.append(Malformed(reason, kept + len(bad) + 1, kept, part[:_SHOWN]))
    return bad


def _open(file: str) -> BinaryIO:
    return gzip.open(file, "rb") if file.endswith(".gz") else open(file, "rb")  # type: ignore[return-value]


def _records(lines: BinaryIO, form: Csv, delimiter: str, file: str) -> Iterator[tuple[int, bytes]]:
    """Yield records with the number of their first line; a quoted value may span lines."""
    begun, parts, length, is_open = 1, list[bytes](), 0, False
    quote, between = form.quote.encode(), delimiter.encode()
    for number, line in enumerate(lines, start=1):
        if not parts:
            begun = number
        parts.append(line)
        length += len(line)
        is_open = bool(quote) and _ends_open(line, quote, between, is_open)
        if not is_open:
            yield begun, b"".join(parts)
            parts, length = [], 0
        elif length > _LONGEST_RECORD:
            break
    if is_open:
        raise DataError(
            f"the quote in line {begun} of {file} is never closed: "
            f"{parts[0].decode(errors='replace')[:80]!r}; mend the line, or set csv.quote to '' if "
            "quotes are ordinary characters in this file"
        )


def _ends_open(line: bytes, quote: bytes, delimiter: bytes, is_open: bool) -> bool:
    """Whether a quoted value goes on behind the line. A quote opens one only where a value starts:
    elsewhere, as in 5" tv, it is an ordinary character."""
    at = 0
    while True:
        if not is_open:
            if not line.startswith(quote, at):
                at = line.find(delimiter, at) + len(delimiter)
                if at < len(delimiter):
                    return False
                continue
            is_open, at = True, at + len(quote)
        at = line.find(quote, at) + len(quote)
        if at < len(quote):
            return True
        if line.startswith(quote, at):  # doubled: a quote within the value
            at += len(quote)
        else:
            is_open = False


def _fault(record: bytes, quote: str, delimiter: str, width: int) -> str | None:
    """Say what is wrong with a record; nothing ("") for a blank line, which is passed over."""
    try:
        text = record.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        return "broken UTF-8"
    if not text:
        return ""
    if not quote or quote not in text:
        found = text.count(delimiter) + 1
    else:
        try:
            lines = io.StringIO(text, newline="")
            reader = csv.reader(lines, delimiter=delimiter, quotechar=quote, strict=True)
            found = sum(len(row) for row in reader)
        except csv.Error:
            return "malformed line"
    return None if found == width else "malformed line"
