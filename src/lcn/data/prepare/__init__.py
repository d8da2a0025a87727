"""Preparation: logs and a mapping in, a dataset folder out."""

from lcn.data.prepare.files import verify
from lcn.data.prepare.job import prepare
from lcn.data.prepare.truth import true_probability
from lcn.data.prepare.watch import Stage

__all__ = ["Stage", "prepare", "true_probability", "verify"]
