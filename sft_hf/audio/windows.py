"""Clips that are longer than what a model hears at once: windows that cover them, and one answer out of many.

windows_of(samples (25_000,), 10_000)                        -> samples 0 to 10,000, 7,500 to 17,500, 15,000 to 25,000
mean_of_windows(logits (5, classes), [3, 2], problem_type)   -> (2, classes), the logits of two clips
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


def windows_of(waveform: np.ndarray, size: int | None) -> list[np.ndarray]:
    """As few windows of `size` samples as cover a waveform `(samples,)`, evenly spread, the last at its end; views, no copies.

    A waveform that is no longer, or a size of None, gives one window: all of it.
    """
    if size is None or len(waveform) <= size:
        return [waveform]
    starts = np.linspace(0, len(waveform) - size, math.ceil(len(waveform) / size)).round().astype(int)
    return [waveform[start : start + size] for start in starts]


def mean_of_windows(logits: Tensor, num_windows: Sequence[int], problem_type: str) -> Tensor:
    """Logits `(windows, outputs)` to those of the clips, `(clips, outputs)`, whose probabilities are the means of their windows'.

    `num_windows` says how many each clip has; theirs lie behind each other. Single-label logits come back as logarithms of
    probabilities. The numbers of a regression are averaged as they are. Computed in float32 at least.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    mean = {
        "single_label_classification": lambda windows: _log_mean(functional.log_softmax(windows, dim=-1)),
        "multi_label_classification": lambda windows: (
            _log_mean(functional.logsigmoid(windows)) - _log_mean(functional.logsigmoid(-windows))
        ),
        "regression": lambda windows: windows.mean(dim=0),
    }[problem_type]
    return torch.stack([mean(windows) for windows in logits.split(list(num_windows))])


def _log_mean(log_probabilities: Tensor) -> Tensor:
    """The logarithm of the mean over the first dimension, also where a probability is too small for a float."""
    return log_probabilities.logsumexp(dim=0) - math.log(len(log_probabilities))
