"""Losses of pixels and of whole images: values by hand, Lovasz against the Jaccard loss that it extends."""

import itertools
import math

import pytest
import torch

from losses.examples import SEGMENTATION, SINGLE, WEIGHTS, mean
from sft_hf.losses import make_loss
from sft_hf.losses.segmentation import Dice, LovaszSoftmax, _jaccard_steps

# One image of two pixels: class 0 at probability 3/4, and even odds.
LOGITS = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]]).view(1, 2, 1, 2)
LABELS = torch.tensor([0, 1]).view(1, 1, 2)

by_image = pytest.mark.parametrize("loss", [Dice(), LovaszSoftmax()], ids=["dice", "lovasz"])


def certain(predictions, num_classes):
    """Return logits `(batch, classes, height, width)` whose softmax is exactly 0 or 1."""
    return torch.nn.functional.one_hot(predictions, num_classes).movedim(-1, 1) * 1000.0


# Losses of pixels


@pytest.mark.parametrize("class_weights", [None, WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("name", ["cross_entropy", "focal"])
def test_pitfall_4_labels_of_every_pixel(name, class_weights, smoothing):
    """The class dimension is the second, and pixels `(batch, height, width)` count like items."""
    options = {"class_weights": class_weights, "label_smoothing_factor": smoothing}
    loss = make_loss(name, problem_type=SEGMENTATION, **options)
    logits, labels = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5))
    labels[0, :2] = -100
    flat = logits.permute(0, 2, 3, 1).reshape(-1, 3), labels.reshape(-1)
    items = make_loss(name, problem_type=SINGLE, **options)
    torch.testing.assert_close(mean(loss, logits, labels), mean(items, *flat))
    if class_weights is None:
        assert loss.denominator(labels).item() == 30


def test_cross_entropy_by_hand():
    """Probability 3/4 and 1/2 of the labels."""
    loss = make_loss("auto", problem_type=SEGMENTATION)
    assert loss(LOGITS, LABELS).item() == pytest.approx(math.log(4 / 3) + math.log(2))
    assert loss.denominator(LABELS).item() == 2


# Losses of images


def test_dice_by_hand():
    """Twice the overlaps are 3/2 and 1, the squares 9/16 + 1/4 and 1/16 + 1/4, and 1 of each label."""
    zero, one = 2 * 0.75 / (0.5625 + 0.25 + 1), 2 * 0.5 / (0.0625 + 0.25 + 1)
    assert Dice()(LOGITS, LABELS).item() == pytest.approx(1 - (zero + one) / 2)


def test_lovasz_by_hand():
    """Class 0 is wrong by 1/2 outside of its pixel, then by 1/4 inside: the Jaccard loss goes 0, 1/2, 1.

    Class 1 is wrong by 1/2 inside, after which all of it is lost: the loss goes 0, 1, 1.
    """
    zero, one = 0.5 * 0.5 + 0.25 * 0.5, 0.5 * 1 + 0.25 * 0
    assert LovaszSoftmax()(LOGITS, LABELS).item() == pytest.approx((zero + one) / 2)


def jaccard_loss(predicted, true):
    """One minus intersection over union of two sets of pixels."""
    return 1 - len(predicted & true) / len(predicted | true)


def test_lovasz_of_certain_predictions_is_the_jaccard_loss():
    """At its vertices the extension equals what it extends: all 81 predictions of 3 classes on 4 pixels, 2 classes true."""
    labels = torch.tensor([[0, 0], [0, 2]])
    predictions = torch.tensor(list(itertools.product(range(3), repeat=4))).view(81, 2, 2)
    for prediction, logits in zip(predictions, certain(predictions, 3), strict=True):
        sets = [
            [{pixel for pixel in range(4) if ids.flatten()[pixel] == label} for ids in (prediction, labels)]
            for label in (0, 2)
        ]
        expected = sum(jaccard_loss(*pair) for pair in sets) / 2
        assert LovaszSoftmax()(logits[None], labels[None]).item() == pytest.approx(expected, abs=1e-6)


def test_lovasz_is_the_extension_of_the_jaccard_loss():
    """From the worst pixel to the best: each error times what the Jaccard loss grows by if that pixel is wrong too."""
    logits, labels = torch.randn(1, 3, 4, 5), torch.randint(0, 3, (1, 4, 5))
    total = 0.0
    for label, probabilities in enumerate(logits[0].softmax(dim=0).flatten(1)):
        true = {pixel for pixel in range(20) if labels.flatten()[pixel] == label}
        errors = [(1 - p if pixel in true else p) for pixel, p in enumerate(probabilities.tolist())]
        wrong, before = set(), 0.0
        for pixel in sorted(range(20), key=lambda pixel: -errors[pixel]):
            wrong = wrong | {pixel}
            after = jaccard_loss(true ^ wrong, true)
            total, before = total + errors[pixel] * (after - before), after
    assert LovaszSoftmax()(logits, labels).item() == pytest.approx(total / 3, rel=1e-5)


