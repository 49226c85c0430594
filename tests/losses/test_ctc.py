"""CTC: every alignment counted by hand, torch's mean, one gradient however the batch is cut, labels that do not fit."""

import itertools
import math

import pytest
import torch
from torch.nn import functional

from sft_hf.losses.ctc import CtcLoss, ctc_loss_sum, frames_needed, num_utterances

BLANK = 0


def utterances(size=4, frames=9, vocab=5):
    """Return logits, labels of 1 to 4 characters (two of them equal neighbours) and frame counts, padded."""
    logits = torch.randn(size, frames, vocab, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[1, 2, -100, -100], [3, 3, 1, -100], [4, -100, -100, -100], [1, 2, 3, 4]])[:size]
    return logits, labels, torch.tensor([9, 7, 3, 8])[:size]


def every_alignment(logits, label):
    """Return minus the logarithm of the probability of all paths that collapse to the label, one by one."""
    frames, vocab = logits.shape
    probabilities, total = logits.softmax(dim=-1), torch.zeros(())
    for path in itertools.product(range(vocab), repeat=frames):
        if [token for token, _ in itertools.groupby(path) if token != BLANK] == label:
            total = total + probabilities[range(frames), path].prod()
    return -total.log()


# Values


def test_three_of_the_paths_of_two_frames_spell_one_character():
    """Of 4 x 4 equally likely paths, "aa", "a-" and "-a" are an a."""
    loss = ctc_loss_sum(torch.zeros(1, 2, 4), torch.tensor([[2]]), torch.tensor([2]), blank_id=BLANK)
    assert loss.item() == pytest.approx(-math.log(3 / 16))


@pytest.mark.parametrize("label", [[1], [1, 2], [2, 2], [2, 1, 2], []], ids=str)
def test_value_and_gradient_are_those_of_every_alignment_added_up(label):
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(1)).requires_grad_()
    expected = every_alignment(logits, label) / max(1, len(label))
    labels = torch.tensor([[*label, *[-100] * (3 - len(label))]])
    loss = ctc_loss_sum(logits[None], labels, torch.tensor([4]), blank_id=BLANK)
    torch.testing.assert_close(loss, expected)
    gradients = [torch.autograd.grad(value, logits)[0] for value in (loss, expected)]
    torch.testing.assert_close(*gradients)
    assert gradients[0].abs().sum() > 0


def test_over_its_denominator_it_is_the_mean_of_torch():
    logits, labels, num_frames = utterances()
    loss = CtcLoss(blank_id=BLANK)
    expected = functional.ctc_loss(
        logits.log_softmax(-1).transpose(0, 1), labels.clamp(min=0), num_frames, (labels != -100).sum(1), blank=BLANK
    )
    sums, denominators = loss.sums(logits, labels, num_frames), loss.denominators(labels)
    assert sums.keys() == denominators.keys() == {"items"}
    torch.testing.assert_close(sums["items"] / denominators["items"], expected)


def test_the_blank_need_not_be_zero():
    logits, labels, num_frames = utterances()
    shifted = labels.where(labels == -100, labels - 1)
    last = ctc_loss_sum(logits.roll(-1, dims=-1), shifted, num_frames, blank_id=4)
    torch.testing.assert_close(last, ctc_loss_sum(logits, labels, num_frames, blank_id=0))


