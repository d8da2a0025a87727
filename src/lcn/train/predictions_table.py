"""A run's click probabilities as a table in the logs' own names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from lcn.data.names import Names
from lcn.evaluate.metrics import sigmoid
from lcn.files import written_whole
from lcn.schema import Split
from lcn.train.run import Run


def predictions_table(run: Run, split: Split) -> pa.Table:
    """Columns user, item (keys of the logs), time (UTC ms), label, probability."""
    samples, names = run.dataset.samples[split], Names(run.dataset.folder)
    predictions = run.predict(split)
    return pa.table(
        {
            "user": names.user_keys(np.asarray(samples.user_S)),
            "item": names.item_keys(np.asarray(samples.item_S)),
            "time": pa.array(np.asarray(samples.time_S)),
            "label": pa.array(np.asarray(samples.label_S)),
            "probability": pa.array(sigmoid(predictions.logit_S)),
        }
    )


def write_table(table: pa.Table, path: Path) -> None:
    """Write a table whole or not at all: as CSV where the name ends so, else as Parquet."""
    with written_whole(path) as partial:
        if path.suffix == ".csv":
            pyarrow.csv.write_csv(table, partial)
        else:
            pq.write_table(table, partial, compression="zstd")
