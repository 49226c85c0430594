"""The gradient of a step does not depend on how its global batch was cut; evaluation counts every example once."""

import os
import subprocess
from pathlib import Path

import pytest
import tiny
import torch
from accelerate.utils import gather_object
from datasets import ClassLabel, Dataset, Features, List, Value
from torch.utils._python_dispatch import TorchDispatchMode

from sft_hf import build_trainer
from sft_hf.arguments import DataArguments, FinetuningArguments, ModelArguments
from sft_hf.errors import ArgumentError
from sft_hf.tasks.text_classification import TextClassification

TOPICS = {"animal": "the cat and the dog", "number": "one two three plus", "colour": "red green or blue"}


def topic_rows(num_rows: int) -> Dataset:
    """Classes of unequal number, texts of unequal length: sums and means differ in every cut."""
    names = ["animal", "number", "animal", "colour", "animal"]
    rows = [(" ".join([TOPICS[names[i % 5]]] * (1 + i % 3)) + f" {i}", names[i % 5]) for i in range(num_rows)]
    features = Features({"text": Value("string"), "label": ClassLabel(names=sorted(TOPICS))})
    return Dataset.from_dict(
        {"text": [text for text, _ in rows], "label": [name for _, name in rows]}, features=features
    )


def multi_label_rows(num_rows: int) -> Dataset:
    names = ["a", "b", "c"]
    rows = [[name for bit, name in enumerate(names) if i + 1 & 1 << bit] for i in range(num_rows)]
    features = Features({"text": Value("string"), "labels": List(Value("string"))})
    texts = [" ".join(row) + f" {i}" for i, row in enumerate(rows)]
    return Dataset.from_dict({"text": texts, "labels": rows}, features=features)


def make_trainer(
    output_dir: Path,
    dataset: Dataset,
    *,
    batch_size: int,
    steps: int = 1,
    task: TextClassification | None = None,
    data_args: DataArguments | None = None,
    tokenizer_name: str | None = None,
    **flags,
):
    arguments = {
        "max_steps": 1,
        "learning_rate": 1.0,
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant",
        "train_sampling_strategy": "sequential",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        **flags,
    }
    return build_trainer(
        task or TextClassification(),
        data_args or DataArguments(),
        ModelArguments(
            model_name_or_path="builtin:lstm",
            tokenizer_name=tokenizer_name,
            config_overrides=["dropout=0", "hidden_size=16", "embedding_size=16"],
        ),
        FinetuningArguments(
            output_dir=str(output_dir),
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=steps,
            **arguments,
        ),
        datasets={"train": dataset, "validation": dataset},
    )


def gradient(trainer) -> torch.Tensor:
    """What one step of plain SGD at rate 1 subtracted: the gradient."""
    before = torch.cat([parameter.detach().clone().ravel() for parameter in trainer.model.parameters()])
    trainer.train()
    after = torch.cat([parameter.detach().ravel() for parameter in trainer.model.parameters()])
    return before - after


def relative_difference(left: torch.Tensor, right: torch.Tensor) -> float:
    return float((left - right).norm() / right.norm())


