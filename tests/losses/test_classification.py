"""Losses of classes: torch's and timm's values, values by hand."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from losses.examples import MULTI, SINGLE, WEIGHTS, batch, mean
from sft_hf.errors import ArgumentError
from sft_hf.losses import balanced_class_weights, make_loss

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


# Class weights


def test_balanced_class_weights_are_those_of_scikit_learn():
    from sklearn.utils.class_weight import compute_class_weight

    labels = [0] * 6 + [1] * 3 + [2]
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert balanced_class_weights([6, 3, 1]).tolist() == pytest.approx(expected.tolist())


def test_balanced_class_weights_of_an_unseen_class():
    assert balanced_class_weights([6, 0, 2]).tolist() == pytest.approx([8 / 12, 1.0, 2.0])


@pytest.mark.parametrize("name", ["cross_entropy", "focal", "bce"])
def test_too_few_class_weights_do_not_broadcast(name):
    loss = make_loss(name, problem_type=SINGLE, class_weights=[2.0])
    with pytest.raises(ArgumentError, match="--class_weights holds 1 numbers, expected one for each of 3"):
        loss(torch.zeros(2, 3), torch.tensor([0, 0]))
