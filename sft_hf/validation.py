"""Validation passes of a training, so that none is made twice over the same weights.

    passes = ValidationPasses()
    weights = fingerprint(model)                                # before the pass
    passes.add(ValidationPass(step=30, weights=weights, ...))   # after it
    passes.keep_as_best()                                       # where its metric is the best so far
    passes.of(fingerprint(model), conditions)                   # after training: the pass over these weights, or None

With `load_best_model_at_end`, or where a training ends with an evaluation, the weights that a run ends with were validated
already. That they are the same is read off the weights, not concluded from the steps.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xxhash
from torch import nn

from sft_hf.metrics import Metrics


@dataclass(frozen=True, eq=False)
class ValidationPass:
    """What a pass gave, and of what; `conditions` are the examples and whatever else the numbers depend on."""

    step: int
    weights: str
    conditions: tuple[Any, ...]
    values: dict[str, float]
    metrics: Metrics
    thresholds: np.ndarray | None


class ValidationPasses:
    """The last pass and the best one; what the others accumulated is let go."""

    def __init__(self):
        self._last: ValidationPass | None = None
        self._best: ValidationPass | None = None

    def add(self, one: ValidationPass) -> None:
        """The last pass from here on."""
        self._last = one

    def keep_as_best(self) -> None:
        """The last pass is the best one too."""
        self._best = self._last

    def of(self, weights: str, conditions: tuple[Any, ...]) -> ValidationPass | None:
        """The pass that was made over these weights under the same conditions."""
        for one in (self._best, self._last):
            if one is not None and one.weights == weights and one.conditions == conditions:
                return one
        return None


def fingerprint(model: nn.Module) -> str:
    """128 bits of every parameter and buffer; of a model whose weights are whole on this rank.

    Buffers are among them: what BatchNorm has counted differs from rank to rank until a checkpoint is loaded.
    """
    hasher = xxhash.xxh3_128()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        hasher.update(name.encode())
        hasher.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return hasher.hexdigest()
