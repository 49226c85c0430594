"""Metrics of pixels: evaluate's definition of mean IoU, values by hand, memory that images do not fill."""

import pickle

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sft_hf.metrics import SegmentationMetrics

NAMES = ("background", "cat", "dog", "bird")

# Three classes on 3 x 3 pixels, one of them ignored:    labels     predictions
#                                                       0 0 1        0 1 1
#                                                       0 1 1        0 1 1
#                                                       2 2 .        2 0 0
LABELS = torch.tensor([[0, 0, 1], [0, 1, 1], [2, 2, -100]])
PREDICTIONS = torch.tensor([[0, 1, 1], [0, 1, 1], [2, 0, 0]])


def filled(predictions, labels, example_id=None, *, names=NAMES):
    metrics = SegmentationMetrics(names)
    metrics.update(predictions, labels, example_id=np.arange(len(labels)) if example_id is None else example_id)
    return metrics


def images(count=6, *, num_labels=4, seed=0):
    """Return predictions and labels of images, each of its own size, in which a tenth of the pixels is ignored."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [(5 + index, 9 - index % 4) for index in range(count)]
    labels = [torch.randint(0, num_labels, size, generator=generator) for size in sizes]
    noise = [torch.rand(size, generator=generator) for size in sizes]
    predictions = [
        torch.where(n < 0.6, label, (label + 1) % num_labels) for label, n in zip(labels, noise, strict=True)
    ]
    return predictions, [label.masked_fill(n > 0.9, -100) for label, n in zip(labels, noise, strict=True)]


def mean_iou_of_evaluate(predictions, labels, *, num_labels):
    """As evaluate's mean_iou defines them: areas by histograms, summed over images, and means that leave out NaN."""
    areas = np.zeros((3, num_labels))
    edges = np.arange(num_labels + 1)
    for predicted, true in zip(predictions, labels, strict=True):
        counted = true.numpy() != -100
        predicted, true = predicted.numpy()[counted], true.numpy()[counted]
        areas += [np.histogram(ids, edges)[0] for ids in (predicted[predicted == true], predicted, true)]
    intersect, predicted, true = areas
    with np.errstate(invalid="ignore"):
        iou, accuracy = intersect / (predicted + true - intersect), intersect / true
    return {
        "mean_iou": np.nanmean(iou),
        "mean_accuracy": np.nanmean(accuracy),
        "overall_accuracy": intersect.sum() / true.sum(),
    }


# Numbers


def test_metrics_by_hand():
    """Pixels (found, labelled, predicted): background (2, 3, 3), cat (3, 3, 4), dog (1, 2, 1), and no bird."""
    metrics = filled([PREDICTIONS], [LABELS])
    assert metrics.details() == {
        "iou": {"background": 2 / 4, "cat": 3 / 4, "dog": 1 / 2},
        "accuracy": {"background": 2 / 3, "cat": 3 / 3, "dog": 1 / 2},
        "dice": {"background": 4 / 6, "cat": 6 / 7, "dog": 2 / 3},
    }
    assert metrics.compute() == pytest.approx(
        {
            "mean_iou": (2 / 4 + 3 / 4 + 1 / 2) / 3,
            "mean_accuracy": (2 / 3 + 3 / 3 + 1 / 2) / 3,
            "overall_accuracy": 6 / 8,
            "mean_dice": (4 / 6 + 6 / 7 + 2 / 3) / 3,
        }
    )


def test_metrics_are_those_of_evaluate_with_the_ignored_pixels_left_out():
    predictions, labels = images()
    expected = mean_iou_of_evaluate(predictions, labels, num_labels=4)
    numbers = filled(predictions, labels).compute()
    assert {name: numbers[name] for name in expected} == pytest.approx(expected)


def test_dice_and_iou_of_a_class_say_the_same():
    details = filled(*images()).details()
    assert details["dice"] == pytest.approx({name: 2 * iou / (1 + iou) for name, iou in details["iou"].items()})


def test_a_class_that_is_only_predicted_has_an_iou_of_zero_and_no_accuracy():
    metrics = filled([torch.tensor([[0, 3]])], [torch.tensor([[0, 0]])])
    assert metrics.details() == {
        "iou": {"background": 0.5, "bird": 0.0},
        "accuracy": {"background": 0.5},
        "dice": {"background": 2 / 3, "bird": 0.0},
    }
    assert metrics.compute()["mean_iou"] == 0.25


def test_a_class_that_is_predicted_on_ignored_pixels_alone_does_not_occur():
    metrics = filled([torch.tensor([[0, 3]])], [torch.tensor([[0, -100]])])
    assert metrics.compute() == dict.fromkeys(metrics.keys, 1.0)


def test_pitfall_13_a_perfect_prediction_scores_one_with_a_real_class_0_and_ignored_pixels():
    """What a model predicts where nothing is labelled is all one, and id 0 is a class like any other."""
    labels = torch.tensor([[0, 0, 1], [2, -100, -100]])
    numbers = filled([torch.tensor([[0, 0, 1], [2, 0, 1]])], [labels]).compute()
    assert numbers == {"mean_iou": 1, "mean_accuracy": 1, "overall_accuracy": 1, "mean_dice": 1}


def test_pitfall_13_missing_class_0_costs_its_share():
    """Background is 9 of 10 pixels; ignored as 0, it would leave the one cat pixel and a score of 1."""
    labels = torch.tensor([[0] * 9 + [1]])
    assert filled([torch.ones_like(labels)], [labels]).compute()["mean_iou"] == pytest.approx((0 + 1 / 10) / 2)


