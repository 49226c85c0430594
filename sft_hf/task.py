"""Task: the stages by which one kind of model is fine-tuned, from a row of a dataset to a metric.

    columns -> labels -> load_processor -> load_model -> preprocess -> data_collator
            -> load_loss -> loss_denominators -> loss_sums            (training)
            -> predict -> load_metrics                                (evaluation, the reload check, the command line)

A task is a frozen dataclass. Its fields are the task's flags, its methods the stages; each takes only what earlier
stages made, so the signatures are the data-flow diagram.

Why sums and denominators: the Trainer counts `labels != -100` and many heads ignore that count, so a gradient depends
on how the global batch is cut into accumulation steps and processes (pitfalls 1 and 2). A task says from the batch alone
what its sums will be divided by; the driver adds that up over all steps and ranks and divides once.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Dataset, Features, IterableDataset
from torch import Tensor
from transformers import PreTrainedModel

from sft_hf.arguments import FinetuningArguments, ModelArguments
from sft_hf.data.containment import Place
from sft_hf.data.labels import Labels
from sft_hf.data.sources import Source
from sft_hf.data.token_batches import Lengths
from sft_hf.losses import Loss
from sft_hf.metrics import Metrics

Batch = dict[str, Any]
AnyDataset = Dataset | IterableDataset


@dataclass(frozen=True)
class Columns:
    """The columns of a dataset that a task reads: its inputs, and the label (None where nothing is labelled)."""

    inputs: tuple[str, ...]
    label: str | None
    place: Place | None = None  # where the files lie that they name; None: anywhere

    def label_feature(self, dataset: AnyDataset) -> Any:
        """What a split's own labels mean; None where the split has none or, a stream, does not say."""
        return (dataset.features or {}).get(self.label)


