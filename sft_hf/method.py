"""Method: what changes how any task trains (mixup, EMA, LoRA, layer-wise rates ...), and is not a task.

A method is a frozen dataclass with its own flags and only the hooks it needs. A recipe lists the methods it allows; each is
off until one of its flags turns it on. The hooks run in the order in which they stand here.
"""

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, TrainerCallback

from sft_hf.data.labels import Labels
from sft_hf.losses import Loss


@dataclass(frozen=True)
class Method:
    """The hooks, each doing nothing unless a method needs it."""

    def prepare(self, *, labels: Labels) -> "Method":
        """The method whose other hooks run, once the labels are known; ArgumentError where it does not fit them."""
        return self

    def wrap_model(self, model: PreTrainedModel) -> PreTrainedModel:
        """The model that is trained, before the optimizer sees its parameters."""
        return model

    def wrap_loss(self, loss: Loss) -> Loss:
        """The loss that is trained; evaluation keeps the task's own."""
        return loss

    def callbacks(self) -> list[TrainerCallback]:
        """What the Trainer calls at its events."""
        return []

    def wrap_batch(self, batch: dict[str, Any], *, step: int, seed: int) -> dict[str, Any]:
        """The training batch, before the denominators are counted."""
        return batch
