"""Answers for people: a user's history in words, and which of it each level kept."""

from __future__ import annotations

from lcn.serve.ranker import Ranked
from lcn.serve.registry import Version
from lcn.serve.user_state import DomainView
from lcn.serve.wire import Explanation, HistoryEvent, KeptEvent, LevelAnswer

MOST_EVENTS = 5000
"""Of a history that an answer spells out; the newest."""


def explain(ranked: Ranked) -> Explanation:
    """Spell an answer's history and levels out."""
    view = ranked.view.source
    end = view.before(ranked.moment)
    start = max(end - min(ranked.version.manifest.lifelong, MOST_EVENTS), 0)
    count = len(ranked.levels[0].kept_CK) if ranked.levels else 0
    candidates: list[list[LevelAnswer]] = [[] for _ in range(count)]
    for level in ranked.levels:
        pairs = zip(level.kept_CK.tolist(), level.weight_CK.tolist(), strict=True)
        for answers, (kept_K, weight_K) in zip(candidates, pairs, strict=True):
            kept = [
                KeptEvent(event=row - start, weight=weight)
                for row, weight in zip(kept_K, weight_K, strict=True)
                if row >= start
            ]
            answers.append(LevelAnswer(level=level.name, kept=kept))
    return Explanation(history=describe(ranked.version, view, start, end), candidates=candidates)


def describe(version: Version, view: DomainView, start: int, end: int) -> list[HistoryEvent]:
    """Events of a view in words, oldest first."""
    catalogue, fields = version.scorer.bundle.catalogue, version.manifest.dataset.event_context
    offsets = [sum(field.size for field in fields[:place]) for place in range(len(fields))]
    time_T, code_TG = view.rows.time_T.tolist(), view.rows.code_TG.tolist()
    events = []
    for row in range(start, end):
        address = int(view.address_T[row])
        context = {
            field.name: catalogue.value("event", field.name, code - offset)
            for field, code, offset in zip(fields, code_TG[row], offsets, strict=True)
        }
        events.append(
            HistoryEvent(
                item=catalogue.key(address),
                title=catalogue.title(address),
                time=time_T[row],
                context=context,
            )
        )
    return events
