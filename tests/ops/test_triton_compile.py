"""The Triton kernels compile to machine code of a GPU that is not there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed; `make test-gpu` installs it")
pytestmark = pytest.mark.triton
BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu.py"
KERNELS = {"score_and_pool", "join_parts", "sum_by_code", "slopes", "keep_best"}


def test_every_kernel_compiles_and_keeps_to_its_registers(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    command = [sys.executable, str(BENCHMARK), "--compile", "90", "--json", "--op"]
    ran = subprocess.run(
        [*command, "span_pool keep", "kept_pool"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    compiled = [json.loads(line) for line in ran.stdout.splitlines()]
    assert {each["kernel"] for each in compiled} == KERNELS
    for each in compiled:
        assert each["spilled"] <= 64, each
        # What a block may have on GPUs since compute capability 8.6.
        assert each["shared"] <= 99 * 1024, each


def test_without_a_gpu_the_benchmark_says_what_else_there_is():
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    ran = subprocess.run(
        [sys.executable, str(BENCHMARK)], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 1 and "--compile 90" in ran.stderr
