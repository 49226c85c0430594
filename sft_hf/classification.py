"""What every classification task shares, whatever its input: the label column, losses by name, metrics, the head.

Tasks for text, images and audio differ in their inputs alone; this is the other half.
"""

import logging
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset, Features, IterableDataset
from torch import Tensor
from transformers import PreTrainedModel

from sft_hf.arguments import FinetuningArguments, ModelArguments
from sft_hf.class_weights import resolve_class_weights
from sft_hf.data.columns import find_label_column, require_column
from sft_hf.data.label_resolution import resolve_labels
from sft_hf.data.labels import Labels, encode_column
from sft_hf.data.sources import EXAMPLE_ID, Source
from sft_hf.errors import ArgumentError
from sft_hf.losses import Loss, make_loss
from sft_hf.metrics import EvaluateModules, Metrics, MultiLabelMetrics, RegressionMetrics, SingleLabelMetrics
from sft_hf.pretrained import new_head
from sft_hf.task import AnyDataset, Batch, Columns, Task

logger = logging.getLogger(__name__)
STREAM_PEEK = 100  # rows of a streamed test split that tell whether it has labels
ENCODED_LABEL = "encoded_label"  # the column in which the labels of chosen rows wait for preprocess
NOT_MODEL_INPUTS = ("labels", "example_id", "length")


