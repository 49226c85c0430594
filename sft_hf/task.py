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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from datasets import Dataset, Features, IterableDataset
from torch import Tensor
from transformers import PreTrainedModel

from sft_hf.arguments import FinetuningArguments, ModelArguments
from sft_hf.data.labels import Labels
from sft_hf.losses import Loss
from sft_hf.metrics import Metrics

Batch = dict[str, Any]
AnyDataset = Dataset | IterableDataset


@dataclass(frozen=True)
class Columns:
    """The columns of a dataset that a task reads: its inputs, and the label (None where nothing is labelled)."""

    inputs: tuple[str, ...]
    label: str | None

    def label_feature(self, dataset: AnyDataset) -> Any:
        """What a split's own labels mean; None where the split has none or, a stream, does not say."""
        return (dataset.features or {}).get(self.label)


@dataclass(frozen=True)
class Task(ABC):
    """The stages of one task; see the module's text for their order."""

    pipeline_tag: ClassVar[str]  # the Hub's name of the task, also transformers.pipeline's
    _argument_group_name: ClassVar[str] = "task"  # of its flags in --help

    @abstractmethod
    def columns(self, features: Features) -> Columns:
        """Which columns are read; DataError with the candidates and the flag where it is not clear."""

    @abstractmethod
    def labels(self, splits: Mapping[str, AnyDataset], columns: Columns) -> Labels:
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
        *,
        split: str,
        num_workers: int | None = None,
    ) -> AnyDataset:
        """Model inputs, `labels` where the split has them, `example_id`, and `length` where batches are grouped by it."""

    def initialise(self, model: PreTrainedModel, train: AnyDataset, labels: Labels) -> None:  # noqa: B027
        """Start the model's new weights where the preprocessed training split says; by default where they are."""

    @abstractmethod
    def data_collator(self, processor: Any, model: PreTrainedModel) -> Callable[[list[dict]], Batch]:
        """A picklable function that makes a batch of preprocessed examples (pitfall 24)."""

    @abstractmethod
    def load_loss(self, train: AnyDataset, labels: Labels, training_args: FinetuningArguments) -> Loss:
        """The loss that the flags name, with its class weights. `train` is preprocessed."""

    @abstractmethod
    def loss_denominators(self, loss: Loss, batch: Batch) -> dict[str, Tensor]:
        """What each sum of `loss_sums` is divided by, from the batch alone: items, tokens or pixels."""

    @abstractmethod
    def loss_sums(self, loss: Loss, model: PreTrainedModel, batch: Batch) -> tuple[Any, dict[str, Tensor]]:
        """The model's outputs and one sum for each denominator."""

    @abstractmethod
    def predict(self, outputs: Any) -> np.ndarray:
        """Predictions `(batch, ...)` on the CPU from the model's outputs."""

    @abstractmethod
    def load_metrics(self, labels: Labels, model_args: ModelArguments) -> Metrics:
        """An empty accumulator."""

    @abstractmethod
    def describe(self, prediction: np.ndarray, labels: Labels, thresholds: np.ndarray | None) -> dict[str, Any]:
        """One prediction as a person reads it: a line of predictions/test.jsonl."""

    @abstractmethod
    def pipeline_inputs(self, example: dict, columns: Columns) -> Any:
        """A raw row as `transformers.pipeline` takes it."""

    @abstractmethod
    def pipeline_options(self) -> dict[str, Any]:
        """The keywords with which `transformers.pipeline` is called to see what the evaluation saw."""

    @abstractmethod
    def pipeline_predictions(self, outputs: list[Any], labels: Labels) -> np.ndarray:
        """What `transformers.pipeline` answered, in the order of the labels: `(examples, num_labels)`."""

    @abstractmethod
    def scores(self, predictions: np.ndarray, labels: Labels) -> np.ndarray:
        """Predictions on the scale that the pipeline answers in, for comparison."""
