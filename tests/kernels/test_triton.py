"""Triton kernels against their references: interpreted in float32, on a GPU in bfloat16."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

CHECKS = Path(__file__).with_name("triton_checks.py")


def check(device: str, **environment: str) -> None:
    done = subprocess.run(
        [sys.executable, str(CHECKS), device],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.engine
def test_interpreted() -> None:
    pytest.importorskip("triton")
    check("cpu", TRITON_INTERPRET="1", OMP_NUM_THREADS="1")


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    check("cuda")
