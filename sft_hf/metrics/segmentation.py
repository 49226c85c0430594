"""Metrics of pixels, from one confusion matrix.

metrics = SegmentationMetrics(("background", "cat", "dog"))
metrics.update(predictions, labels, example_id=ids)     # of each image two (height, width), of any size
metrics.compute()                                       # {"mean_iou": 0.71, "mean_accuracy": 0.8, ...}
metrics.details()["iou"]                                # {"background": 0.95, "cat": 0.62, "dog": 0.56}
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sft_hf.losses import IGNORE_INDEX
from sft_hf.metrics.base import Metrics, refuse_examples


class SegmentationMetrics(Metrics):
    """Metrics of class ids `(height, width)` against class ids of the same size, where -100 is ignored.

    A class has an IoU, the intersection of predicted and labelled pixels over their union, and a Dice coefficient,
    twice the intersection over the sum of both, if it occurs in labels or predictions; and an accuracy, the share of
    its pixels that are found, if it occurs in labels. `mean_iou`, `mean_dice` and `mean_accuracy` are means over the
    classes that have them, `overall_accuracy` is the share of all pixels. Pixels of all images are counted together.

    What is kept is one matrix `(labels, predictions)` of pixel counts, on the device of the predictions, and the ids
    of the examples, so that a repeated one counts once.
    """

    main = "mean_iou"
    keys = frozenset({"mean_iou", "mean_accuracy", "overall_accuracy", "mean_dice"})

    def __init__(self, label_names: Sequence[str]):
        self.label_names = tuple(label_names)
        self._confusion = torch.zeros(len(self.label_names), len(self.label_names), dtype=torch.int64)
        self._seen: set = set()

    def update(self, predictions: Sequence[Tensor], labels: Sequence[Tensor], *, example_id: np.ndarray) -> None:
        """Add a batch: for each example class ids `(height, width)`, predicted and true, and its id.

        Raises `ValueError`, with up to five example ids, if the sizes of the two differ, for a label that is neither
        a class nor -100, and for a prediction that is no class.
        """
        ids = np.asarray(example_id).tolist()
        new = {key: pair for key, *pair in zip(ids, predictions, labels, strict=True) if key not in self._seen}
        if not new:
            return
        self._refuse_other_sizes(new)
        pairs = [self._coded(*pair) for pair in new.values()]
        self._refuse_impossible([possible for _, possible in pairs], list(new))
        counts = self._counted(torch.cat([cells for cells, _ in pairs]))
        self._confusion = self._confusion.to(counts.device) + counts
        self._seen |= new.keys()

    def merge(self, other: "SegmentationMetrics") -> None:
        """Add the counts of another rank.

        No example may be in both, for counts cannot be taken apart again; evaluation gives every rank its own.
        """
        both = self._seen & other._seen
        assert not both, f"{len(both)} examples were evaluated on two ranks, with the example ids {sorted(both)[:5]}."
        self._confusion = self._confusion.cpu() + other._confusion.cpu()
        self._seen |= other._seen

    def compute(self) -> dict[str, float]:
        """Return the metrics; none if no pixel counts."""
        confusion = self._confusion.cpu().numpy()
        if not confusion.any():
            return {}
        means = {f"mean_{name}": float(np.mean([*values.values()])) for name, values in self.details().items()}
        return means | {"overall_accuracy": float(confusion.trace() / confusion.sum())}

    def details(self) -> dict[str, dict[str, float]]:
        """Return `iou`, `accuracy` and `dice` by the names of the classes that have them."""
        confusion = self._confusion.cpu().numpy()
        found, labelled, predicted = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
        return {
            "iou": self._by_name(found, labelled + predicted - found),
            "accuracy": self._by_name(found, labelled),
            "dice": self._by_name(2 * found, labelled + predicted),
        }

    def _by_name(self, numerators: np.ndarray, denominators: np.ndarray) -> dict[str, float]:
        fractions = zip(self.label_names, numerators.tolist(), denominators.tolist(), strict=True)
        return {name: numerator / denominator for name, numerator, denominator in fractions if denominator}

    def _coded(self, predicted: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
        """Of each pixel its cell in the matrix, `(pixels,)`, and whether all labels and all predictions are possible, `(2,)`.

        A pixel to ignore lies in a row below the matrix.
        """
        num_labels = len(self.label_names)
        # As int32, because uint8 would take -100 for 156, and int64 takes twice the time.
        predicted, true = predicted.int(), true.to(predicted.device).int()
        rows = torch.where(true == IGNORE_INDEX, num_labels, true)
        labels = (rows.min() >= 0) & (true.max() < num_labels)
        predictions = (predicted.min() >= 0) & (predicted.max() < num_labels)
        return torch.add(predicted, rows, alpha=num_labels).flatten(), torch.stack([labels, predictions])

    def _counted(self, cells: Tensor) -> Tensor:
        num_labels = len(self.label_names)
        # All pictures at once, because on a GPU each count waits for all that was launched before.
        counts = cells.bincount(minlength=(num_labels + 1) * num_labels).view(num_labels + 1, num_labels)
        return counts[:num_labels]

    def _refuse_other_sizes(self, new: dict[Any, list[Tensor]]) -> None:
        shapes = [(tuple(predicted.shape), tuple(true.shape)) for predicted, true in new.values()]
        differ = np.array([predicted != true or len(true) != 2 for predicted, true in shapes])
        first = shapes[int(differ.argmax())]
        sizes = f"Predictions {first[0]} and labels {first[1]}, expected one (height, width),"
        refuse_examples(differ, np.array(list(new)), problem=sizes)

    def _refuse_impossible(self, possible: list[Tensor], ids: list) -> None:
        labels, predictions = torch.stack(possible).cpu().numpy().T
        classes = f"0 to {len(self.label_names) - 1}"
        refuse_examples(~labels, np.array(ids), problem=f"Labels that are neither {classes} nor {IGNORE_INDEX}")
        refuse_examples(~predictions, np.array(ids), problem=f"Predictions that are not {classes}")

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_confusion": self._confusion.cpu()}
