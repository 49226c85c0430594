"""Random numbers by a key."""

import numpy as np
import torch

from sft_hf.seeding import seeded


def test_seeded_draws_by_its_key_alone():
    draws = []
    for key in ((1, 2, 3), (1, 2, 3), (12, 3), (1, 23), (3, 2, 1), (np.int64(1), 2, 3)):
        torch.rand(1)
        with seeded(*key):
            draws.append(tuple(torch.rand(4).tolist()))
    assert draws[0] == draws[1] == draws[5]
    assert len(set(draws)) == 4
    with seeded(1, 2, 3):
        assert torch.initial_seed() == 2_319_826_702, "blake2b of '1 2 3', the same in every process"