@dataclass(frozen=True)
class Classification(Task):
    """Single-label, multi-label and regression heads over any input."""

    label_column_name: str | None = field(default=None, metadata={"help": "Default: found by type and usual names."})
    class_names: str | None = field(
        default=None, metadata={"help": "Class names in id order, comma-separated; default: from the data."}
    )
    problem_type: Literal["single_label_classification", "multi_label_classification", "regression"] | None = field(
        default=None, metadata={"help": "Default: from the labels' type."}
    )
    loss: Literal["auto", "cross_entropy", "focal", "bce", "mse", "huber"] = field(
        default="auto", metadata={"help": "auto: cross_entropy, bce or mse, as the labels are."}
    )
    focal_gamma: float = field(default=2.0, metadata={"help": "How strongly --loss focal turns from easy examples."})
    class_weights: str = field(
        default="none", metadata={"help": "none, balanced, or a json/yaml FILE: {name: weight} or a list in id order."}
    )
    metrics: list[str] | None = field(
        default=None,
        metadata={"help": "More metrics: modules of evaluate, by path, or by name with --trust_remote_code."},
    )

    def _class_name_list(self) -> list[str] | None:
        return [name.strip() for name in self.class_names.split(",")] if self.class_names else None

    def find_label(self, features: Features) -> str:
        """The label column's name."""
        return find_label_column(features, given=self.label_column_name)

    def labels(self, source: Source, columns: Columns) -> Labels:
        """Resolve the label column over all splits; a stream must say everything by its features or --class_names."""
        assert columns.label is not None
        splits = source.splits
        values = {
            split: dataset[columns.label][:]
            for split, dataset in splits.items()
            if isinstance(dataset, Dataset) and columns.label in dataset.column_names
        }
        features = {
            split: dataset.features[columns.label]
            for split, dataset in splits.items()
            if dataset.features and columns.label in dataset.features
        }
        return resolve_labels(
            values,
            features["train"],
            column_name=columns.label,
            problem_type=self.problem_type,
            label_names=self._class_name_list(),
            split_features=features,
        )

    def has_labels(self, dataset: AnyDataset, columns: Columns, labels: Labels) -> bool:
        """Whether a split has anything to score against."""
        if columns.label not in (dataset.column_names or []):
            return False
        if isinstance(dataset, IterableDataset):
            is_labelled = _IsLabelled(columns.label, labels, columns.label_feature(dataset))
            return any(map(is_labelled, dataset.take(STREAM_PEEK)))
        return any(label is not None for label in self.encoded(dataset, columns, labels))

    def encoded(self, dataset: Dataset, columns: Columns, labels: Labels) -> list[int | list[float] | None]:
        """The label column of a split, encoded by the split's own feature: its ids can mean other classes than train's."""
        return encode_column(dataset[columns.label][:], labels, feature=columns.label_feature(dataset))

    def select_labelled(self, dataset: AnyDataset, columns: Columns, labels: Labels, *, split: str) -> AnyDataset:
        """Drop rows without a label; a test split without any is kept whole, for predictions alone."""
        if split == "test" and not self.has_labels(dataset, columns, labels):
            logger.info("the test split has no labels: its predictions are written, nothing is scored")
            return dataset
        require_column(dataset.column_names, columns.label, split=split, flag="--label_column_name")
        if isinstance(dataset, IterableDataset):
            return dataset.filter(_IsLabelled(columns.label, labels, columns.label_feature(dataset)))
        encoded = self.encoded(dataset, columns, labels)
        # A column that is added after rows were chosen would copy all of them, pictures included.
        dataset = dataset.add_column(ENCODED_LABEL, encoded)
        keep = [row for row, label in enumerate(encoded) if label is not None]
        if len(keep) == len(dataset):
            return dataset
        logger.warning(
            "%s: %d of %d rows have no label and are left out", split, len(dataset) - len(keep), len(dataset)
        )
        return dataset.select(keep)

    def stratify(self, train: Dataset, columns: Columns, labels: Labels) -> list | None:
        """The encoded labels; regression draws at random."""
        if labels.problem_type == "regression":
            return None
        return train[ENCODED_LABEL][:]

    def initialise(self, model: PreTrainedModel, train: AnyDataset, labels: Labels) -> None:
        """Start the bias of a new head at the base rates: log-odds of each label, or the mean of each target.

        A sigmoid head that starts at 0.5 needs logits near -3 for labels of 5 %. A fine-tuning rate moves a bias far too
        slowly for that, so the encoder does it instead, by mapping all inputs to one vector (Lin et al. 2017, section 4.1,
        https://arxiv.org/abs/1708.02002). A softmax head starts near its base rates as it is.
        """
        if isinstance(train, IterableDataset) or labels.problem_type == "single_label_classification":
            return
        head = new_head(model, labels.num_labels, torch.nn.Linear)
        if head is None:
            return
        targets = torch.tensor(train["labels"][:], dtype=torch.float32)
        rates = targets.nanmean(dim=0)
        if labels.problem_type == "multi_label_classification":
            smallest = 0.5 / len(targets)
            rates = rates.clamp(smallest, 1 - smallest).logit()
        with torch.no_grad():
            head.bias.copy_(rates)
        logger.info("the new head starts at the base rates of the %d training labels", len(targets))

    def load_loss(
        self, train: AnyDataset, labels: Labels, training_args: FinetuningArguments, model: PreTrainedModel
    ) -> Loss:
        """The loss of --loss, --class_weights, --label_smoothing_factor and --focal_gamma."""
        return make_loss(
            self.loss,
            problem_type=labels.problem_type,
            class_weights=self._class_weights(train, labels),
            label_smoothing_factor=training_args.label_smoothing_factor,
            focal_gamma=self.focal_gamma,
        )

    def _class_weights(self, train: AnyDataset, labels: Labels) -> Tensor | None:
        if self.class_weights != "none" and labels.problem_type == "regression":
            raise ArgumentError(f"--class_weights {self.class_weights}: the labels are numbers, there are no classes.")
        return resolve_class_weights(self.class_weights, names=labels.names, counts=lambda: _counts(train, labels))

    def why_inputs_vary(self, train: AnyDataset, processor: Any, model: PreTrainedModel) -> str | None:
        """Nothing, by default."""
        return None

    def loss_denominators(self, loss: Loss, batch: Batch) -> dict[str, Tensor]:
        """One: what the loss of the items is divided by (their number, or the sum of their class weights)."""
        return loss.denominators(batch["labels"])

    def loss_sums(self, loss: Loss, model: PreTrainedModel, batch: Batch) -> tuple[Any, dict[str, Tensor]]:
        """Forward without labels, so that no head computes a loss of its own; then the sum over the items."""
        outputs = model(**model_inputs(batch))
        if "labels" not in batch:
            return outputs, {}
        return outputs, loss.sums(outputs.logits, batch["labels"])

    def predict(self, model: PreTrainedModel, outputs: Any, batch: Batch, processor: Any) -> np.ndarray:
        """Logits `(batch, num_labels)`, float32."""
        return outputs.logits.detach().float().cpu().numpy()

    def references(self, batch: Batch) -> np.ndarray:
        """The labels of the batch."""
        return batch["labels"].cpu().numpy()

    def load_metrics(self, labels: Labels, model_args: ModelArguments) -> Metrics:
        """The accumulator of the problem, with the modules of --metrics."""
        extra = EvaluateModules(self.metrics, trust_remote_code=model_args.trust_remote_code) if self.metrics else None
        kinds = {
            "single_label_classification": SingleLabelMetrics,
            "multi_label_classification": MultiLabelMetrics,
            "regression": RegressionMetrics,
        }
        return kinds[labels.problem_type](labels.num_labels, extra=extra)

    def scores(self, predictions: np.ndarray, labels: Labels) -> np.ndarray:
        """Probabilities (softmax or sigmoid) or, for regression, the values; `(examples, num_labels)`."""
        logits = torch.from_numpy(np.asarray(predictions, dtype=np.float32))
        if labels.problem_type == "regression":
            return logits.numpy()
        if labels.problem_type == "multi_label_classification":
            return logits.sigmoid().numpy()
        return logits.softmax(-1).numpy()

    def describe(self, kept: np.ndarray, labels: Labels, thresholds: np.ndarray | None) -> dict[str, Any]:
        """The class and its score, the classes over their thresholds, or the values."""
        scores = self.scores(kept[None], labels)[0]
        if labels.problem_type == "regression":
            return {"prediction": [round(float(score), 6) for score in scores]}
        if labels.problem_type == "multi_label_classification":
            limits = thresholds if thresholds is not None else np.full(len(scores), 0.5)
            chosen = [index for index in range(len(scores)) if scores[index] >= limits[index]]
            return {
                "prediction": [labels.names[index] for index in chosen],
                "scores": {labels.names[index]: round(float(scores[index]), 6) for index in chosen},
            }
        best = int(scores.argmax())
        return {"prediction": labels.names[best], "score": round(float(scores[best]), 6)}

    def describe_label(self, row: dict, columns: Columns, labels: Labels, feature: Any) -> Any:
        """A name, a list of names, or numbers."""
        encoded = labels.encode(row[columns.label], feature) if columns.label in row else None
        if encoded is None or labels.problem_type == "regression":
            return encoded
        if labels.problem_type == "single_label_classification":
            return labels.names[encoded]
        return [name for name, active in zip(labels.names, encoded, strict=True) if active]

    def reload_difference(self, predictions: list[np.ndarray], answers: list[Any], labels: Labels) -> float:
        """The largest difference of two scores; for regression over the largest value where that is over one.

        An answer is a list of {label, score}, one for each label (top_k=None).
        """
        by_name = [{item["label"]: item["score"] for item in answer} for answer in answers]
        answered = np.array([[answer[name] for name in labels.names] for answer in by_name], dtype=np.float32)
        wanted = self.scores(np.stack(predictions), labels)
        return float(np.abs(answered - wanted).max()) / max(1.0, float(np.abs(wanted).max()))


