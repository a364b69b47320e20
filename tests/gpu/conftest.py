"""Tests that need a CUDA device; run them in a process of their own: `pytest tests/gpu`."""

import os

import pytest
import torch

# Without a device they are not even imported: they would import kernels before tests/kernels has
# told Triton to interpret them.
if not torch.cuda.is_available():
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(autouse=True)
def device() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("Triton interprets kernels in this process; run tests/gpu alone")
    return torch.device("cuda", torch.cuda.current_device())
