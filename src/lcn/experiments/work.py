"""What every experiment returns, whatever it does."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lcn.experiments.record import Panel, RowRecord, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Panels, verdicts and numbers, before they get their provenance."""

    title: str
    summary: str = ""
    panels: tuple[Panel, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    rows: tuple[RowRecord, ...] = ()
    data: dict[str, Any] = field(default_factory=dict)
