"""The benchmark commands: what they print, and that their work is the work they claim."""

import json
import subprocess
import sys
from dataclasses import fields, replace

import pytest
import torch
from click.testing import CliRunner

from lcn import ops
from lcn.backbones import BACKBONES
from lcn.bench.bound import Machine, Need, train_need
from lcn.bench.score import Served
from lcn.bench.train import Record
from lcn.bench.workload import Workload, build_batches, build_model, per_sample
from lcn.cli.bench import NAMES, bench

SMALL = Workload("lap", n=100, items=500, group=4, batch=16, width=16)


def test_train_prints_one_record_per_variant_and_catalogue():
    command = "bench train --n 60 --items 1k,2k --group 4 --batch 16 --seconds 0 --json"
    done = subprocess.run(
        [sys.executable, "-m", "lcn", *command.split()], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(each["items"], each["variant"]) for each in records] == [
        (1000, "reference"), (1000, "fast"), (2000, "reference"), (2000, "fast")
    ]  # fmt: skip
    assert [each["over_first_items"] is None for each in records] == [True, True, False, False]
    for record in records:
        assert record.keys() == {field.name for field in fields(Record)}
        assert (record["backbone"], record["n"]) == ("lap", 60)
        assert (record["group"], record["threads"], record["batch"]) == (4, 1, 16)
        assert record["bound_samples_per_s"] > record["samples_per_s"] > 0
    assert records[1]["speedup"] > 0
    assert 0 <= records[1]["wait_share"] <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--n", "many"], "no whole number"),
        (["train", "--backbone", "lapp"], "none of"),
        (["train", "--items", "0"], "at least 1"),
        (["score", "--requests", "1"], "10"),
    ],
)
def test_wrong_usage_teaches(arguments, message):
    done = CliRunner().invoke(bench, arguments)
    assert done.exit_code == 2
    assert message in done.output


def test_names_are_the_backbones():
    assert set(NAMES) == set(BACKBONES)


def test_help_does_not_import_torch():
    code = (
        "import sys; from click.testing import CliRunner; from lcn.cli.bench import bench\n"
        "assert CliRunner().invoke(bench, ['train', '--help']).exit_code == 0\n"
        "assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_workload_is_of_the_size_it_says():
    first, second = build_batches(SMALL, 2)
    for batch in (first, second):
        length_C = batch.lifelong_C2[:, 1] - batch.lifelong_C2[:, 0]
        assert length_C.tolist() == [100] * 16
        assert batch.user_of_C.tolist() == [user for user in range(4) for _ in range(4)]
        # Impressions are 3 events apart: 9 rows beside the first window of 100.
        assert len(batch.source.item_T) == 4 * 109
    assert set(first.address_U.tolist()).isdisjoint(second.address_U.tolist())
    (ragged,) = build_batches(replace(SMALL, lengths="ragged", batch=2000, group=1), 1)
    length_C = (ragged.lifelong_C2[:, 1] - ragged.lifelong_C2[:, 0]).double()
    assert 30 < length_C.mean() < 37
    assert length_C.max() <= 100


@pytest.mark.parametrize("lengths", ["full", "ragged"])
def test_rows_per_sample_are_the_same_work(lengths):
    work = replace(SMALL, lengths=lengths)
    (batch,) = build_batches(work, 1)
    own = per_sample(batch)
    length_C = batch.lifelong_C2[:, 1] - batch.lifelong_C2[:, 0]
    assert int(length_C.sum()) <= len(own.source.item_T)
    assert len(own.item_IF) == len(own.source.item_T) + len(own.target.item_T) + len(own)
    assert (own.lifelong_C2[1:, 0] >= own.lifelong_C2[:-1, 1]).all(), "rows are shared"
    torch.manual_seed(0)
    model = build_model(work, sparse=False).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(own).logit_C, model(batch).logit_C)


def test_power_law_touches_few_rows_of_a_large_table():
    small, large = (
        len(build_batches(replace(SMALL, items=items, batch=512), 1)[0].item_IF)
        for items in (10_000, 1_000_000)
    )
    even = len(
        build_batches(replace(SMALL, batch=512, items=1_000_000, popularity="uniform"), 1)[
            0
        ].item_IF
    )
    assert small < large < even / 2


def test_the_head_of_a_table_is_touched_alike_whatever_its_size():
    small, large = (
        build_batches(replace(SMALL, items=items, batch=512, popularity="head"), 1)[0]
        for items in (100_000, 400_000)
    )
    assert len(small.item_IF) == len(large.item_IF)
    assert int(large.item_IF.max()) > 200_000


@pytest.mark.parametrize("backbone", sorted(BACKBONES))
def test_need_is_linear_in_history_and_shared_by_groups(backbone):
    settings = {"key": "item"} if backbone == "sim_hard" else {}

    def need(**changes):
        work = replace(SMALL, backbone=backbone, **{"n": 400, **changes})
        return train_need(build_model(work, sparse=True, **settings), build_batches(work, 1)[0])

    one, twice, alone = need(), need(n=800), need(group=1)
    assert one.flops <= twice.flops <= 2 * one.flops
    assert one.bytes <= twice.bytes <= 2.1 * one.bytes
    assert alone.bytes > one.bytes
    assert alone.flops == pytest.approx(one.flops, rel=0.1)


def test_the_ideal_bound_overlaps_and_the_reachable_one_adds_up():
    machine = Machine(100.0, 10.0, piece_flops=50.0, exps=5.0, scores=20.0, gathered=4.0)
    need = Need(flops=200, bytes=1, piece_flops=0, exps=0, scores=0, gathered=0)
    assert need.seconds(machine) == 2
    assert replace(need, bytes=50).seconds(machine) == 5
    assert need.reachable_seconds(machine) == pytest.approx(2.1)
    whole = Need(flops=200, bytes=50, piece_flops=150, exps=10, scores=20, gathered=8)
    assert whole.seconds(machine) == 5
    assert whole.reachable_seconds(machine) == pytest.approx(0.5 + 3 + 2 + 1 + 2 + 5)


@pytest.mark.parametrize("backbone", ["lap", "sdim", "twin"])
def test_scoring_against_a_state_equals_the_whole_forward(backbone):
    served = Served(replace(SMALL, backbone=backbone), candidates=9)
    with torch.inference_mode():
        field_CF = served.items()
        fast = served.score(*served.encode(), field_CF)
        with ops.force("reference"):
            slow = served.score(*served.encode(), field_CF)
    assert fast.shape == (9,)
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-5)