def test_pitfall_1_and_2_the_gradient_does_not_depend_on_the_cut_or_the_padding():
    """Four at once, or twice two with padding of their own, over the number of utterances of all."""
    logits, labels, num_frames = utterances()
    loss = CtcLoss(blank_id=BLANK)

    def gradient(parts):
        leaf = logits.clone().requires_grad_()
        total = sum(loss.denominator(labels[rows]) for rows, _, _ in parts)
        for rows, frames, length in parts:
            value = loss(leaf[rows, :frames], labels[rows, :length], num_frames[rows])
            (value / total).backward()
        return leaf.grad

    whole = gradient([(slice(0, 4), 9, 4)])
    torch.testing.assert_close(gradient([(slice(0, 2), 9, 3), (slice(2, 4), 8, 4)]), whole)
    torch.testing.assert_close(gradient([(slice(row, row + 1), 9, 4) for row in range(4)]), whole)
    assert whole[2, :3].abs().sum() > 0
    assert not whole[2, 3:].any()  # the padding


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_logits_are_summed_in_float32(dtype, autocast):
    """Only the logits are rounded, not the computation."""
    logits, labels, num_frames = utterances()
    logits = logits.to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = ctc_loss_sum(logits, labels, num_frames, blank_id=BLANK)
    loss.backward()
    assert (loss.dtype, loss.shape, logits.grad.dtype) == (torch.float32, (), dtype)
    torch.testing.assert_close(loss, ctc_loss_sum(logits.float(), labels, num_frames, blank_id=BLANK))


def test_labels_of_any_integer_type():
    logits, labels, num_frames = utterances()
    expected = ctc_loss_sum(logits, labels, num_frames, blank_id=BLANK)
    torch.testing.assert_close(ctc_loss_sum(logits, labels.int(), num_frames.int(), blank_id=BLANK), expected)


# What does not fit, and silence


@pytest.mark.parametrize(
    ("labels", "frames"), [([], 0), ([5], 1), ([5, 6, 5], 3), ([5, 5], 3), ([5, 5, 5, 6, 6], 8)], ids=str
)
def test_pitfall_16_the_frames_a_label_needs(labels, frames):
    """One a character and a blank between equal ones: with one frame less there is no path."""
    assert frames_needed(labels) == frames
    if frames:
        logits = torch.zeros(1, frames, 7)
        for given, is_possible in [(frames, True), (frames - 1, False)]:
            loss = ctc_loss_sum(logits, torch.tensor([labels]), torch.tensor([given]), blank_id=BLANK)
            assert (loss.item() > 0) is is_possible


def test_pitfall_16_a_label_longer_than_its_frames_adds_nothing_and_harms_nobody():
    """Its loss is infinite; it counts as an utterance, the others keep their gradients, and it has none."""
    logits, labels, num_frames = utterances()
    logits.requires_grad_()
    num_frames[3] = 3
    loss = ctc_loss_sum(logits, labels, num_frames, blank_id=BLANK)
    loss.backward()
    torch.testing.assert_close(loss, ctc_loss_sum(logits[:3], labels[:3], num_frames[:3], blank_id=BLANK))
    assert num_utterances(labels).item() == 4
    assert logits.grad.isfinite().all()
    assert logits.grad[0].any()
    assert not logits.grad[3].any()


def test_logits_that_are_not_a_number_are_not_hidden():
    logits, labels, num_frames = utterances()
    logits[1] = math.nan
    assert ctc_loss_sum(logits, labels, num_frames, blank_id=BLANK).isnan()


@pytest.mark.parametrize("length", [0, 3])
def test_silence_is_every_frame_blank(length):
    """A batch of nothing else: 2 and 3 frames of ln 5 each, and a gradient towards the blank."""
    logits = torch.zeros(2, 3, 5, requires_grad=True)
    labels = torch.full((2, length), -100)
    loss = ctc_loss_sum(logits, labels, torch.tensor([2, 3]), blank_id=BLANK)
    loss.backward()
    assert loss.item() == pytest.approx(5 * math.log(5), rel=1e-6)
    assert num_utterances(labels).item() == 2
    torch.testing.assert_close(logits.grad[1, 0], torch.tensor([-0.8, 0.2, 0.2, 0.2, 0.2]))
    assert not logits.grad[0, 2].any()


def test_the_number_of_utterances_is_a_float32_scalar():
    number = CtcLoss(blank_id=BLANK).denominator(torch.full((3, 2), -100))
    assert (number.item(), number.dtype, number.shape) == (3, torch.float32, ())
