"""Where the tests of an accelerator run: `M7B_TEST_DEVICE`, or the first card; else they are skipped."""

import os

import pytest
import torch


@pytest.fixture(scope="session")
def device() -> str:
    """Its name. `cpu` runs the same passes, without graphs."""
    name = os.environ.get("M7B_TEST_DEVICE", "cuda")
    if name.startswith("cuda") and not torch.cuda.is_available():
        pytest.skip("no GPU that torch can use; M7B_TEST_DEVICE=cpu runs the same passes on the processor")
    return name


@pytest.fixture
def card(device: str) -> str:
    """The same, for what is about graphs."""
    if not device.startswith("cuda"):
        pytest.skip("graphs are CUDA's")
    return device
