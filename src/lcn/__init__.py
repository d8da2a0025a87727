"""Lifelong cross-domain click prediction: LCN (CRP + LAP) and the systems it is compared with.

Whatever a command does is one public function:

    import lcn

    lcn.prepare("movielens-1m", "data/movielens")
    run = lcn.train(lcn.recipe("lcn", "data/movielens"), "runs/lcn-0")
    lcn.evaluate("runs/lcn-0")
    lcn.predict("runs/lcn-0")

Names are imported when they are first used, so that preparation does not load torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from lcn.api import compare, evaluate, fetch, predict, prepare, recipe, train
    from lcn.data.dataset import open_dataset
    from lcn.train.run import open_run

__all__ = [
    "compare",
    "evaluate",
    "fetch",
    "open_dataset",
    "open_run",
    "predict",
    "prepare",
    "recipe",
    "train",
]

_HOME = {"open_dataset": "lcn.data.dataset", "open_run": "lcn.train.run"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'lcn' has no attribute {name!r}")
    return getattr(import_module(_HOME.get(name, "lcn.api")), name)
