"""Steps whose loss or gradient is not finite: left out, or the end of the run, with the examples that they hold."""

import pytest
import torch
from test_trainer import make_trainer, topic_rows

from sft_hf.divergence import StepRecord
from sft_hf.errors import DivergedError


def poison(trainer, steps, *, value=float("nan")):
    """Make the loss of these optimizer steps not finite, as a poisonous example would."""
    honest = trainer.task.loss_sums

    def loss_sums(loss, model, batch):
        outputs, sums = honest(loss, model, batch)
        factor = value if trainer.state.global_step + 1 in steps and model.training else 1.0
        return outputs, {name: total * factor for name, total in sums.items()}

    object.__setattr__(trainer.task, "loss_sums", loss_sums)  # tasks are frozen
    return trainer


def weights(trainer):
    return torch.cat([parameter.detach().clone().ravel() for parameter in trainer.model.parameters()])


def test_the_step_and_its_examples_are_named_before_the_weights_take_it_in(tmp_path):
    trainer = poison(make_trainer(tmp_path, topic_rows(8), batch_size=2, steps=2, max_steps=4), {2})
    with pytest.raises(DivergedError) as caught:
        trainer.train()
    message = str(caught.value)
    assert message.startswith("Step 2: the loss is nan; it is that of the training examples ")
    named = sorted(int(key) for key in message.split("examples ")[1].split(" (")[0].split(", "))
    assert named == sorted(key for batch in trainer._record.example_ids for key in batch)
    assert len(named) == 4
    assert "Lower --learning_rate (now 1.0)" in message
    assert "--max_nonfinite_steps N" in message
    assert torch.isfinite(weights(trainer)).all()
    assert trainer.state.global_step == 1


def test_at_the_first_step_the_examples_are_to_be_looked_at(tmp_path):
    trainer = poison(make_trainer(tmp_path, topic_rows(4), batch_size=4), {1}, value=float("inf"))
    with pytest.raises(
        DivergedError, match=r"Step 1: the loss is inf.* 0, 1, 2, 3 .*It is the first step, so look at the examples"
    ):
        trainer.train()


def test_only_the_micro_batch_that_is_not_finite_is_named():
    record = StepRecord()
    record.add(torch.tensor([1, 2]), torch.tensor(0.5))
    record.add(torch.tensor([7, 8]), torch.tensor(float("inf")))
    assert not record.is_finite(gradient=False)
    assert record.suspects() == ([float("inf")], [7, 8])
    record.restart()
    record.add(torch.tensor([1]), torch.tensor(0.5))
    record.gradient_norm = torch.tensor(float("nan"))
    assert record.is_finite(gradient=False)
    assert not record.is_finite(gradient=True)


def test_steps_left_out_change_nothing_and_a_finite_one_starts_the_count_anew(tmp_path):
    """Steps 2, 3 and 5 of six are not finite: weights and momentum are those of the three others."""
    flags = {"batch_size": 4, "optim": "adamw_torch", "learning_rate": 0.01, "lr_scheduler_type": "constant"}
    trainer = poison(
        make_trainer(tmp_path, topic_rows(4), max_steps=6, max_nonfinite_steps=2, logging_steps=1, **flags), {2, 3, 5}
    )
    trainer.train()
    honest = make_trainer(tmp_path, topic_rows(4), max_steps=3, **flags)
    honest.train()
    assert torch.allclose(weights(trainer), weights(honest), atol=1e-6)
    assert all(
        entry["loss"] == 0 for entry in trainer.state.log_history if entry.get("step") in (2, 3, 5) and "loss" in entry
    )


def test_one_more_in_a_row_stops_the_run(tmp_path):
    trainer = poison(make_trainer(tmp_path, topic_rows(4), batch_size=4, max_steps=6, max_nonfinite_steps=2), {2, 3, 4})
    with pytest.raises(DivergedError, match=r"^Step 4: .* 2 steps before it were left out"):
        trainer.train()


def test_a_gradient_that_is_not_finite_under_a_finite_loss_stops_too(tmp_path):
    trainer = make_trainer(tmp_path, topic_rows(4), batch_size=4)
    parameter = next(trainer.model.parameters())
    parameter.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(DivergedError, match="the norm of the gradient is (nan|inf), though the loss is finite"):
        trainer.train()
    assert torch.isfinite(weights(trainer)).all()
