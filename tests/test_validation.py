"""A run does not validate the same weights twice, and leaves behind what it would have if it did."""

import json

import pytest
import tiny
import torch
from test_trainer import make_trainer, multi_label_rows, topic_rows

from sft_hf.validation import ValidationPass, ValidationPasses, fingerprint

EVERY_STEP = {
    "max_steps": 3,
    "eval_strategy": "steps",
    "eval_steps": 1,
    "save_strategy": "steps",
    "save_steps": 1,
    "load_best_model_at_end": True,
}


def counted(trainer) -> list[str]:
    """The name of each pass that the trainer makes from here on."""
    made, loop = [], trainer.evaluation_loop

    def evaluation_loop(*args, metric_key_prefix="eval", **kwargs):
        made.append(metric_key_prefix)
        return loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)

    trainer.evaluation_loop = evaluation_loop
    return made


def without_clock(values: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if not name.endswith(("runtime", "per_second"))}


# ---- passes ----


def a_pass(step: int, weights: str) -> ValidationPass:
    return ValidationPass(step, weights, ("examples",), {"eval_loss": 1.0}, metrics=None, thresholds=None)


def test_the_last_and_the_best_pass_are_kept_and_no_other():
    """Pitfall 19: what a pass accumulates may be large."""
    passes = ValidationPasses()
    for step, weights in enumerate("abcd"):
        passes.add(a_pass(step, weights))
        if weights == "b":
            passes.keep_as_best()
    found = {weights: passes.of(weights, ("examples",)) for weights in "abcd"}
    assert {weights: one and one.step for weights, one in found.items()} == {"a": None, "b": 1, "c": None, "d": 3}


def test_a_pass_over_other_examples_is_none():
    passes = ValidationPasses()
    passes.add(a_pass(1, "a"))
    assert passes.of("a", ("others",)) is None


def test_a_fingerprint_is_of_every_bit_and_of_no_layout_in_memory():
    model = torch.nn.Sequential(torch.nn.Conv2d(2, 4, 3), torch.nn.BatchNorm2d(4)).bfloat16()
    before = fingerprint(model)
    assert fingerprint(model.to(memory_format=torch.channels_last)) == before
    model[1].num_batches_tracked += 1  # 0-dimensional, an integer and a buffer
    counted_one = fingerprint(model)
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0].nextafter_(torch.tensor(9.0).bfloat16())
    assert len({before, counted_one, fingerprint(model)}) == 3


# ---- a trainer ----


@pytest.mark.parametrize(("greater_is_better", "step"), [(False, 3), (True, 1)], ids=["the last", "the first"])
def test_after_training_the_best_weights_are_not_validated_again(greater_is_better, step, tmp_path, caplog):
    """The loss falls; where the highest is taken for the best one, that is the first."""
    caplog.set_level("INFO", logger="sft_hf")
    flags = {"metric_for_best_model": "loss", "greater_is_better": greater_is_better}
    trainer = make_trainer(tmp_path, multi_label_rows(24), batch_size=4, **EVERY_STEP, **flags)
    trainer.train()
    made = counted(trainer)
    reused, accumulated, thresholds = trainer.validate(), trainer.accumulated["eval"], trainer.thresholds
    assert made == []
    assert f"these weights were evaluated at step {step}, and are not once more" in caplog.text
    assert reused["eval_samples_per_second"] == trainer.state.log_history[-1]["eval_samples_per_second"] > 0
    assert without_clock(reused) == without_clock(trainer.evaluate())
    assert accumulated.compute() == trainer.accumulated["eval"].compute()
    assert thresholds.tolist() == trainer.thresholds.tolist()
    with torch.no_grad():
        next(trainer.model.parameters()).add_(1)
    assert trainer.validate()["eval_loss"] != reused["eval_loss"]
    assert made == ["eval", "eval"]


def test_a_pass_that_another_process_made_is_made_again(tmp_path):
    make_trainer(tmp_path, topic_rows(8), batch_size=4, **EVERY_STEP).train()
    resumed = make_trainer(tmp_path, topic_rows(8), batch_size=4, **EVERY_STEP)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    made = counted(resumed)
    assert "eval_loss" in resumed.validate()
    assert made == ["eval"]


# ---- a run ----


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    tiny.save_bert(folder / "bert")
    tiny.write_rows(folder / "train.jsonl", tiny.rows(96, "multi"))
    tiny.write_rows(folder / "test.jsonl", tiny.rows(24, "multi", seed=1))
    return folder


def test_a_run_leaves_what_it_left_when_it_validated_twice(world, tmp_path, monkeypatch):
    """Metrics, tuned thresholds, predictions and history are equal; `eval_samples_per_second` is the test pass's."""
    left = {}
    for name in ("once", "twice"):
        run = tiny.run_recipe(
            "--train_file", world / "train.jsonl", "--test_file", world / "test.jsonl",
            "--model_name_or_path", world / "bert", "--output_dir", tmp_path / name,
        )  # fmt: skip
        assert run.exit_code == 0, run.output
        assert ("are not once more" in run.output) == (name == "once")
        results = json.loads((tmp_path / name / "results.json").read_text())
        training = results.pop("training")
        history = json.loads((tmp_path / name / "trainer_state.json").read_text())["log_history"]
        assert training["eval_samples_per_second"] == round(history[-1]["test_samples_per_second"], 3)
        entries = [without_clock(entry) for entry in history if "train_runtime" not in entry]
        left[name] = results, entries, (tmp_path / name / "predictions" / "test.jsonl").read_text()
        monkeypatch.setattr(ValidationPasses, "of", lambda *_: None)
    assert left["once"] == left["twice"]
    assert left["once"][0]["thresholds"] != [0.5] * 3
