"""Losses: torch's values, values by hand, one gradient however the batch is cut (pitfalls 1 and 2)."""

import math
import pickle

import numpy as np
import pytest
import torch
from torch.nn import functional

from sft_hf.errors import ArgumentError
from sft_hf.losses import balanced_class_weights, make_loss

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
WEIGHTS = [0.5, 1.0, 4.0]

EVERY_LOSS = [
    pytest.param(name, problem_type, options, id=f"{problem_type.split('_')[0]}-{name}-{'-'.join(options) or 'plain'}")
    for name, problem_type, variants in [
        ("cross_entropy", SINGLE, 4),
        ("focal", SINGLE, 4),
        ("bce", SINGLE, 4),
        ("bce", MULTI, 4),
        ("focal", MULTI, 4),
        ("mse", REGRESSION, 1),
        ("huber", REGRESSION, 1),
    ]
    for options in [
        {},
        {"class_weights": WEIGHTS},
        {"label_smoothing_factor": 0.1},
        {"class_weights": WEIGHTS, "label_smoothing_factor": 0.1},
    ][:variants]
]


def batch(problem_type, size=8):
    """Return logits `(size, 3)` and labels with one item, or one target, to ignore."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(size, 3, generator=generator) * 2
    if problem_type == REGRESSION:
        labels = torch.randn(size, 3, generator=generator)
        labels[1, 2] = math.nan
    elif problem_type == MULTI:
        labels = torch.randint(0, 2, (size, 3), generator=generator).float()
    else:
        labels = torch.randint(0, 3, (size,), generator=generator)
        labels[1] = -100
    return logits, labels


def mean(loss, logits, labels):
    return loss(logits, labels) / loss.denominator(labels)


def gradient(loss, logits, labels, sizes):
    """Return the gradient of the global batch, gathered over micro-batches of the given sizes."""
    logits = logits.clone().requires_grad_()
    denominator = sum(loss.denominator(part) for part in labels.split(sizes))
    for part, targets in zip(logits.split(sizes), labels.split(sizes), strict=True):
        (loss(part, targets) / denominator).backward()
    return logits.grad


# One gradient, however the batch is cut


@pytest.mark.parametrize(("name", "problem_type", "options"), EVERY_LOSS)
@pytest.mark.parametrize("sizes", [[4, 4], [2, 2, 2, 2], [3, 3, 2]], ids=str)
def test_pitfall_1_and_2_the_gradient_does_not_depend_on_the_cut(name, problem_type, options, sizes):
    loss = make_loss(name, problem_type=problem_type, **options)
    logits, labels = batch(problem_type)
    torch.testing.assert_close(gradient(loss, logits, labels, sizes), gradient(loss, logits, labels, [8]))


@pytest.mark.parametrize(("name", "problem_type", "options"), EVERY_LOSS)
def test_sum_and_denominator_of_the_parts_add_up_to_those_of_the_whole(name, problem_type, options):
    loss = make_loss(name, problem_type=problem_type, **options)
    logits, labels = batch(problem_type)
    parts = list(zip(logits.split([3, 3, 2]), labels.split([3, 3, 2]), strict=True))
    torch.testing.assert_close(sum(loss(*part) for part in parts), loss(logits, labels))
    torch.testing.assert_close(sum(loss.denominator(part[1]) for part in parts), loss.denominator(labels))


@pytest.mark.parametrize(("name", "problem_type", "options"), EVERY_LOSS)
def test_sum_and_denominator_are_float32_scalars_for_bfloat16_logits(name, problem_type, options):
    loss = make_loss(name, problem_type=problem_type, **options)
    logits, labels = batch(problem_type)
    logits = logits.bfloat16()
    value, denominator = loss(logits, labels), loss.denominator(labels)
    assert (value.dtype, value.shape) == (torch.float32, ())
    assert (denominator.dtype, denominator.shape) == (torch.float32, ())
    # Only the logits were rounded, not the computation.
    torch.testing.assert_close(value, loss(logits.float(), labels))


@pytest.mark.parametrize(("name", "problem_type", "options"), EVERY_LOSS)
def test_a_batch_without_a_valid_label_adds_nothing(name, problem_type, options):
    loss = make_loss(name, problem_type=problem_type, **options)
    logits, labels = batch(problem_type)
    if problem_type == MULTI:
        logits, labels = logits[:0], labels[:0]
    else:
        labels = torch.full_like(labels, -100 if problem_type == SINGLE else math.nan)
    logits.requires_grad_()
    value = loss(logits, labels)
    value.backward()
    assert value.item() == loss.denominator(labels).item() == 0
    assert (logits.grad == 0).all()


@pytest.mark.parametrize(("name", "problem_type", "options"), EVERY_LOSS)
def test_extreme_logits_have_finite_gradients(name, problem_type, options):
    loss = make_loss(name, problem_type=problem_type, **options)
    logits, labels = batch(problem_type)
    logits = (logits * 1000).requires_grad_()
    loss(logits, labels).backward()
    assert logits.grad.isfinite().all()


# Cross-entropy


@pytest.mark.parametrize("class_weights", [None, WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_the_mean_of_torch(class_weights, smoothing):
    loss = make_loss("auto", problem_type=SINGLE, class_weights=class_weights, label_smoothing_factor=smoothing)
    logits, labels = batch(SINGLE)
    weight = None if class_weights is None else torch.tensor(class_weights)
    expected = functional.cross_entropy(logits, labels, weight=weight, label_smoothing=smoothing)
    torch.testing.assert_close(mean(loss, logits, labels), expected)


@pytest.mark.parametrize("name", ["cross_entropy", "focal"])
@pytest.mark.parametrize("problem_classes", [2, 10])
def test_cross_entropy_at_initialisation_is_ln_classes(name, problem_classes):
    loss = (
        make_loss(name, problem_type=SINGLE, focal_gamma=0.0)
        if name == "focal"
        else make_loss(name, problem_type=SINGLE)
    )
    value = mean(loss, torch.zeros(4, problem_classes), torch.arange(4) % problem_classes)
    assert value.item() == pytest.approx(math.log(problem_classes))


def test_weighted_cross_entropy_by_hand():
    """Item 0: class 0, probability 3/4, weight 1. Item 1: class 1, probability 1/2, weight 3."""
    loss = make_loss("cross_entropy", problem_type=SINGLE, class_weights=[1.0, 3.0])
    logits, labels = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]]), torch.tensor([0, 1])
    assert loss(logits, labels).item() == pytest.approx(math.log(4 / 3) + 3 * math.log(2))
    assert loss.denominator(labels).item() == 4


@pytest.mark.parametrize("class_weights", [None, WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("name", ["cross_entropy", "focal"])
def test_pitfall_4_labels_of_every_pixel(name, class_weights, smoothing):
    """The class dimension is the second, and pixels `(batch, height, width)` count like items."""
    loss = make_loss(name, problem_type=SINGLE, class_weights=class_weights, label_smoothing_factor=smoothing)
    logits, labels = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5))
    labels[0, :2] = -100
    flat = logits.permute(0, 2, 3, 1).reshape(-1, 3), labels.reshape(-1)
    torch.testing.assert_close(mean(loss, logits, labels), mean(loss, *flat))
    if class_weights is None:
        assert loss.denominator(labels).item() == 30


@pytest.mark.parametrize("class_weights", [None, WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("name", ["cross_entropy", "focal", "bce"])
def test_one_hot_probabilities_equal_class_ids(name, class_weights, smoothing):
    loss = make_loss(name, problem_type=SINGLE, class_weights=class_weights, label_smoothing_factor=smoothing)
    logits, labels = torch.randn(6, 3), torch.arange(6) % 3
    probabilities = functional.one_hot(labels, 3).float()
    torch.testing.assert_close(loss(logits, probabilities), loss(logits, labels))
    torch.testing.assert_close(loss.denominator(probabilities), loss.denominator(labels))


def test_mixed_up_probabilities_are_the_mean_of_torch():
    loss = make_loss("cross_entropy", problem_type=SINGLE, label_smoothing_factor=0.1)
    logits, probabilities = torch.randn(6, 3), torch.rand(6, 3).softmax(-1)
    expected = functional.cross_entropy(logits, probabilities, label_smoothing=0.1)
    torch.testing.assert_close(mean(loss, logits, probabilities), expected)


# Focal


def test_softmax_focal_by_hand():
    """Probability 3/4 of the label: (1/4)^2 * ln(4/3)."""
    loss = make_loss("focal", problem_type=SINGLE, focal_gamma=2.0)
    logits = torch.tensor([[math.log(3), 0.0]])
    assert loss(logits, torch.tensor([0])).item() == pytest.approx(math.log(4 / 3) / 16)


def test_sigmoid_focal_by_hand():
    """Probability 3/4: a positive costs (1/4)^2 ln(4/3), a negative (3/4)^2 ln 4."""
    loss = make_loss("focal", problem_type=MULTI, focal_gamma=2.0)
    logits, labels = torch.full((1, 2), math.log(3)), torch.tensor([[1.0, 0.0]])
    assert loss(logits, labels).item() == pytest.approx(math.log(4 / 3) / 16 + 9 / 16 * math.log(4))
    assert loss.denominator(labels).item() == 2


@pytest.mark.parametrize(("problem_type", "plain"), [(SINGLE, "cross_entropy"), (MULTI, "bce")])
@pytest.mark.parametrize("options", [{}, {"class_weights": WEIGHTS, "label_smoothing_factor": 0.1}])
def test_focal_without_gamma_is_the_plain_loss(problem_type, plain, options):
    focal = make_loss("focal", problem_type=problem_type, focal_gamma=0.0, **options)
    logits, labels = batch(problem_type)
    expected = mean(make_loss(plain, problem_type=problem_type, **options), logits, labels)
    torch.testing.assert_close(mean(focal, logits, labels), expected)


@pytest.mark.parametrize("problem_type", [SINGLE, MULTI])
def test_focal_with_gamma_below_one_is_differentiable_at_certainty(problem_type):
    loss = make_loss("focal", problem_type=problem_type, focal_gamma=0.5)
    logits = torch.tensor([[200.0, -200.0]], requires_grad=True)
    labels = torch.tensor([0]) if problem_type == SINGLE else torch.tensor([[1.0, 0.0]])
    loss(logits, labels).backward()
    assert logits.grad.isfinite().all()


# Binary cross-entropy


@pytest.mark.parametrize("class_weights", [None, WEIGHTS])
def test_multi_label_bce_is_the_mean_of_torch(class_weights):
    loss = make_loss("auto", problem_type=MULTI, class_weights=class_weights)
    logits, labels = batch(MULTI)
    weight = None if class_weights is None else torch.tensor(class_weights)
    expected = functional.binary_cross_entropy_with_logits(logits, labels, weight=weight)
    torch.testing.assert_close(mean(loss, logits, labels), expected)
    assert loss.denominator(labels).item() == 24


def test_multi_label_smoothing_moves_towards_one_half():
    loss = make_loss("bce", problem_type=MULTI, label_smoothing_factor=0.2)
    logits, labels = batch(MULTI)
    expected = functional.binary_cross_entropy_with_logits(logits, labels * 0.8 + 0.1)
    torch.testing.assert_close(mean(loss, logits, labels), expected)


def test_pitfall_5_integer_multi_hot_labels_are_accepted():
    loss = make_loss("bce", problem_type=MULTI)
    logits, labels = batch(MULTI)
    torch.testing.assert_close(loss(logits, labels.long()), loss(logits, labels))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("class_weights", [None, WEIGHTS])
def test_single_label_bce_is_that_of_timm(smoothing, class_weights):
    timm_loss = pytest.importorskip("timm.loss").BinaryCrossEntropy
    weight = None if class_weights is None else torch.tensor(class_weights)
    loss = make_loss("bce", problem_type=SINGLE, class_weights=class_weights, label_smoothing_factor=smoothing)
    logits, labels = torch.randn(6, 3), torch.arange(6) % 3
    expected = timm_loss(smoothing=smoothing, weight=weight)(logits, labels)
    torch.testing.assert_close(mean(loss, logits, labels), expected)


def test_single_label_bce_ignores_an_item_in_sum_and_denominator():
    loss = make_loss("bce", problem_type=SINGLE)
    logits, labels = batch(SINGLE)
    kept = labels != -100
    torch.testing.assert_close(mean(loss, logits, labels), mean(loss, logits[kept], labels[kept]))
    assert loss.denominator(labels).item() == 7


# Regression


def test_squared_error_ignores_unknown_targets_by_hand():
    """Errors 1 and 3; the third target is unknown."""
    loss = make_loss("auto", problem_type=REGRESSION)
    logits, labels = torch.tensor([[1.0], [3.0], [9.0]]), torch.tensor([0.0, 0.0, math.nan])
    assert loss(logits, labels).item() == 10
    assert loss.denominator(labels).item() == 2


def test_huber_by_hand():
    """Half the square of 1, then 2 * (5 - 2 / 2) beyond delta."""
    loss = make_loss("huber", problem_type=REGRESSION, huber_delta=2.0)
    assert loss(torch.tensor([[1.0], [5.0]]), torch.zeros(2)).item() == pytest.approx(0.5 + 8.0)


def test_regression_is_the_mean_of_torch():
    logits, labels = torch.randn(4, 3), torch.randn(4, 3)
    squared, huber = make_loss("mse", problem_type=REGRESSION), make_loss("huber", problem_type=REGRESSION)
    torch.testing.assert_close(mean(squared, logits, labels), functional.mse_loss(logits, labels))
    torch.testing.assert_close(mean(huber, logits, labels), functional.huber_loss(logits, labels))


def test_an_unknown_target_does_not_poison_the_gradient():
    logits = torch.ones(2, 1, requires_grad=True)
    make_loss("mse", problem_type=REGRESSION)(logits, torch.tensor([0.0, math.nan])).backward()
    assert logits.grad.tolist() == [[2.0], [0.0]]


def test_shapes_do_not_broadcast():
    loss = make_loss("mse", problem_type=REGRESSION)
    with pytest.raises(ValueError, match=r"\(4, 3\) and labels \(4, 1\)"):
        loss(torch.zeros(4, 3), torch.zeros(4))


# Class weights


def test_balanced_class_weights_are_those_of_scikit_learn():
    from sklearn.utils.class_weight import compute_class_weight

    labels = [0] * 6 + [1] * 3 + [2]
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert balanced_class_weights([6, 3, 1]).tolist() == pytest.approx(expected.tolist())


def test_balanced_class_weights_of_an_unseen_class():
    assert balanced_class_weights([6, 0, 2]).tolist() == pytest.approx([8 / 12, 1.0, 2.0])


# What is refused


@pytest.mark.parametrize(
    ("name", "problem_type", "fitting"),
    [
        ("mse", SINGLE, "auto, cross_entropy, focal, bce"),
        ("cross_entropy", MULTI, "auto, bce, focal"),
        ("focal", REGRESSION, "auto, mse, huber"),
        ("hinge", SINGLE, "auto, cross_entropy, focal, bce"),
    ],
)
def test_a_loss_that_does_not_fit_says_which_do(name, problem_type, fitting):
    with pytest.raises(ArgumentError) as error:
        make_loss(name, problem_type=problem_type)
    for part in (f"--loss {name}", problem_type, fitting):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("name", "problem_type", "options", "message"),
    [
        ("auto", REGRESSION, {"label_smoothing_factor": 0.1}, "--label_smoothing_factor is 0.1"),
        ("auto", REGRESSION, {"class_weights": [1.0]}, "--class_weights is set"),
        ("auto", SINGLE, {"label_smoothing_factor": 1.0}, "--label_smoothing_factor is 1.0"),
        ("auto", SINGLE, {"class_weights": [1.0, -1.0]}, "--class_weights is"),
        ("auto", SINGLE, {"class_weights": [1.0, math.nan]}, "--class_weights is"),
        ("focal", SINGLE, {"focal_gamma": -1.0}, "--focal_gamma is -1.0"),
        ("huber", REGRESSION, {"huber_delta": 0.0}, "--huber_delta is 0.0"),
        ("auto", "ranking", {}, "--problem_type is 'ranking'"),
    ],
)
def test_values_out_of_range_name_their_flag(name, problem_type, options, message):
    with pytest.raises(ArgumentError, match=message):
        make_loss(name, problem_type=problem_type, **options)


@pytest.mark.parametrize("name", ["cross_entropy", "focal", "bce"])
def test_too_few_class_weights_do_not_broadcast(name):
    loss = make_loss(name, problem_type=SINGLE, class_weights=[2.0])
    with pytest.raises(ArgumentError, match="--class_weights holds 1 numbers, expected one for each of 3"):
        loss(torch.zeros(2, 3), torch.tensor([0, 0]))


def test_a_loss_pickles():
    loss = pickle.loads(pickle.dumps(make_loss("focal", problem_type=SINGLE, class_weights=WEIGHTS)))
    assert loss.class_weights.tolist() == WEIGHTS
