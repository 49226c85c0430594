"""`python -m pytest tests/gpu -n 0` on a machine with an accelerator, which the other tests do not see; skipped elsewhere."""

import os

import precision
import pytest

# Before torch looks for devices, which it does once.
if os.environ["DEVICES_OF_THE_USER"] == "all":
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
else:
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ["DEVICES_OF_THE_USER"]


@pytest.fixture(autouse=True)
def device():
    """The accelerator that runs take by themselves."""
    import torch

    if not torch.accelerator.is_available():
        pytest.skip("torch.accelerator finds no accelerator on this machine")
    return torch.accelerator.current_accelerator()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return precision.write_world(tmp_path_factory.mktemp("world"))
