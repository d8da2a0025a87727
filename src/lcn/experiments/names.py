"""Every experiment by name; no torch here, so that help is quick."""

from __future__ import annotations

TABLES = {
    "table1": "CRP ablation: which pairs help the pyramid.",
    "table2": "CRP on every backbone.",
    "table3": "The pyramid's levels and sizes; with --beyond, one switch at a time.",
    "table4": "Single domain: the target domain's own history.",
    "table5": "Every backbone and objective: the main comparison.",
    "responses": "Responses first on every backbone, rivals pre-trained alike.",
    "schedules": "Every objective first, then clicks: on CRP's own schedule.",
}
FIGURES = {
    "figure4": "Item vectors with and without CRP: t-SNE, silhouette, neighbour purity.",
    "figure5a": "Consistency of search and attention, by system.",
    "figure5b": "Consistency of the pyramid, by K1.",
    "mass": "How few events hold how much of the attention.",
}
GENERATED = {
    "questions": "Lengths beyond 2,000, kinds of side information, items in both domains.",
    "conditions": "When a lifelong source history pays: dose-response on planted truth.",
}
"""These generate their logs where the dataset at hand cannot answer."""

EXPERIMENTS: dict[str, str] = {**TABLES, **FIGURES, **GENERATED}