def test_the_steps_of_a_large_image_are_exact():
    """A million pixels, half of them of the class: neighbouring losses differ by 1e-6, with float32's 6e-8 in each."""
    is_class = (torch.arange(1_000_000) % 2 == 0)[None]
    inside, outside = is_class.double().cumsum(dim=1), (~is_class).double().cumsum(dim=1)
    losses = 1 - (500_000 - inside) / (500_000 + outside)
    expected = torch.diff(losses, prepend=torch.zeros(1, 1, dtype=torch.float64))
    torch.testing.assert_close(_jaccard_steps(is_class).double(), expected, rtol=1e-5, atol=1e-15)


@by_image
def test_a_perfect_prediction_costs_nothing_and_one_that_is_wrong_everywhere_costs_one(loss):
    labels = torch.tensor([[[0, 0, 1], [2, 2, 2]]])
    assert loss(certain(labels, 3), labels).item() == 0
    assert loss(certain((labels + 1) % 3, 3), labels).item() == pytest.approx(1)


@by_image
@pytest.mark.parametrize("size", [1, 8])
def test_an_object_that_is_missed_costs_the_same_whatever_its_size(loss, size):
    """Nothing smooths the fraction: class 1 costs 1, and class 0 next to nothing."""
    labels = torch.zeros(1, 100, 100, dtype=torch.long)
    labels[0, :size, :size] = 1
    assert loss(certain(torch.zeros_like(labels), 2), labels).item() == pytest.approx(0.5, abs=0.005)


@by_image
def test_ignored_pixels_count_nowhere(loss):
    """The image is cut off at its right; what is predicted there is all one."""
    logits, labels = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5))
    labels[:, :, 3:] = -100
    torch.testing.assert_close(loss(logits, labels), loss(logits[..., :3], labels[..., :3]))
    logits.requires_grad_()
    loss(logits, labels).backward()
    assert (logits.grad[..., 3:] == 0).all()


@by_image
def test_each_image_has_a_loss_of_its_own(loss):
    """The second has nothing that counts: it is in neither the sum nor the denominator."""
    logits, labels = torch.randn(3, 4, 5, 5), torch.randint(0, 4, (3, 5, 5))
    labels[1] = -100
    expected = loss(logits[:1], labels[:1]) + loss(logits[2:], labels[2:])
    torch.testing.assert_close(loss(logits, labels), expected)
    assert loss.denominator(labels).item() == 2


@by_image
def test_a_class_outside_of_the_labels_counts_by_the_pixels_it_takes(loss):
    """Of four classes two are there; a certain prediction of another one is as wrong as one of the wrong class."""
    labels = torch.tensor([[[0, 0, 1, 1]]])
    missed = [loss(certain(torch.tensor([[[0, 0, 1, other]]]), 4), labels).item() for other in (2, 3)]
    assert missed[0] == missed[1] > 0
    assert loss(torch.zeros(1, 4, 1, 4), labels).item() < 1


@by_image
def test_gradients_are_those_of_small_differences(loss):
    """In double precision, before which the losses themselves turn logits into float32."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 12, dtype=torch.float64, generator=generator, requires_grad=True)
    labels = torch.randint(0, 3, (12,), generator=generator)
    assert torch.autograd.gradcheck(lambda logits: loss._image_loss(logits, labels), (logits,))


@pytest.mark.parametrize("name", ["cross_entropy", "focal", "dice", "lovasz"])
@pytest.mark.parametrize("class_weights", [None, [2.0] * 200])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16])
def test_labels_may_be_of_any_integer_type(name, class_weights, dtype):
    """Among 200 classes there is 156, which in uint8 is what -100 turns into."""
    options = {"class_weights": class_weights} if name in ("cross_entropy", "focal") else {}
    loss = make_loss(name, problem_type=SEGMENTATION, **options)
    logits, labels = torch.randn(2, 200, 1, 3), torch.tensor([[[156, 3, 156]], [[156, 156, 156]]])
    torch.testing.assert_close(loss(logits, labels.to(dtype)), loss(logits, labels))
    torch.testing.assert_close(loss.denominator(labels.to(dtype)), loss.denominator(labels))


@by_image
@pytest.mark.parametrize("logits", [torch.zeros(1, 3, 5, 4), torch.zeros(1, 3, 20), torch.zeros(2, 3, 4, 5)])
def test_sizes_that_differ_are_refused(loss, logits):
    """5 x 4 pixels are as many as 4 x 5, but others."""
    with pytest.raises(ValueError, match=r"and labels \(1, 4, 5\), expected \(batch, classes, height, width\) and"):
        loss(logits, torch.zeros(1, 4, 5, dtype=torch.long))
