"""Losses of numbers: torch's values, values by hand, targets that are not known."""

import math

import pytest
import torch
from torch.nn import functional

from losses.examples import REGRESSION, mean
from sft_hf.losses import make_loss


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