@dataclass(frozen=True)
class Task(ABC):
    """The stages of one task; see the module's text for their order."""

    pipeline_tag: ClassVar[str]  # the Hub's name of the task, also transformers.pipeline's
    own_data: ClassVar[str] = (
        "--train_file train.csv --test_file test.csv"  # flags for data that are on no hub, as an example
    )
    _argument_group_name: ClassVar[str] = "task"  # of its flags in --help

    @property
    def backbone(self) -> str | None:
        """The pretrained backbone on which an architecture of ours stands, by name; None where there is none."""
        return None

    @property
    def randomness(self) -> tuple[str, str] | None:
        """The flag by which a training example is another one in every epoch, and the flag without: `--augmentation light`, `none`."""
        return None

    def why_inputs_vary(self, train: AnyDataset, processor: Any, model: PreTrainedModel) -> str | None:
        """What else changes an example's inputs from epoch to epoch, as the end of a sentence; None: a frozen base may run once for it."""
        return "that is for classification alone"

    @property
    def as_the_pipeline_does(self) -> "Task":
        """The task for the reload check: itself, or one without what `transformers.pipeline` cannot do."""
        return self

    def seconds_per_example(self, examples: AnyDataset) -> float | None:
        """How long the clip of a preprocessed example is on average; None where there is none, and of a stream."""
        return None

    @abstractmethod
    def columns(self, features: Features) -> Columns:
        """Which columns are read; DataError with the candidates and the flag where it is not clear."""

    @abstractmethod
    def labels(self, source: Source, columns: Columns) -> Labels:
        """What the label column means: the problem, the class names and their order."""

    @abstractmethod
    def select_examples(self, dataset: AnyDataset, columns: Columns, labels: Labels, *, split: str) -> AnyDataset:
        """Drop what the split cannot use, by stated rules and with a count in the log; evaluation drops no input."""

    @abstractmethod
    def stratify(self, train: Dataset, columns: Columns, labels: Labels) -> list | None:
        """A value for each row by which a hold-out keeps proportions; None to draw at random."""

    @abstractmethod
    def example_keys(self, dataset: Dataset, columns: Columns) -> list[str]:
        """A key for each row; equal keys are the same input (duplicates across splits)."""

    @abstractmethod
    def load_processor(self, model_args: ModelArguments, train: AnyDataset, columns: Columns) -> Any:
        """The tokenizer, image processor or feature extractor, ready for training."""

    @abstractmethod
    def load_model(self, model_args: ModelArguments, labels: Labels, processor: Any) -> PreTrainedModel:
        """The model with the head that `labels` need, in the dtype to train in."""

    @abstractmethod
    def preprocess(
        self,
        dataset: AnyDataset,
        columns: Columns,
        labels: Labels,
        processor: Any,
        model: PreTrainedModel,
        *,
        split: str,
        num_workers: int | None = None,
    ) -> AnyDataset:
        """Model inputs, `labels` where the split has them, `example_id`, and `length` where batches are grouped by it."""

    def lengths(self, examples: Dataset, processor: Any, *, split: str) -> Lengths | None:
        """What each preprocessed example of `train` or `evaluation` takes of a batch that is padded to its longest; None where examples
        are of one size whatever they hold.
        """
        return None

    def load_reader(
        self, processor: Any, model: PreTrainedModel, columns: Columns, labels: Labels, *, split: str, seed: int
    ) -> Callable[[dict, int], dict] | None:
        """What makes an example of a preprocessed row, each time it is read, in the dataloader's workers: decoding,
        augmentation as a function of (seed, epoch, example_id). Picklable; None where preprocessed rows are examples.
        """
        return None

    def initialise(self, model: PreTrainedModel, train: AnyDataset, labels: Labels) -> None:  # noqa: B027
        """Start the model's new weights where the preprocessed training split says; by default where they are."""

    @abstractmethod
    def data_collator(self, processor: Any, model: PreTrainedModel) -> Callable[[list[dict]], Batch]:
        """A picklable function that makes a batch of preprocessed examples (pitfall 24)."""

    def on_device(self, batch: Batch, processor: Any, *, dtype: torch.dtype) -> Batch:
        """The collated batch, once it is on the device of the model, whose weights are of `dtype`, as the model takes it."""
        return batch

    @abstractmethod
    def load_loss(
        self, train: AnyDataset, labels: Labels, training_args: FinetuningArguments, model: PreTrainedModel
    ) -> Loss:
        """The loss that the flags name, with its class weights. `train` is preprocessed."""

    @abstractmethod
    def loss_denominators(self, loss: Loss, batch: Batch) -> dict[str, Tensor]:
        """What each sum of `loss_sums` is divided by, from the batch alone: items, tokens or pixels."""

    @abstractmethod
    def loss_sums(self, loss: Loss, model: PreTrainedModel, batch: Batch) -> tuple[Any, dict[str, Tensor]]:
        """The model's outputs and one sum for each denominator."""

    @abstractmethod
    def predict(self, model: PreTrainedModel, outputs: Any, batch: Batch, processor: Any) -> Sequence:
        """One prediction for each example of the batch, from the model's outputs; a generating model goes on from there."""

    @abstractmethod
    def references(self, batch: Batch) -> Sequence:
        """What `load_metrics` compares the predictions with."""

    def keep_prediction(self, example_id: int, prediction: Any, *, folder: Path) -> Any:
        """What is kept of a prediction for `describe`; large ones are written below `folder` at once."""
        return prediction

    @abstractmethod
    def load_metrics(self, labels: Labels, model_args: ModelArguments) -> Metrics:
        """An empty accumulator."""

    @abstractmethod
    def describe(self, kept: Any, labels: Labels, thresholds: np.ndarray | None) -> dict[str, Any]:
        """One prediction, as `keep_prediction` left it, as a person reads it: a line of predictions/test.jsonl."""

    def describe_inputs(self, row: dict, columns: Columns) -> dict[str, Any]:
        """The inputs of a raw row in that line."""
        return {name: row[name] for name in columns.inputs}

    @abstractmethod
    def describe_label(self, row: dict, columns: Columns, labels: Labels, feature: Any) -> Any:
        """The label of a raw row in that line; None where it has none."""

    def report_examples(  # noqa: B027
        self, rows: list[dict], predictions: list, columns: Columns, labels: Labels, *, folder: Path
    ) -> None:
        """Pictures or pages of a few validation rows and their predictions, written below `folder`."""

    def report_metrics(  # noqa: B027
        self, metrics: Metrics, rows: AnyDataset, columns: Columns, *, folder: Path, split: str
    ) -> None:
        """What the accumulated predictions of a whole split show, written below `folder`."""

    @abstractmethod
    def pipeline_inputs(self, example: dict, columns: Columns, processor: Any) -> Any:
        """A raw row as `transformers.pipeline` takes it."""

    @abstractmethod
    def pipeline_options(self) -> dict[str, Any]:
        """The keywords with which `transformers.pipeline` is called to see what the evaluation saw."""

    @abstractmethod
    def usage_example(self) -> str:
        """The line of the model card that calls the pipeline; it begins with the pipeline's name: `classifier("...")`."""

    @abstractmethod
    def reload_difference(self, predictions: list, answers: list, labels: Labels) -> float:
        """How far the answers of `transformers.pipeline` are from the predictions for the same rows: 0 if they agree.

        The largest difference of two probabilities, or the share of the pixels or tokens that differ.
        """
