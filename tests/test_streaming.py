"""Streams: every example once an epoch over all ranks, resumed bit for bit, and whole behind a Hub that fails.

What the faults of a Hub do to a stream is seen with its unmodified clients; only their waits are cut short.
"""

import io
import math
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pyarrow
import pyarrow.parquet
import pytest
import test_trainer
import tiny
import torch
from huggingface_hub import constants

from sft_hf import hub as sft_hub
from sft_hf.arguments import DataArguments
from sft_hf.data.order import EvaluationStream, TrainingStream
from sft_hf.data.sources import load_splits, sample
from sft_hf.errors import HubError

NUM_FILES, NUM_ROWS = 3, 40  # and rows of each


@pytest.fixture(scope="module", autouse=True)
def _no_waits_for_threads() -> Iterator[None]:
    """datasets sleeps for 5 s after each pass over parquet files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)
        yield


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    """The seconds that the clients and this package would have waited between their tries."""
    waited = []
    clock = SimpleNamespace(**{**vars(time), "sleep": waited.append})
    clients = ("huggingface_hub.utils._http", "huggingface_hub.file_download", "datasets.utils.file_utils")
    for module in (*clients, "sft_hf.hub"):
        monkeypatch.setattr(f"{module}.time", clock)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    return waited


def files(suffix: str) -> dict[str, bytes]:
    """Three files of 40 rows; of parquet in row groups of 8."""
    made, contents = tiny.rows(NUM_FILES * NUM_ROWS), {}
    for number in range(NUM_FILES):
        rows = made[number * NUM_ROWS : (number + 1) * NUM_ROWS]
        if suffix == ".parquet":
            buffer = io.BytesIO()
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), buffer, row_group_size=8)
            contents[f"train-{number}.parquet"] = buffer.getvalue()
        else:
            contents[f"train-{number}{suffix}"] = tiny.table(rows, suffix)
    return contents


def streamed(name: str) -> list[dict]:
    rows = load_splits(DataArguments(dataset_name=name, streaming=True)).splits["train"]
    rows = rows.shuffle(seed=0, buffer_size=16)
    return list(sft_hub.read_stream(rows))


# ---- numbers and samples ----


@pytest.fixture(scope="module")
def local_files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    for name, content in files(".jsonl").items():
        (folder / name).write_bytes(content)
    return folder


def splits(folder: Path) -> dict:
    files = [str(folder / "train-*.jsonl")]
    return load_splits(DataArguments(train_file=files, validation_file=files, streaming=True)).splits


def test_a_row_has_one_number_in_whatever_order_the_files_are_read(local_files):
    """datasets counts each file from 0 once a stream is shuffled: three rows had the number 0."""
    in_order = list(splits(local_files)["train"])
    assert [row["example_id"] for row in in_order[38:42]] == [38, 39, 1_000_000_000, 1_000_000_001]
    texts = {row["example_id"]: row["text"] for row in in_order}
    shuffled, orders = splits(local_files)["train"].shuffle(seed=0, buffer_size=16), []
    for epoch in (0, 1, 0):
        shuffled.set_epoch(epoch)
        rows = list(shuffled)
        orders.append([row["example_id"] for row in rows])
        assert {row["example_id"]: row["text"] for row in rows} == texts
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(texts)


def test_rows_that_are_evaluated_are_numbered_through(local_files):
    texts = [row["text"] for row in splits(local_files)["validation"]]
    sampled = list(sample(splits(local_files)["validation"], 50, seed=0, flag="--max_eval_samples", buffer_size=16))
    assert len({row["example_id"] for row in sampled}) == 50
    assert all(texts[row["example_id"]] == row["text"] for row in sampled)


def test_the_sample_of_a_stream_is_the_same_in_every_epoch(local_files):
    sampled = sample(splits(local_files)["train"], 50, seed=0, flag="--max_train_samples", buffer_size=16)
    shuffled, epochs = sampled.shuffle(seed=0, buffer_size=16), []
    for epoch in (0, 1, 2):
        shuffled.set_epoch(epoch)
        epochs.append([row["example_id"] for row in shuffled])
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert len(set(map(tuple, epochs))) == 3
    loader = torch.utils.data.DataLoader(EvaluationStream(shuffled), batch_size=None, collate_fn=dict, num_workers=1)
    assert [row["example_id"] for row in loader] == epochs[2]


# ---- resume ----


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> str:
    return str(tiny.save_bert(tmp_path_factory.mktemp("bert")))


def trainer_of(folder: Path, tokenizer: str, **flags):
    stream = test_trainer.topic_rows(27).to_iterable_dataset(num_shards=3).shuffle(seed=0, buffer_size=8)
    flags = {"max_steps": 20, "learning_rate": 0.05, "save_strategy": "steps", "save_steps": 1, **flags}
    return test_trainer.make_trainer(folder, stream, batch_size=2, steps=2, tokenizer_name=tokenizer, **flags)


def weights(trainer) -> torch.Tensor:
    return torch.cat([parameter.detach().ravel() for parameter in trainer.model.parameters()])


def trained_ids(trainer) -> list[list[int]]:
    """Trains, and what each of its steps trained on."""
    steps, get_batches = [], trainer.get_batch_samples

    def recorded(*args):
        batches, denominators = get_batches(*args)
        if batches:
            steps.append([key for batch in batches for key in batch["example_id"].tolist()])
        return batches, denominators

    trainer.get_batch_samples = recorded
    return steps


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("undisturbed")
    trainer = trainer_of(folder, tokenizer)
    steps = trained_ids(trainer)
    trainer.train()
    return folder, steps, weights(trainer)


def test_every_example_is_trained_on_once_an_epoch(undisturbed):
    """27 rows in steps of 4: seven a epoch, of which the last has three rows, the last of them in its second micro-batch."""
    _, steps, _ = undisturbed
    assert [len(step) for step in steps] == [4, 4, 4, 4, 4, 4, 3] * 2 + [4] * 6
    epochs = [[key for step in steps[start : start + 7] for key in step] for start in (0, 7)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(27))
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize(("step", "num_workers"), [(3, 0), (7, 0), (10, 2), (20, 0)])
def test_a_resumed_stream_goes_on_with_the_same_examples_to_the_same_weights(
    undisturbed, tokenizer, tmp_path, step, num_workers
):
    """Inside the first epoch, at its end, inside the second one, and when nothing is left to do."""
    folder, steps, whole = undisturbed
    resumed = trainer_of(tmp_path, tokenizer, save_strategy="no", dataloader_num_workers=num_workers)
    went_on = trained_ids(resumed)
    resumed.train(resume_from_checkpoint=str(folder / f"checkpoint-{step}"))
    assert went_on == steps[step:]
    assert torch.equal(weights(resumed), whole)
    assert resumed.state.global_step == 20


def test_what_an_epoch_of_a_stream_ends_with_is_not_done_again_on_a_resume(undisturbed, tokenizer, tmp_path):
    """A second evaluation of the same step would count twice for --early_stopping_patience."""
    flags = {"save_strategy": "epoch", "eval_strategy": "epoch", "max_steps": 9}
    trainer_of(tmp_path, tokenizer, **flags).train()
    resumed = trainer_of(tmp_path, tokenizer, **flags)
    steps = trained_ids(resumed)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-7"))
    assert steps == undisturbed[1][7:9]
    evaluated = [(line["step"], line["epoch"]) for line in resumed.state.log_history if "eval_loss" in line]
    assert evaluated == [(7, 1.0), (9, pytest.approx(1 + 2 / 9))]


def test_neither_workers_nor_files_change_the_order(undisturbed, tokenizer, tmp_path):
    trainer = trainer_of(tmp_path, tokenizer, save_strategy="no", dataloader_num_workers=2, max_steps=9)
    steps = trained_ids(trainer)
    trainer.train()
    assert steps == undisturbed[1][:9]


# ---- a Hub that fails ----

FAULTS = {"503": {"status": 503}, "cut": {"cut": True}, "stall": {"stall_seconds": 0.6}, "slow": {"stall_seconds": 0.1}}


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".csv"])
def test_a_fault_of_the_hub_loses_and_repeats_no_row(hub, repo_name, waits, suffix):
    """Three reads of a pass fail, all are repeated by the client."""
    name = f"alice/{repo_name}"
    hub.add_repo("dataset", name, files(suffix))
    undisturbed = streamed(name)
    assert len({row["example_id"] for row in undisturbed}) == NUM_FILES * NUM_ROWS
    for fault, failure in FAULTS.items():
        del waits[:]
        for after in (1, 1, 2):
            hub.fail("GET", rf"{name}/resolve/.*train-", after=after, **failure)
        assert streamed(name) == undisturbed
        assert len(waits) == (0 if fault == "slow" else 3)
        hub.clear_failures()


def test_a_hub_that_answers_503_for_minutes_is_waited_for(hub, repo_name, waits, caplog):
    """The client gives up after its sixth answer; the stream begins anew behind the rows that it gave."""
    name = f"alice/{repo_name}"
    hub.add_repo("dataset", name, files(".jsonl"))
    undisturbed = streamed(name)
    hub.fail("GET", f"{name}/resolve/.*train-2", status=503, times=20)
    assert streamed(name) == undisturbed
    client = [1, 2, 4, 8, 8]
    assert waits == [*client, 2, *client, 4, *client, 8, 1, 2]


@pytest.mark.parametrize(
    ("fault", "said", "num_workers"),
    [
        ({"status": 503}, r"HTTP 503, a failure the test asked for", 0),
        ({"status": 404}, r"HTTP 404", 0),
        ({"cut": True}, r"no whole answer, RemoteProtocolError: peer closed connection", 1),
    ],
)
def test_a_hub_that_fails_for_good_is_an_error_that_names_the_file(hub, repo_name, waits, fault, said, num_workers):
    name = f"alice/{repo_name}"
    hub.add_repo("dataset", name, files(".jsonl"))
    rows = load_splits(DataArguments(dataset_name=name, streaming=True)).splits["train"]
    hub.fail("GET", f"{name}/resolve/.*train-1", times=math.inf, **fault)
    loader = torch.utils.data.DataLoader(
        TrainingStream(rows, list, batch_size=8), batch_size=None, num_workers=num_workers
    )
    with pytest.raises(HubError, match=rf"(?s)/datasets/{name}/resolve/\w+/train-1.jsonl cannot be read: {said}"):
        list(loader)


# ---- whole runs ----


def streaming_run(folder: Path, name: str, *given: object) -> tiny.Run:
    flags = ("--dataset_name", name, "--streaming", "--validation_split_name", "test", "--class_names")
    model = ("--model_name_or_path", folder / "bert", "--shuffle_buffer_size", 16)
    return tiny.run_recipe(
        *flags, ",".join(tiny.TOPICS), *model, "--train_sampling_strategy", "random", "--max_steps", 24,
        "--save_steps", 5, *given,
    )  # fmt: skip


@pytest.fixture
def streamed_world(hub, repo_name, tmp_path) -> tuple[Path, str]:
    name = f"alice/{repo_name}"
    hub.add_repo("dataset", name, {**files(".parquet"), "test.parquet": tiny.table(tiny.rows(20, seed=1), ".parquet")})
    tiny.save_bert(tmp_path / "bert")
    return tmp_path, name


def test_a_run_survives_the_hub_it_streams_from(hub, streamed_world, waits):
    """Faults in the middle: the same weights. Down for good: an error, and when it is up again the same command goes on."""
    folder, name = streamed_world
    whole = streaming_run(folder, name, "--output_dir", folder / "whole")
    assert whole.exit_code == 0, whole.output
    expected = (folder / "whole" / "model.safetensors").read_bytes()

    hub.fail("GET", rf"{name}/resolve/.*train-0", after=1, **FAULTS["cut"])
    hub.fail("GET", rf"{name}/resolve/.*train-1", **FAULTS["stall"])
    hub.fail("GET", rf"{name}/resolve/.*train-2", after=1, times=8, **FAULTS["503"])
    disturbed = streaming_run(folder, name, "--output_dir", folder / "disturbed")
    assert disturbed.exit_code == 0, disturbed.output
    assert "a stream broke at row" in disturbed.output
    assert (folder / "disturbed" / "model.safetensors").read_bytes() == expected

    hub.clear_failures()
    hub.fail("GET", rf"{name}/resolve/.*train-2", after=1, times=math.inf, **FAULTS["503"])  # in the second epoch
    down = streaming_run(folder, name, "--output_dir", folder / "down")
    assert down.exit_code == 2
    said = down.output.rpartition("\nerror: ")[2]
    assert "parquet cannot be read: HTTP 503, a failure the test asked for. The checkpoint " in said
    assert "is whole; the same command goes on from there." in said
    assert "Traceback" not in down.output
    hub.clear_failures()
    went_on = streaming_run(folder, name, "--output_dir", folder / "down")
    assert went_on.exit_code == 0, went_on.output
    assert "going on from" in went_on.output
    assert (folder / "down" / "model.safetensors").read_bytes() == expected


def test_faults_of_the_hub_while_a_dataset_and_a_model_are_downloaded(hub, repo_name, tmp_path, waits):
    """Each fault once while the files come; then for good, which is an error with the server's words."""
    name = f"alice/{repo_name}"
    data, model = rf"datasets/{name}/resolve/.*csv", rf"^/{name}/resolve/.*safetensors"
    given = ("--dataset_name", name, "--model_name_or_path", name, "--max_steps", 2)
    hub.add_repo("dataset", name, {"train.csv": tiny.table(tiny.rows(64), ".csv")})
    hub.add_repo("model", name, tiny.bert())
    for pattern in (data, model):
        for fault in ("503", "cut", "stall"):
            hub.fail("GET", pattern, **FAULTS[fault])
    run = tiny.run_recipe(*given, "--output_dir", tmp_path / "run")
    assert run.exit_code == 0, run.output
    assert len(waits) == 6
    for pattern, flag in ((data, "dataset_name"), (model, "model_name_or_path")):
        for fault, said in (("503", "503 Service Unavailable"), ("cut", "RemoteProtocolError: peer closed connection")):
            for kind in ("dataset", "model"):  # under another name, since the first run left them in the cache
                hub.add_repo(kind, f"{name}-{flag}-{fault}", hub.files(kind, name))
            other = [f"{name}-{flag}-{fault}" if value == name else value for value in given]
            hub.fail("GET", pattern.replace(name, f"{name}-{flag}-{fault}"), times=math.inf, **FAULTS[fault])
            down = tiny.run_recipe(*other, "--output_dir", tmp_path / f"{flag}-{fault}")
            assert down.exit_code == 2
            assert f"error: --{flag} {name}-{flag}-{fault}: the Hub could not be asked (" in down.output
            assert said in down.output
