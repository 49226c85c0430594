"""What every loss promises: one gradient however the batch is cut (pitfalls 1 and 2), float32 scalars, no NaN."""

import math

import pytest
import torch

from losses.examples import EVERY_LOSS, MULTI, REGRESSION, SEGMENTATION, batch, mean
from sft_hf.losses import make_loss


def totals(parts):
    """Add up sums or denominators, by name."""
    return {name: sum(part[name] for part in parts) for name in parts[0]}


def gradient(loss, logits, labels, sizes):
    """Return the gradient of the global batch, gathered over micro-batches of the given sizes."""
    logits = logits.clone().requires_grad_()
    denominators = totals([loss.denominators(part) for part in labels.split(sizes)])
    for part, targets in zip(logits.split(sizes), labels.split(sizes), strict=True):
        sum(value / denominators[name] for name, value in loss.sums(part, targets).items()).backward()
    return logits.grad


@pytest.mark.parametrize(("name", "problem_type", "options"), EVERY_LOSS)
@pytest.mark.parametrize("sizes", [[4, 4], [2, 2, 2, 2], [3, 3, 2], [1] * 8], ids=str)
def test_pitfall_1_and_2_the_gradient_does_not_depend_on_the_cut(name, problem_type, options, sizes):
    loss = make_loss(name, problem_type=problem_type, **options)
    logits, labels = batch(problem_type)
    whole = gradient(loss, logits, labels, [8])
    torch.testing.assert_close(gradient(loss, logits, labels, sizes), whole)
    assert whole.abs().sum() > 0


@pytest.mark.parametrize(("name", "problem_type", "options"), EVERY_LOSS)
def test_sums_and_denominators_of_the_parts_add_up_to_those_of_the_whole(name, problem_type, options):
    loss = make_loss(name, problem_type=problem_type, **options)
    logits, labels = batch(problem_type)
    parts = list(zip(logits.split([3, 3, 2]), labels.split([3, 3, 2]), strict=True))
    torch.testing.assert_close(totals([loss.sums(*part) for part in parts]), loss.sums(logits, labels))
    torch.testing.assert_close(totals([loss.denominators(part[1]) for part in parts]), loss.denominators(labels))


@pytest.mark.parametrize(("name", "problem_type", "options"), EVERY_LOSS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sums_and_denominators_are_float32_scalars_for_half_precision_logits(name, problem_type, options, dtype):
    loss = make_loss(name, problem_type=problem_type, **options)
    logits, labels = batch(problem_type)
    logits = logits.to(dtype)
    sums, denominators = loss.sums(logits, labels), loss.denominators(labels)
    assert sums.keys() == denominators.keys()
    for value in (*sums.values(), *denominators.values()):
        assert (value.dtype, value.shape) == (torch.float32, ())
    # Only the logits were rounded, not the computation.
    torch.testing.assert_close(sums, loss.sums(logits.float(), labels))


@pytest.mark.parametrize(("name", "problem_type", "options"), EVERY_LOSS)
def test_a_batch_without_a_valid_label_adds_nothing(name, problem_type, options):
    loss = make_loss(name, problem_type=problem_type, **options)
    logits, labels = batch(problem_type)
    if problem_type == MULTI:
        logits, labels = logits[:0], labels[:0]
    else:
        labels = torch.full_like(labels, math.nan if problem_type == REGRESSION else -100)
    logits.requires_grad_()
    sums = loss.sums(logits, labels)
    sum(sums.values()).backward()
    assert [value.item() for value in (*sums.values(), *loss.denominators(labels).values())] == [0] * 2 * len(sums)
    assert (logits.grad == 0).all()


@pytest.mark.parametrize(("name", "problem_type", "options"), EVERY_LOSS)
def test_extreme_logits_have_finite_gradients(name, problem_type, options):
    loss = make_loss(name, problem_type=problem_type, **options)
    logits, labels = batch(problem_type)
    logits = (logits * 1000).requires_grad_()
    mean(loss, logits, labels).backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize(("name", "problem_type", "options"), EVERY_LOSS)
def test_a_step_against_the_gradient_lowers_the_loss(name, problem_type, options):
    loss = make_loss(name, problem_type=problem_type, **options)
    logits, labels = batch(problem_type)
    logits.requires_grad_()
    before = mean(loss, logits, labels)
    before.backward()
    assert mean(loss, logits.detach() - 0.1 * logits.grad, labels) < before


# One loss and several


def test_a_single_loss_has_one_sum_of_items():
    loss = make_loss("dice", problem_type=SEGMENTATION)
    logits, labels = batch(SEGMENTATION)
    assert loss.sums(logits, labels) == {"items": loss(logits, labels)}
    assert loss.denominators(labels) == {"items": loss.denominator(labels)}


def test_the_parts_of_a_sum_keep_their_own_denominators():
    """Seven images have a valid pixel; of 8 x 20 pixels, 10, 20 and 4 are ignored."""
    loss = make_loss("cross_entropy+dice", problem_type=SEGMENTATION)
    logits, labels = batch(SEGMENTATION)
    assert {name: value.item() for name, value in loss.denominators(labels).items()} == {
        "cross_entropy": 126,
        "dice": 7,
    }
    alone = [make_loss(name, problem_type=SEGMENTATION) for name in ("cross_entropy", "dice")]
    torch.testing.assert_close(mean(loss, logits, labels), sum(mean(part, logits, labels) for part in alone))


def test_a_sum_of_losses_has_no_one_sum_and_no_one_denominator():
    loss = make_loss("cross_entropy+dice", problem_type=SEGMENTATION)
    logits, labels = batch(SEGMENTATION)
    with pytest.raises(TypeError, match=r"cross_entropy\+dice has a sum for each part: call sums\(\)"):
        loss(logits, labels)
    with pytest.raises(TypeError, match=r"cross_entropy\+dice has a denominator for each part: call denominators\(\)"):
        loss.denominator(labels)
