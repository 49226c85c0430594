"""Stopping at a loss or a gradient that is not finite, before the weights take it in.

    Step 37: the loss is nan. It is that of the training examples 12, 99, 1043. ...

One such update turns every weight into NaN, and a run that goes on then trains nothing for hours. So each step is judged after its
backward pass and before its update; --max_nonfinite_steps says how many in a row are left out before the run stops. (DeepSpeed updates inside of its backward
pass: there the run stops after the update, and before a checkpoint.)
"""

import math
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from transformers import TrainerCallback, TrainingArguments

from sft_hf.checkpoints import last_whole
from sft_hf.errors import DivergedError

MOST_EXAMPLES = 32  # that a message names


class StepRecord:
    """The micro-batches of the step under way: their examples and losses, and the norm of the gradient that they make."""

    def __init__(self):
        self.example_ids: list[list[int]] = []
        self.losses: list[Tensor] = []
        self.gradient_norm: Tensor | float = 0.0

    def restart(self) -> None:
        """Forget the step before."""
        self.__init__()

    def add(self, example_ids: Tensor, loss: Tensor) -> None:
        """One micro-batch; nothing waits for the device here."""
        self.example_ids.append(example_ids.tolist())
        self.losses.append(loss)

    def is_finite(self, *, gradient: bool) -> bool:
        """Of this rank's losses and, if `gradient`, of the gradient."""
        losses_are = bool(torch.isfinite(torch.stack(self.losses)).all())
        return losses_are and (not gradient or math.isfinite(float(self.gradient_norm)))

    def suspects(self) -> tuple[list[float], list[int]]:
        """The losses that are not finite and the examples in their micro-batches."""
        losses = [float(loss) for loss in self.losses]
        bad = [index for index, loss in enumerate(losses) if not math.isfinite(loss)]
        return [losses[index] for index in bad], [key for index in bad for key in self.example_ids[index]]


class StopOnDivergence(TrainerCallback):
    """Leaves out steps that are not finite, and stops the run after `limit` of them in a row."""

    def __init__(self, record: StepRecord, accelerator: Accelerator, limit: int):
        self.record, self.accelerator, self.limit = record, accelerator, limit
        self.in_a_row = 0

    def on_step_begin(self, args, state, control, **kwargs):
        self.record.restart()

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        if self._is_finite():
            self.in_a_row = 0
            return
        self.in_a_row += 1
        if self.in_a_row > self.limit:
            raise DivergedError(self._message(args, step=state.global_step + 1))
        if self.accelerator.scaler is None:  # a loss scaler skips the step by itself
            model.zero_grad(set_to_none=True)  # optimizers leave alone what has no gradient, momentum too

    def _is_finite(self) -> bool:
        # A loss scaler finds its scale by gradients that overflow; those steps it skips itself.
        finite = self.record.is_finite(gradient=self.accelerator.scaler is None)
        if self.accelerator.num_processes == 1:
            return finite
        mine = torch.tensor([int(finite)], device=self.accelerator.device)
        return bool(self.accelerator.gather(mine).min())

    def _message(self, args: TrainingArguments, *, step: int) -> str:
        suspects = [self.record.suspects()]
        if self.accelerator.num_processes > 1:
            suspects = gather_object(suspects)
        losses = [loss for part, _ in suspects for loss in part]
        examples = sorted(key for _, part in suspects for key in part)
        if losses:
            named = ", ".join(map(str, examples[:MOST_EXAMPLES])) + (" ..." if len(examples) > MOST_EXAMPLES else "")
            what = f"the loss is {losses[0]}; it is that of the training examples {named} (numbered from 0, as in the source)"
        else:
            what = f"the norm of the gradient is {float(self.record.gradient_norm)}, though the loss is finite"
        skipped = f" {self.limit} steps before it were left out." if self.limit else ""
        whole = last_whole(Path(args.output_dir))
        left = f" {whole} holds finite weights." if whole else ""
        return f"Step {step}: {what}.{skipped} {_advice(args, step)}{left}"


def _advice(args: TrainingArguments, step: int) -> str:
    if step == 1:
        first = "It is the first step, so look at the examples: at their inputs, and at labels that are out of range or not finite."
    else:
        clipping = (
            f", or clip gradients by --max_grad_norm 1 (now {args.max_grad_norm})" if args.max_grad_norm != 1 else ""
        )
        first = (
            f"Lower --learning_rate (now {args.learning_rate}), warm up longer (--warmup_steps){clipping}, all in another --output_dir, "
            "or look at the examples."
        )
    precision = " float16 overflows at 65504: --bf16 true does not." if args.mixed_precision == "fp16" else ""
    return f"{first}{precision} --max_nonfinite_steps N leaves out up to N such steps in a row."