CASES = {
    "cross_entropy": (topic_rows, TextClassification(), {}),
    "weighted": (topic_rows, TextClassification(class_weights="balanced"), {"label_smoothing_factor": 0.1}),
    "focal": (topic_rows, TextClassification(loss="focal"), {}),
    "multi_label": (multi_label_rows, TextClassification(), {}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_global_batch_has_one_gradient_however_it_is_cut(case, tmp_path):
    """Pitfall 1: the stock Trainer multiplies by the number of accumulation steps for most heads."""
    make_rows, task, flags = CASES[case]
    whole = gradient(make_trainer(tmp_path, make_rows(8), batch_size=8, task=task, **flags))
    for batch_size, steps in ((2, 4), (4, 2)):
        cut = gradient(make_trainer(tmp_path, make_rows(8), batch_size=batch_size, steps=steps, task=task, **flags))
        assert relative_difference(cut, whole) < 1e-5


def test_a_short_last_batch_weighs_its_examples_like_any_other(tmp_path):
    whole = gradient(make_trainer(tmp_path, topic_rows(7), batch_size=7))
    cut = gradient(make_trainer(tmp_path, topic_rows(7), batch_size=2, steps=4))
    assert relative_difference(cut, whole) < 1e-5


BY_TOKENS = {"batch_size": 1, "train_sampling_strategy": "group_by_length"}


def test_batches_by_tokens_have_the_gradient_of_their_examples(tmp_path):
    """Pitfall 1, with micro-batches of unequal numbers."""
    whole = gradient(make_trainer(tmp_path, topic_rows(11), tokens_per_batch=1000, **BY_TOKENS))
    trainer = make_trainer(tmp_path, topic_rows(11), tokens_per_batch=33, steps=9, **BY_TOKENS)
    cut = gradient(trainer)
    assert len({len(batch) for batch in trainer._token_batches}) > 1
    assert relative_difference(cut, whole) < 1e-5


def seen_by(trainer) -> list[tuple[str, list[int], int]]:
    """Of each batch that the model gets: whether it is trained on, its example ids, and its tokens with padding."""
    seen, prepare = [], trainer._prepare_inputs

    def prepare_inputs(batch):
        kind = "train" if trainer.model.training else "eval"
        seen.append((kind, batch["example_id"].tolist(), batch["input_ids"].numel()))
        return prepare(batch)

    trainer._prepare_inputs = prepare_inputs
    return seen


def test_batches_by_tokens_hold_no_more_than_that_and_each_example_once_an_epoch(tmp_path, caplog):
    caplog.set_level("INFO", logger="sft_hf")
    flags = {"tokens_per_batch": 40, "num_train_epochs": 3, "max_steps": -1, "learning_rate": 0.05, "steps": 2}
    flags |= {"save_strategy": "steps", "save_steps": 7, **BY_TOKENS}
    trainer = make_trainer(tmp_path, topic_rows(27), **flags)
    seen = seen_by(trainer)
    trainer.train()
    assert all(num_tokens <= 40 for _, _, num_tokens in seen)
    num_batches, epochs = len(seen) // 3, []
    assert num_batches == len(trainer._token_batches)
    for start in range(0, len(seen), num_batches):
        epochs.append([key for _, ids, _ in seen[start : start + num_batches] for key in ids])
    assert [sorted(epoch) for epoch in epochs] == [list(range(27))] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3
    steps_in_epoch = -(-num_batches // 2)
    assert (trainer.state.global_step, trainer.state.epoch) == (3 * steps_in_epoch, 3.0)
    assert trainer.num_examples_trained == 81
    assert (num_batches, trainer.get_total_train_batch_size(trainer.args)) == (10, 5)  # 27 by 10, twice, of a mean step
    assert f"--tokens_per_batch 40: {num_batches} batches of" in caplog.text

    assert 7 % steps_in_epoch > 0  # inside of an epoch
    resumed = make_trainer(tmp_path, topic_rows(27), **flags)
    seen_again = seen_by(resumed)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-7"))
    assert seen_again == seen[-len(seen_again) :]
    assert len(seen_again) < len(seen)
    for before, after in zip(trainer.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(before, after)

    seen.clear()
    metrics = trainer.evaluate()
    assert all(num_tokens <= 40 for _, _, num_tokens in seen)
    assert sorted(key for _, ids, _ in seen for key in ids) == list(range(27))
    by_number = make_trainer(tmp_path, topic_rows(27), batch_size=4)
    by_number.model.load_state_dict(trainer.model.state_dict())
    assert metrics["eval_loss"] == pytest.approx(by_number.evaluate()["eval_loss"], rel=1e-6)
    seen.clear()
    trainer.predictions(trainer.eval_dataset, batch_size=1)  # the reload check goes one by one
    assert {len(ids) for _, ids, _ in seen} == {1}


def test_examples_of_one_size_have_no_batches_by_tokens(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, topic_rows(8), tokens_per_batch=40, **BY_TOKENS)
    monkeypatch.setitem(trainer.task.__dict__, "lengths", lambda *_args, **_options: None)
    with pytest.raises(
        ArgumentError, match="--tokens_per_batch 40: here examples are of one size.*give --per_device_train"
    ):
        trainer.train()


def test_the_logged_loss_is_the_mean_over_the_global_batch(tmp_path):
    losses = []
    for batch_size, steps in ((8, 1), (2, 4)):
        trainer = make_trainer(tmp_path, topic_rows(8), batch_size=batch_size, steps=steps, logging_steps=1)
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0] == pytest.approx(1.0986, abs=0.05)  # ln(3 classes), the head is new


STREAMS = {
    # The last of the steps of 4 has 3 rows, of which the second process has one; or 1 row, of which it has none.
    "a stream": {"num_rows": 11, "num_files": 2},
    "a stream of as many files as no rank": {"num_rows": 9, "num_files": 3, "dataloader_num_workers": 2},
    "a stream that goes on": {"num_rows": 11, "num_files": 2, "resume": 5},
}


def train_on_a_stream(folder: str, *, num_rows: int, num_files: int, resume: int | None = None, **flags) -> dict:
    """Eight steps of four examples, on one process or two: the ids of each micro-batch of each rank, and the weights."""
    rows = topic_rows(num_rows).to_iterable_dataset(num_shards=num_files).shuffle(seed=0, buffer_size=4)
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    flags = {"max_steps": 8, "learning_rate": 0.05, "save_strategy": "steps", "save_steps": 5, **flags}
    output_dir = Path(folder) / f"stream-{num_rows}-{world_size}"
    trainer = make_trainer(
        output_dir, rows, batch_size=2, steps=2 // world_size, tokenizer_name=f"{folder}/bert", **flags
    )
    seen, prepare = [], trainer._prepare_inputs
    trainer._prepare_inputs = lambda batch: seen.append(batch["example_id"].tolist()) or prepare(batch)
    trainer.train(resume_from_checkpoint=str(output_dir / f"checkpoint-{resume}") if resume else None)
    assert trainer.state.global_step == 8
    weights = torch.cat([parameter.detach().ravel() for parameter in trainer.model.parameters()])
    return {"ids": gather_object([seen]) if world_size > 1 else [seen], "weights": weights}


def validate_on_each_rank(folder: Path) -> dict:
    """After training: what validate() gives, what a pass of its own gives, and how many passes each call makes."""
    trainer = make_trainer(
        folder, topic_rows(11), batch_size=4, max_steps=2, eval_strategy="steps", eval_steps=1, save_strategy="steps",
        save_steps=1, load_best_model_at_end=True, metric_for_best_model="loss", learning_rate=0.1,
    )  # fmt: skip
    trainer.train()
    passes, loop = [], trainer.evaluation_loop
    trainer.evaluation_loop = lambda *args, **kwargs: passes.append(1) or loop(*args, **kwargs)
    losses, made = [], []
    for evaluate in (trainer.validate, trainer.evaluate):
        losses.append(evaluate()["eval_loss"])
        made.append(len(passes))
    if trainer.args.process_index == 1:
        next(trainer.model.parameters()).data += 1
    trainer.validate()
    return {"losses": losses, "made": [*made, len(passes)]}


TOKENS = {
    # An epoch in one step, of both ranks' batches; of the last two of its three micro-batches one rank has none.
    "by tokens": (11, {"tokens_per_batch": 66, "steps": 9}),
    "by tokens, one rank empty": (3, {"tokens_per_batch": 18, "steps": 2}),
}
WORKER = """
import sys, json, torch
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import test_trainer as t
import test_divergence
from sft_hf.errors import DivergedError
results = {}
for case, (make_rows, task, flags) in t.CASES.items():
    trainer = t.make_trainer(Path(sys.argv[2]) / "run", make_rows(8), batch_size=4, task=task, **flags)
    assert trainer.args.world_size == 2 and trainer.args.device.type == "cpu"
    results[case] = t.gradient(trainer)
results["short"] = t.gradient(t.make_trainer(Path(sys.argv[2]) / "run", t.topic_rows(5), batch_size=4))
results["one rank empty"] = t.gradient(t.make_trainer(Path(sys.argv[2]) / "run", t.topic_rows(3), batch_size=4))
trainer = t.make_trainer(Path(sys.argv[2]) / "run", t.topic_rows(11), batch_size=4, per_device_eval_batch_size=2)
metrics, predictions = trainer.evaluate_and_predict(trainer.eval_dataset, metric_key_prefix="eval")
results["eval"] = {"loss": metrics["eval_loss"], "accuracy": metrics["eval_accuracy"], "rows": sorted(predictions)}
for case, (num_rows, options) in t.TOKENS.items():
    trainer = t.make_trainer(Path(sys.argv[2]) / "run", t.topic_rows(num_rows), **options, **t.BY_TOKENS)
    results[case] = t.gradient(trainer)
    results[case + ": examples"] = trainer.num_examples_trained, trainer.state.epoch, trainer._token_batches.num_left
folder = Path(sys.argv[2]) / "resumed"
flags = dict(batch_size=2, max_steps=20, learning_rate=0.05, train_sampling_strategy="group_by_length")
whole = t.make_trainer(folder, t.topic_rows(27), save_strategy="steps", save_steps=10, **flags)
whole.train()
resumed = t.make_trainer(folder, t.topic_rows(27), **flags)
resumed.train(resume_from_checkpoint=str(folder / "checkpoint-10"))
results["resume"] = [torch.cat([p.detach().ravel() for p in x.model.parameters()]) for x in (whole, resumed)]
stream = t.topic_rows(11).to_iterable_dataset(num_shards=2)
flags |= dict(t.BY_TOKENS, tokens_per_batch=40, max_steps=12)
whole = t.make_trainer(folder / "tokens", t.topic_rows(27), save_strategy="steps", save_steps=7, **flags)
whole.train()
resumed = t.make_trainer(folder / "tokens", t.topic_rows(27), **flags)
resumed.train(resume_from_checkpoint=str(folder / "tokens" / "checkpoint-7"))
results["resume by tokens"] = [torch.cat([p.detach().ravel() for p in x.model.parameters()]) for x in (whole, resumed)]
flags = dict(max_steps=4, train_sampling_strategy="random", per_device_eval_batch_size=2)
trainer = t.make_trainer(folder, stream, batch_size=2, tokenizer_name=sys.argv[2] + "/bert", **flags)
trainer.train()
metrics, predictions = trainer.evaluate_and_predict(trainer.eval_dataset, metric_key_prefix="eval")
results["stream"] = sorted(predictions)
results |= {name: t.train_on_a_stream(sys.argv[2], **options) for name, options in t.STREAMS.items()}
results["validated"] = t.validate_on_each_rank(folder / "validated")
poisoned = t.make_trainer(Path(sys.argv[2]) / "run", t.topic_rows(8), batch_size=4)
if trainer.args.process_index == 1:
    test_divergence.poison(poisoned, {1})
try:
    poisoned.train()
except DivergedError as error:
    results["diverged"] = str(error), poisoned._record.example_ids[0]
if trainer.args.process_index == 0:
    torch.save(results, Path(sys.argv[2]) / "results.pt")
"""


def test_two_processes_have_the_gradient_and_the_metrics_of_one(tmp_path):
    """Pitfall 2: 2 processes x 4 steps gave 8 times the gradient and twice the eval_loss."""
    (tmp_path / "worker.py").write_text(WORKER)
    tiny.save_bert(tmp_path / "bert")  # its tokenizer, for the stream
    subprocess.run(
        [*tiny.torchrun(2), str(tmp_path / "worker.py"), str(Path(__file__).parent), str(tmp_path)],
        check=True,
        timeout=200,
    )
    two = torch.load(tmp_path / "results.pt", weights_only=True)
    for case, (make_rows, task, flags) in CASES.items():
        one = gradient(make_trainer(tmp_path, make_rows(8), batch_size=8, task=task, **flags))
        assert relative_difference(two[case], one) < 1e-5, case
    for case, num_rows in (("short", 5), ("one rank empty", 3)):
        one = gradient(make_trainer(tmp_path, topic_rows(num_rows), batch_size=num_rows))
        assert relative_difference(two[case], one) < 1e-5, case
    trainer = make_trainer(tmp_path, topic_rows(11), batch_size=4, per_device_eval_batch_size=2)
    metrics = trainer.evaluate()
    assert two["eval"]["rows"] == list(range(11))
    assert two["eval"]["loss"] == pytest.approx(metrics["eval_loss"], rel=1e-6)
    assert two["eval"]["accuracy"] == metrics["eval_accuracy"]
    validated = two["validated"]
    assert validated["losses"][0] == validated["losses"][1]
    assert validated["made"] == [0, 1, 2]  # in the end the second rank alone has other weights
    for case, (num_rows, _) in TOKENS.items():
        one = gradient(make_trainer(tmp_path, topic_rows(num_rows), batch_size=num_rows))
        assert relative_difference(two[case], one) < 1e-5, case
        assert two[f"{case}: examples"] == (num_rows, 1.0, num_rows % 2 if "empty" in case else 0)
    assert torch.equal(*two["resume by tokens"])  # step 7 of 12 is inside of an epoch of 5
    message, of_the_first_rank = two["diverged"]  # the loss is that of the second one; the first one says it
    named = {int(key) for key in message.split("examples ")[1].split(" (")[0].split(", ")}
    assert named == set(range(8)) - set(of_the_first_rank)
    whole_run, resumed_run = two[
        "resume"
    ]  # step 10 of 20 is inside the second epoch of 7 steps, the last of them short
    assert torch.equal(whole_run, resumed_run)
    assert two["stream"] == list(range(11))
    for name, options in STREAMS.items():
        one = train_on_a_stream(str(tmp_path), **options)
        # Of a global batch each process has a micro-batch, as one process has two of them, one after the other.
        ranks, alone = two[name]["ids"], one["ids"][0]
        assert [part for step in zip(*ranks, strict=True) for part in step] == alone
        assert relative_difference(two[name]["weights"], one["weights"]) < 1e-5
        epoch = [key for part in alone[: -(-options["num_rows"] // 4) * 2] for key in part if key >= 0]
        assert "resume" in options or sorted(epoch) == list(range(options["num_rows"]))
    assert torch.equal(two["a stream"]["weights"], two["a stream that goes on"]["weights"])
    assert [rank[5:] for rank in two["a stream"]["ids"]] == two["a stream that goes on"]["ids"]


def test_eval_loss_does_not_depend_on_the_batch_size(tmp_path):
    losses = [
        make_trainer(tmp_path, topic_rows(11), batch_size=4, per_device_eval_batch_size=size).evaluate()["eval_loss"]
        for size in (1, 4, 11)
    ]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)


class Reads(TorchDispatchMode):
    """Counts the numbers that Python reads out of tensors: on a GPU each waits for all that was launched before."""

    number = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.number += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def test_evaluation_reads_no_number_for_each_batch(tmp_path):
    """2 and 10 batches; the model reads one of each: whether its mask is padded on the right."""
    reads = []
    for num_rows in (4, 20):
        trainer = make_trainer(tmp_path, topic_rows(num_rows), batch_size=4, per_device_eval_batch_size=2)
        with Reads() as mode:
            trainer.evaluate()
        reads.append(mode.number)
    assert reads[1] - reads[0] == 10 - 2


def test_frozen_base_model_keeps_its_weights_and_no_dropout(tmp_path):
    trainer = make_trainer(tmp_path, topic_rows(8), batch_size=4)
    trainer._freeze_base_model = True
    trainer.model.base_model.requires_grad_(False)
    before = {name: value.clone() for name, value in trainer.model.base_model.state_dict().items()}
    trainer.train()
    assert not trainer.model.base_model.training
    assert all(torch.equal(before[name], value) for name, value in trainer.model.base_model.state_dict().items())


OUT_OF_MEMORY = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"


def with_room_for(trainer, number: int, monkeypatch) -> list[int]:
    """Let the allocator refuse batches of more than `number` examples; returns the sizes that were tried."""
    tried, honest = [], trainer.task.loss_sums

    def loss_sums(loss, model, batch):
        tried.append(len(batch["example_id"]))
        if tried[-1] > number:
            raise RuntimeError(OUT_OF_MEMORY)
        return honest(loss, model, batch)

    monkeypatch.setitem(trainer.task.__dict__, "loss_sums", loss_sums)  # tasks are frozen
    return tried


def test_auto_find_batch_size_keeps_the_global_batch(tmp_path, monkeypatch, caplog):
    """The stock Trainer halves the global batch with it, and begins anew from the weights that it has by then."""
    caplog.set_level("INFO", logger="sft_hf")
    flags = {"train_sampling_strategy": "group_by_length", "max_steps": 3}
    trainer = make_trainer(tmp_path, topic_rows(24), batch_size=8, auto_find_batch_size=True, **flags)
    tried = with_room_for(trainer, 3, monkeypatch)
    found = gradient(trainer)
    assert tried[:3] == [8, 4, 2]
    assert (trainer.args.per_device_train_batch_size, trainer.args.gradient_accumulation_steps) == (2, 4)
    assert (
        "--per_device_train_batch_size 2 --gradient_accumulation_steps 4 do, with the same global batch" in caplog.text
    )
    assert torch.equal(found, gradient(make_trainer(tmp_path, topic_rows(24), batch_size=2, steps=4, **flags)))


def test_the_batch_that_is_tried_has_the_longest_examples_and_changes_nothing(tmp_path):
    trainer = make_trainer(tmp_path, topic_rows(24), batch_size=4)
    lengths = trainer.train_dataset["length"][:]
    longest = trainer._longest_examples(4)
    assert sorted(example["length"] for example in longest) == sorted(lengths)[-4:]
    state = torch.get_rng_state()
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    assert trainer._fits(4)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in trainer.model.state_dict().items())
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


def test_the_best_checkpoint_of_a_run_that_was_moved_is_found_again(tmp_path):
    """The state of a checkpoint holds the path of the best one as it was."""
    flags = {"batch_size": 4, "eval_strategy": "steps", "save_strategy": "steps", "load_best_model_at_end": True}
    flags |= {
        "eval_steps": 1,
        "save_steps": 1,
        "learning_rate": 0.0,
        "max_steps": 3,
        "metric_for_best_model": "accuracy",
    }
    make_trainer(tmp_path / "here", topic_rows(8), **flags).train()
    (tmp_path / "here").rename(tmp_path / "there")
    moved = make_trainer(tmp_path / "there", topic_rows(8), **flags)
    moved.train(resume_from_checkpoint=str(tmp_path / "there" / "checkpoint-2"))
    assert moved.state.best_model_checkpoint == str(tmp_path / "there" / "checkpoint-1")


def test_a_failure_that_is_not_of_memory_is_not_taken_for_one(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, topic_rows(8), batch_size=4)

    def fails(*_args):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setitem(trainer.task.__dict__, "loss_sums", fails)
    with pytest.raises(RuntimeError, match="mat1"):
        trainer._fits(4)


def test_training_args_bin_holds_no_token(tmp_path):
    """Pitfall 40: the Trainer saves, and pushes, its arguments with hub_token in clear."""
    trainer = make_trainer(tmp_path, topic_rows(8), batch_size=4, hub_token="hf_very_secret")
    trainer.save_model(str(tmp_path / "saved"), _internal_call=True)
    assert b"hf_very_secret" not in (tmp_path / "saved" / "training_args.bin").read_bytes()
    assert trainer.args.hub_token == "hf_very_secret"
