"""The true click probabilities of a synthetic log, kept aside from what a model may see."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lcn.data.dataset import Dataset
from lcn.errors import DataError
from lcn.schema import Split


def true_probability(dataset: Dataset, split: Split) -> NDArray[np.float32]:
    """Return the true click probability of every impression of a split.

    Returns:
        [S] in the order of the split's rows; NaN where a log did not say.

    Raises:
        DataError: the dataset was prepared without true probabilities.
    """
    path = dataset.folder / "samples" / split / "probability.npy"
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise DataError(
            f"{dataset.folder} has no true probabilities: only synthetic logs know them "
            "(mapping: impressions.probability)"
        ) from error
