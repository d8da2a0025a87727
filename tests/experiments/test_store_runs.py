"""The results store: what is written is read again, and damage is met with words."""

import json
import math

import pytest

from lcn.errors import DataError
from lcn.experiments.record import load_record
from lcn.experiments.store import Done, open_store, read_done


def done_of(**validation) -> Done:
    return Done(config={}, fingerprint="f", validation=validation, best_step=1, steps=1,
                seconds=1.0, commit="c", machine="m")  # fmt: skip


def test_an_undefined_metric_is_read_again(tmp_path):
    path = tmp_path / "done.json"
    path.write_text(done_of(auc=0.7, gauc=math.nan).model_dump_json())
    found = read_done(tmp_path)
    assert found is not None and found.validation["auc"] == 0.7
    assert math.isnan(found.validation["gauc"])
    tree = json.loads(path.read_text())
    tree["validation"]["gauc"] = None
    path.write_text(json.dumps(tree))
    found = read_done(tmp_path)
    assert found is not None and math.isnan(found.validation["gauc"])


def test_a_damaged_file_blocks_no_store(little, tmp_path):
    store = open_store(tmp_path, little.manifest)
    folder = store.folder / "runs" / "damaged"
    folder.mkdir(parents=True)
    (folder / "done.json").write_bytes(b'{"config": "\xff\xfe"}')
    assert read_done(folder) is None
    open_store(tmp_path, little.manifest)


def test_a_record_that_is_no_text_is_named(tmp_path):
    path = tmp_path / "table1.json"
    path.write_bytes(b'{"experiment": "\xff"}')
    with pytest.raises(DataError, match=r"table1\.json is no record"):
        load_record(path)
