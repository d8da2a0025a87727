"""Attention of many candidates of one user without gradients equals the reference."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lcn import ops
from lcn.nn import request_attention
from lcn.nn.attention import ContextTable, Selection, TargetAttention
from lcn.nn.mlp import apply_to_parts, mlp
from lcn.ops import HistoryRows
from lcn.schema import Field

DAY = 86_400_000
COUNT = 80


def world(
    *, output: bool = True, recency: bool = True, fields: int = 1, rows: int = 40, heads: int = 4
) -> tuple[TargetAttention, HistoryRows, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    named = [Field(name=f"field{n}", size=5) for n in range(fields)]
    context = ContextTable(named, 8, recency=recency, std=0.5)
    attention = TargetAttention(24, 64, heads, context, output=output)
    code_TG = torch.randint(0, 5, (rows, fields)) + 5 * torch.arange(fields)
    history = HistoryRows(
        torch.randn(30, 24),
        torch.randint(0, 30, (rows,), dtype=torch.int32),
        code_TG.int(),
        (torch.rand(rows) * 100 * DAY).long().sort().values,
    )
    return attention, history, torch.randn(COUNT, 24), torch.full((COUNT,), 101 * DAY)


def listed(rows: int) -> torch.Tensor:
    kept_CK = torch.stack([torch.randperm(rows) for _ in range(COUNT)])[:, : max(rows // 2, 1)]
    kept_CK = torch.where(kept_CK % 7 == 3, -1, kept_CK)
    kept_CK[5] = -1
    return kept_CK


def both(attention: TargetAttention, *asked, **settings):
    with torch.no_grad():
        found = attention.attend(*asked, **settings)
        with ops.force("reference"):
            return found, attention.attend(*asked, **settings)


@pytest.mark.parametrize("output", [True, False])
@pytest.mark.parametrize("recency", [True, False])
@pytest.mark.parametrize("fields", [0, 1, 2])
@pytest.mark.parametrize("kind", ["span", "kept"])
def test_requests_match_the_reference(kind, fields, recency, output, monkeypatch):
    attention, rows, query_CD, time_C = world(output=output, recency=recency, fields=fields)
    selection = Selection(span_C2=torch.tensor([[3, 37]]).repeat(COUNT, 1))
    if kind == "kept":
        selection = Selection(kept_CK=listed(40))
    taken = []
    inner = getattr(request_attention, f"_attend_{kind}")
    monkeypatch.setattr(
        request_attention, f"_attend_{kind}", lambda *args: taken.append(kind) or inner(*args)
    )
    found, wanted = both(attention, rows, selection, query_CD, time_C)
    assert taken == [kind]
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-5, atol=1e-5)
    # No weight is kept from one request to the next.
    with torch.no_grad():
        attention.key_BX.mul_(1.5)
        attention.value_BX.add_(0.1)
    moved, wanted = both(attention, rows, selection, query_CD, time_C)
    torch.testing.assert_close(moved[0], wanted[0], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(moved[0], found[0])


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("keep", [1, 7, 60])
def test_the_best_of_listed_rows_are_the_references(heads, keep):
    attention, rows, query_CD, time_C = world(output=False)
    selection = Selection(kept_CK=listed(40))
    found, wanted = both(attention, rows, selection, query_CD, time_C, heads=heads, keep=keep)
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-5, atol=1e-5)
    assert found[1] is not None and wanted[1] is not None
    assert torch.equal(found[1], wanted[1])


@pytest.mark.parametrize("what", ["times", "spans", "few", "many rows", "gradients", "keep"])
def test_other_batches_absorb(what, monkeypatch):
    for name in ("_attend_span", "_attend_kept"):
        monkeypatch.setattr(request_attention, name, lambda *_: pytest.fail("projected rows"))
    attention, rows, query_CD, time_C = world(rows=200 if what == "many rows" else 40)
    span_C2 = torch.tensor([[0, 200 if what == "many rows" else 40]]).repeat(COUNT, 1)
    if what == "times":
        time_C = time_C + torch.arange(COUNT)
    if what == "spans":
        span_C2[3, 1] = 20
    if what == "few":
        query_CD, time_C, span_C2 = query_CD[:9], time_C[:9], span_C2[:9]
    keep = 3 if what == "keep" else 0
    with torch.set_grad_enabled(what == "gradients"):
        selection = Selection(span_C2=span_C2)
        attention.attend(rows, selection, query_CD, time_C, keep=keep)


@pytest.mark.parametrize("kind", ["span", "kept"])
def test_double_precision_absorbs(kind):
    """The kernels for requests know single precision only; other models take the other way."""
    attention, rows, query_CD, time_C = world()
    attention, rows = attention.double(), replace(rows, vector_ID=rows.vector_ID.double())
    selection = Selection(span_C2=torch.tensor([[3, 37]]).repeat(COUNT, 1))
    if kind == "kept":
        selection = Selection(kept_CK=listed(40))
    found, wanted = both(attention, rows, selection, query_CD.double(), time_C)
    torch.testing.assert_close(found[0], wanted[0])


def test_rows_that_are_not_there_are_refused():
    attention, rows, query_CD, time_C = world()
    kept_CK = listed(40)
    kept_CK[0, 0] = 40
    with torch.no_grad(), pytest.raises(IndexError, match="kept_CK"):
        attention.attend(rows, Selection(kept_CK=kept_CK), query_CD, time_C)


def test_a_head_of_parts_is_the_head_of_them_side_by_side():
    torch.manual_seed(0)
    head = mlp(12, (8, 4))
    shared, own, none, last = (
        torch.randn(1, 5),
        torch.randn(9, 4),
        torch.zeros(9, 0),
        torch.randn(9, 3),
    )
    with torch.no_grad():
        whole = head(torch.cat([shared.expand(9, -1), own, none, last], 1))
        found = apply_to_parts(head, [shared, own, none, last])
        torch.testing.assert_close(found, whole)
        alone = apply_to_parts(head, [shared, own[:1], none[:1], last[:1]])
        torch.testing.assert_close(alone, whole[:1])
