"""The mapping file: which column of whose log is the user, the item, the time, the label.

Every source ends in one `Mapping`; preparation knows nothing else. Columns are named as they are
in the files. Wherever a column of a table is named (user, item, key, time, label, a context or
item field, a domain rule, ...), an SQL expression in DuckDB's dialect over that table's columns
stands as well: an item keyed by two columns, an hour from a time. Columns of delimited text are
text (`TRY_CAST(price AS DOUBLE)`). Expressions of events and impressions reach the columns of the
items table as `items.<column>`. docs/data.md has a complete example.
"""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, PositiveInt, model_validator

from lcn.config import Config, Share, load_config
from lcn.errors import nearest

TimeUnit = Literal["s", "ms", "us", "ns", "iso"]


def _as_text(value: Any) -> Any:
    """YAML reads an unquoted 2024-03-09 as a date; here it is the text again."""
    return value.isoformat() if isinstance(value, date) else value


Moment = Annotated[str, BeforeValidator(_as_text)]
"""ISO date or date-time."""


class Csv(Config):
    """How delimited text is read; Parquet files ignore it."""

    delimiter: str = ","
    header: bool = True
    columns: tuple[str, ...] = ()
    """Column names when the file has no header, or to replace its header."""
    quote: str = '"'
    null: tuple[str, ...] = ("", "NULL")
    """Texts that mean "no value"."""

    @model_validator(mode="after")
    def _single_characters(self) -> Csv:
        if len(self.delimiter) != 1:
            raise ValueError(
                f"csv.delimiter must be one character, got {self.delimiter!r}; replace it in the "
                "files, for example by a tab"
            )
        if len(self.quote) > 1:
            raise ValueError(f"csv.quote must be one character or empty, got {self.quote!r}")
        return self


class Source(Config):
    """A table in one or more files; a folder of files is named by a glob."""

    files: tuple[str, ...]
    """Paths or globs, relative to the mapping file. `.parquet`, `.csv`, `.tsv`, `.txt`, `.gz`."""
    csv: Csv = Csv()
    where: str | None = None
    """SQL condition on rows to keep at all (rows outside it are not counted as rejected)."""


class Events(Source):
    """Behaviours of users: what histories are made of."""

    user: str
    item: str
    time: str
    time_unit: TimeUnit
    arrival: str | None = None
    """Column with the time (same unit) at which the event became known; default: its time.
    A history holds only events known strictly before the impression."""
    domain: Literal["source", "target"] | None = None
    """The domain of all rows of this table."""
    domain_rule: str | None = None
    """Instead of `domain`: an SQL expression that is true for rows of the target domain."""
    event_id: str | None = None
    """Rows with an id seen before are duplicates. Default: equal in every mapped column."""
    context: dict[str, str] = {}
    """Event context fields: name -> column or SQL expression (categorical)."""

    @model_validator(mode="after")
    def _one_domain(self) -> Events:
        if (self.domain is None) == (self.domain_rule is None):
            raise ValueError("give exactly one of domain and domain_rule")
        return self


class Impressions(Source):
    """What was shown in the target domain, with its label."""

    user: str
    item: str
    time: str
    time_unit: TimeUnit
    label: str
    """Column or SQL expression giving 0 or 1."""
    dwell: str | None = None
    """Column or SQL expression giving seconds of stay time."""
    target_rule: str | None = None
    """SQL expression, true for impressions of the target domain; others are dropped."""
    probability: str | None = None
    """True click probability, where it is known (synthetic logs); kept aside, never a feature."""
    impression_id: str | None = None
    context: dict[str, str] = {}
    """Request context: known before the impression."""
    candidate: dict[str, str] = {}
    """Candidate-only fields, as columns of this table or `items.<column>`."""


class Items(Source):
    """What is known of items."""

    key: str
    title: str | None = None
    fields: dict[str, str] = {}
    """Item fields shared by both domains: name -> column or SQL expression (categorical)."""


class Users(Source):
    """What is known of users."""

    key: str
    fields: dict[str, str] = {}


_TENTHS = (0.1, 0.1)


class SplitRule(Config):
    """Where validation and test begin: dates in the mapping's time zone, or shares of impressions.

    Dates go with the shares' defaults alone. With shares, the bounds are moved to the next
    impression time, so equal times stay together.
    """

    validation_from: Moment | None = None
    """ISO date or date-time in `timezone`."""
    test_from: Moment | None = None
    validation_share: Share = _TENTHS[0]
    test_share: Share = _TENTHS[1]

    @model_validator(mode="after")
    def _one_rule(self) -> SplitRule:
        if (self.validation_from is None) != (self.test_from is None):
            raise ValueError("give both validation_from and test_from, or neither")
        if self.validation_from is not None and (self.validation_share, self.test_share) != _TENTHS:
            raise ValueError(
                "give validation_from and test_from, or validation_share and test_share, not both"
            )
        if self.validation_share + self.test_share >= 1:
            raise ValueError(
                "validation_share and test_share leave nothing to train on: together they must be "
                "less than 1"
            )
        return self


class Limits(Config):
    """When input stops being plausible."""

    earliest: Moment = "1990-01-01"
    """Times before this are rejected as absurd (wrong unit, zero, negative)."""
    latest: Moment | None = None
    """Times after this are rejected. Without it 2100-01-01: a fixed date, so that results do not
    depend on the clock."""
    max_rejected_share: Share = 0.01
    """More rejected rows than this share of any table fails the job."""
    min_count: PositiveInt = 1
    """Values seen fewer times in training days are unknown."""


class Responses(Config):
    """What an event context field says about the user's response: clicked, or only shown.

    Where a log says so, source-domain events are impressions too, and training can begin with them
    (`train.source_steps`).
    """

    field: str
    """An event context field."""
    clicked: tuple[str, ...]
    """Its values, as text, that are like a click of the target domain."""
    shown: tuple[str, ...]
    """Its values that are like no click; any other value leaves the response unknown."""

    @model_validator(mode="after")
    def _two_kinds(self) -> Responses:
        if not self.clicked or not self.shown:
            raise ValueError("responses needs values of both kinds: give clicked and shown")
        both = sorted(set(self.clicked) & set(self.shown))
        if both:
            raise ValueError(f"responses: {both} cannot be clicked and shown at once")
        return self


class Mapping(Config):
    """A whole mapping file."""

    name: str
    licence: str = "not stated"
    timezone: str = "UTC"
    """IANA name of the zone that dates, hours and naive times are read in."""
    events: tuple[Events, ...]
    impressions: tuple[Impressions, ...]
    items: tuple[Items, ...] = ()
    users: tuple[Users, ...] = ()
    responses: Responses | None = None
    split: SplitRule = SplitRule()
    limits: Limits = Limits()

    @model_validator(mode="after")
    def _same_context(self) -> Mapping:
        names = {tuple(sorted(table.context)) for table in self.events}
        if len(names) > 1:
            raise ValueError(f"all event tables must map the same context fields, got {names}")
        known = list(self.events[0].context) if self.events else []
        if self.responses and self.responses.field not in known:
            raise ValueError(
                f"responses.field: no event context field {self.responses.field!r}"
                f"{nearest(self.responses.field, known)}"
            )
        return self


def read_mapping(path: Path | str) -> Mapping:
    """Read a mapping file (YAML); unknown keys name their nearest right one.

    Raises:
        ConfigError: as `lcn.config.load_config`.
    """
    return load_config(Mapping, path)
