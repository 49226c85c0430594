"""Connectionist temporal classification: labels without an alignment, as a sum over utterances and their number.

loss = CtcLoss(blank_id=0)
loss.sums(logits, labels, num_frames)       # {"items": 41.3}: logits (batch, frames, vocab), labels (batch, length)
loss.denominators(labels)                   # {"items": 8.0}: utterances
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from sft_hf.losses.base import Loss, is_valid


@dataclass(frozen=True, eq=False)
class CtcLoss(Loss):
    """CTC (Graves et al. 2006, https://www.cs.toronto.edu/~graves/icml_2006.pdf) for each character of a label.

    Over its denominator it is what torch calls the mean, and what the example scripts train: each utterance's loss is
    divided by the length of its label, and then the mean is taken over utterances. `blank_id` must not be in a label.
    """

    blank_id: int

    def denominator(self, labels: Tensor) -> Tensor:
        """Return the number of utterances; one without characters is silence, and counts."""
        return num_utterances(labels)

    def __call__(self, logits: Tensor, labels: Tensor, num_frames: Tensor) -> Tensor:
        """Return the sum over utterances, as `ctc_loss_sum`."""
        return ctc_loss_sum(logits, labels, num_frames, blank_id=self.blank_id)

    def sums(self, logits: Tensor, labels: Tensor, num_frames: Tensor) -> dict[str, Tensor]:
        return {"items": self(logits, labels, num_frames)}


def ctc_loss_sum(logits: Tensor, labels: Tensor, num_frames: Tensor, *, blank_id: int) -> Tensor:
    """Return the sum over utterances of the loss for each character, a float32 scalar for logits of any dtype.

    Logits are `(batch, frames, vocab)`, of which the first `num_frames` `(batch,)` of each utterance count. Labels are
    `(batch, length)`, padded on the right with -100; a label without characters is silence: every frame blank. A label
    that its frames cannot hold (`frames_needed`) adds 0, and no gradient, where the loss is infinite.
    """
    lengths = is_valid(labels).sum(dim=1)
    # In float32, because a sum over hundreds of frames loses digits in bfloat16. torch wants the frames first.
    log_probabilities = logits.float().log_softmax(dim=-1).transpose(0, 1)
    losses = functional.ctc_loss(
        log_probabilities,
        labels.long().clamp(min=0),
        num_frames,
        lengths,
        blank=blank_id,
        reduction="none",
        zero_infinity=True,
    )
    return (losses / lengths.clamp(min=1)).sum()


def num_utterances(labels: Tensor) -> Tensor:
    """Return the number of rows of labels `(batch, length)`, a float32 scalar."""
    return torch.full((), float(len(labels)), device=labels.device)


def frames_needed(labels: Sequence[int]) -> int:
    """Return how many frames a label takes at least: one a character, and a blank between two that are equal."""
    return len(labels) + sum(first == second for first, second in pairwise(labels))