def test_the_main_metric_comes_first_and_all_are_plain_floats():
    metrics = filled(*images())
    numbers = metrics.compute()
    assert next(iter(numbers)) == metrics.main == "mean_iou"
    assert set(numbers) == metrics.keys
    assert metrics.names == metrics.keys | {"loss"}
    assert all(type(value) is float for value in numbers.values())


def test_nothing_that_counts_gives_nothing():
    nothing = {"iou": {}, "accuracy": {}, "dice": {}}
    for metrics in (SegmentationMetrics(NAMES), filled([PREDICTIONS], [torch.full_like(LABELS, -100)])):
        assert metrics.compute() == {}
        assert metrics.details() == nothing


# Accumulation


def test_batches_ranks_and_repeats_do_not_change_the_numbers():
    predictions, labels = images()
    ranks = [SegmentationMetrics(NAMES), SegmentationMetrics(NAMES)]
    for rank, rows in ((0, [0, 2]), (1, [1, 3]), (0, [4, 4]), (1, [5]), (1, [1, 5])):
        ranks[rank].update([predictions[row] for row in rows], [labels[row] for row in rows], example_id=np.array(rows))
    ranks[0].merge(pickle.loads(pickle.dumps(ranks[1])))
    assert ranks[0].compute() == filled(predictions, labels).compute()
    assert ranks[0].details() == filled(predictions, labels).details()


def test_ranks_that_saw_the_same_example_are_a_mistake_of_ours():
    first, second = filled([PREDICTIONS] * 2, [LABELS] * 2, ["a", "b"]), filled([PREDICTIONS], [LABELS], ["b"])
    with pytest.raises(AssertionError, match=r"1 examples were evaluated on two ranks, with the example ids \['b'\]"):
        first.merge(second)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_ids_come_in_any_integer_type(dtype):
    """The cell of class 255 of 300 is number 76,755, beyond 16 bits, and in uint8 -100 turns into 156."""
    ids = torch.tensor([[255, 156]], dtype=dtype)
    names = tuple(str(label) for label in range(300))
    assert filled([ids], [ids], names=names).details()["iou"] == {"156": 1.0, "255": 1.0}


def test_the_matrix_is_where_the_predictions_are():
    """`meta` tells devices apart on any machine, but holds no values; counting is replaced by what needs none."""
    metrics = SegmentationMetrics(NAMES)
    metrics._refuse_impossible = lambda possible, ids: None
    metrics._counted = lambda cells: torch.zeros(4, 4, dtype=torch.int64, device=cells.device)
    metrics.update([PREDICTIONS.to("meta")], [LABELS], example_id=np.arange(1))
    assert metrics._confusion.device.type == "meta"


class Waiting(TorchDispatchMode):
    """Names what waits on a GPU for all that was launched before it, since it needs a number or a size from there."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        waits = {"aten::bincount", "aten::nonzero", "aten::index.Tensor", "aten::_local_scalar_dense"}
        self.names += [function.name()] if function.name() in waits else []
        return function(*args, **(kwargs or {}))


def test_the_pictures_of_a_batch_are_counted_at_once():
    with Waiting() as mode:
        filled(*images())
    assert len(images()[0]) == 6
    assert mode.names == ["aten::bincount"]


def test_pitfall_19_memory_does_not_grow_with_the_number_of_images():
    """What is kept, as it would be sent to another rank: 990 more images of 4096 pixels add their ids, 3 bytes each."""

    def size(count):
        metrics = SegmentationMetrics(NAMES)
        generator = torch.Generator().manual_seed(0)
        for start in range(0, count, 10):
            ids = torch.randint(0, 4, (10, 64, 64), generator=generator)
            metrics.update(ids, ids, example_id=np.arange(start, start + 10))
        assert len(metrics._seen) == count
        return len(pickle.dumps(metrics))

    assert size(1000) - size(10) < 990 * 4


# What is refused


def test_sizes_that_differ_are_refused_with_their_ids():
    predictions, labels = images()
    labels[3] = labels[3][:-1]
    message = r"Predictions \(8, 6\) and labels \(7, 6\), expected one \(height, width\), in 1 of 6 .*ids 103\.$"
    with pytest.raises(ValueError, match=message):
        filled(predictions, labels, np.arange(100, 106))


def test_logits_are_no_class_ids():
    with pytest.raises(ValueError, match=r"Predictions \(2, 3, 3\) and labels \(3, 3\)"):
        filled([torch.zeros(2, 3, 3)], [LABELS])


@pytest.mark.parametrize("label", [4, -1, 255])
def test_a_label_that_is_no_class_is_refused_with_its_id(label):
    predictions, labels = images()
    labels[2][0, 0] = label
    message = r"Labels that are neither 0 to 3 nor -100 in 1 of 6 examples, with the example ids 2\.$"
    with pytest.raises(ValueError, match=message):
        filled(predictions, labels)


@pytest.mark.parametrize("prediction", [4, -100])
def test_a_prediction_that_is_no_class_is_refused_with_its_id(prediction):
    """It would be counted as a prediction of another class, of the next label."""
    predictions, labels = images()
    predictions[5][0, 0] = prediction
    with pytest.raises(ValueError, match=r"Predictions that are not 0 to 3 in 1 of 6 .* ids 5\.$"):
        filled(predictions, labels)


def test_a_refused_batch_leaves_nothing_behind():
    metrics = filled([PREDICTIONS], [LABELS], np.array([0]))
    before = metrics.compute()
    with pytest.raises(ValueError, match="Labels"):
        metrics.update([PREDICTIONS] * 2, [LABELS, LABELS + 9], example_id=np.array([1, 2]))
    assert metrics.compute() == before
    metrics.update([PREDICTIONS], [LABELS], example_id=np.array([1]))
    assert metrics._confusion.sum() == 16
