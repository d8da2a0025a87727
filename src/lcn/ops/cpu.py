"""Fast CPU ops (being built); until then the reference."""

from lcn.ops.reference import kept_pool, span_pool, span_score

__all__ = ["kept_pool", "span_pool", "span_score"]
