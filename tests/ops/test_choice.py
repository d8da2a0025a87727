"""Which form of an op runs where."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from lcn import ops


class OnGpu:
    """As much of a tensor on a GPU as the choice looks at."""

    def __init__(self, dtype=torch.float32):
        self.device, self.dtype = torch.device("cuda", 0), dtype


@pytest.fixture(autouse=True)
def _forget():
    yield
    ops._has_triton.cache_clear()


def test_floats_on_the_cpu_take_the_compiled_form_and_doubles_the_reference():
    assert ops._ops(torch.zeros(1)).__name__ == "lcn.ops.cpu"
    assert ops._ops(torch.zeros(1).double()) is ops.reference


def test_a_gpu_without_triton_takes_the_reference_and_says_so(monkeypatch):
    monkeypatch.setattr(ops, "find_spec", lambda name: None)
    ops._has_triton.cache_clear()
    with pytest.warns(UserWarning, match=r"pip install 'lcn\[cuda\]'"):
        assert ops._ops(OnGpu()) is ops.reference
    with ops.force("fast"), pytest.raises(ValueError, match="Triton"):
        ops._ops(OnGpu())
    assert ops._ops(OnGpu(torch.float64)) is ops.reference


def test_the_cpu_form_never_imports_triton():
    code = (
        "import sys, torch; from lcn import ops\n"
        "ops.select_span_topk(torch.zeros(3), torch.tensor([[0, 3]]), 2)\n"
        "assert 'lcn.ops.cuda' not in sys.modules and 'lcn.ops.cpu' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
