"""Random numbers as a function of a key, such as (seed, epoch, example_id), and of nothing that was drawn before."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Inside, torch's CPU random numbers are a function of `key`; afterwards they go on where they were.

    torchvision's v2 transforms draw from this generator alone. It takes 32 bits of a seed, so two keys rarely, but sometimes, draw
    the same.
    """
    content = " ".join(f"{number:d}" for number in key).encode()
    before = torch.default_generator.get_state()
    torch.default_generator.manual_seed(int.from_bytes(hashlib.blake2b(content, digest_size=4).digest(), "big"))
    try:
        yield
    finally:
        torch.default_generator.set_state(before)