class _IsLabelled:
    """A picklable filter for streams."""

    def __init__(self, column: str, labels: Labels, feature: Any):
        self.column, self.labels, self.feature = column, labels, feature

    def __call__(self, example: dict) -> bool:
        return self.labels.encode(example[self.column], self.feature) is not None


@dataclass(frozen=True)
class EncodeLabel:
    """A row of a stream of encoded files as preprocess leaves it: the file as `name`, `labels` where known, `example_id`."""

    name: str
    columns: Columns
    labels: Labels
    feature: Any

    def __call__(self, row: dict) -> dict:
        example = {self.name: row[self.columns.inputs[0]], EXAMPLE_ID: row[EXAMPLE_ID]}
        label = self.labels.encode(row[self.columns.label], self.feature) if self.columns.label in row else None
        return example if label is None else {**example, "labels": label}


def model_inputs(batch: Batch) -> Batch:
    """A batch without what is not the model's: labels, example ids, lengths."""
    return {name: value for name, value in batch.items() if name not in NOT_MODEL_INPUTS}


def labels_tensor(values: list, problem_type: str) -> Tensor:
    """`(batch,)` int64 for single-label, else `(batch, num_labels)` float32."""
    return torch.tensor(values, dtype=torch.long if problem_type == "single_label_classification" else torch.float32)


def _counts(train: AnyDataset, labels: Labels) -> np.ndarray | None:
    if isinstance(train, IterableDataset):
        return None
    encoded = np.asarray(train["labels"])
    return np.bincount(encoded, minlength=labels.num_labels) if encoded.ndim == 1 else encoded.sum(axis=0)
