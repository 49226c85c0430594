"""Losses by name: what fits which problem, what several make together, and what is refused."""

import math
import pickle

import pytest

from losses.examples import MULTI, REGRESSION, SEGMENTATION, SINGLE, WEIGHTS
from sft_hf.errors import ArgumentError
from sft_hf.losses import LossSum, make_loss
from sft_hf.losses.classification import BinaryCrossEntropy, CrossEntropy, SoftmaxFocal
from sft_hf.losses.regression import SquaredError
from sft_hf.losses.segmentation import Dice, LovaszSoftmax


@pytest.mark.parametrize(
    ("problem_type", "kind"),
    [(SINGLE, CrossEntropy), (MULTI, BinaryCrossEntropy), (REGRESSION, SquaredError), (SEGMENTATION, CrossEntropy)],
)
def test_auto_is_the_usual_loss_of_the_problem(problem_type, kind):
    assert type(make_loss("auto", problem_type=problem_type)) is kind


def test_several_names_make_a_sum_and_options_reach_the_parts_that_have_them():
    options = {"class_weights": WEIGHTS, "label_smoothing_factor": 0.1, "focal_gamma": 3.0}
    loss = make_loss("auto+dice+focal+lovasz", problem_type=SEGMENTATION, **options)
    assert isinstance(loss, LossSum)
    assert {name: type(part) for name, part in loss.parts.items()} == {
        "cross_entropy": CrossEntropy,
        "dice": Dice,
        "focal": SoftmaxFocal,
        "lovasz": LovaszSoftmax,
    }
    for name in ("cross_entropy", "focal"):
        assert loss.parts[name].class_weights.tolist() == WEIGHTS
        assert loss.parts[name].label_smoothing_factor == 0.1
    assert loss.parts["focal"].focal_gamma == 3.0


@pytest.mark.parametrize("name", ["focal", "cross_entropy+focal"])
def test_a_loss_pickles(name):
    loss = pickle.loads(pickle.dumps(make_loss(name, problem_type=SEGMENTATION, class_weights=WEIGHTS)))
    focal = loss.parts["focal"] if isinstance(loss, LossSum) else loss
    assert focal.class_weights.tolist() == WEIGHTS


# What is refused


@pytest.mark.parametrize(
    ("name", "problem_type", "fitting"),
    [
        ("mse", SINGLE, "auto, cross_entropy, focal, bce"),
        ("cross_entropy", MULTI, "auto, bce, focal"),
        ("focal", REGRESSION, "auto, mse, huber"),
        ("hinge", SINGLE, "auto, cross_entropy, focal, bce"),
        ("bce", SEGMENTATION, "auto, cross_entropy, dice, focal, lovasz"),
        ("cross_entropy+dise", SEGMENTATION, "auto, cross_entropy, dice, focal, lovasz"),
        ("dice+", SEGMENTATION, "auto, cross_entropy, dice, focal, lovasz"),
    ],
)
def test_a_loss_that_does_not_fit_says_which_do(name, problem_type, fitting):
    with pytest.raises(ArgumentError) as error:
        make_loss(name, problem_type=problem_type)
    wrong = repr(name.split("+")[-1])
    for part in (f"--loss {name}: {wrong} does not fit", problem_type, f"There are: {fitting}."):
        assert part in str(error.value)


@pytest.mark.parametrize(("name", "twice"), [("dice+focal+dice", "dice"), ("auto+cross_entropy", "cross_entropy")])
def test_a_loss_stands_in_a_sum_once(name, twice):
    with pytest.raises(ArgumentError) as error:
        make_loss(name, problem_type=SEGMENTATION)
    message = (
        f"--loss {name}: {twice} stands in it more than once. There are: auto, cross_entropy, dice, focal, lovasz."
    )
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dice", {"class_weights": WEIGHTS}, "--class_weights is set, but --loss dice makes no use of it"),
        ("dice+lovasz", {"class_weights": WEIGHTS}, r"set, but --loss dice\+lovasz makes no use of it"),
        ("lovasz", {"label_smoothing_factor": 0.1}, "--label_smoothing_factor is 0.1, but --loss lovasz makes no"),
    ],
)
def test_an_option_that_no_part_reads_is_refused(name, options, message):
    with pytest.raises(ArgumentError, match=f"{message}.*these do: cross_entropy, focal"):
        make_loss(name, problem_type=SEGMENTATION, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_smoothing_factor": 0.1}, "--label_smoothing_factor is 0.1"),
        ({"class_weights": [1.0]}, "--class_weights is set"),
    ],
)
def test_numbers_have_no_classes_to_weigh_or_smooth(options, message):
    with pytest.raises(
        ArgumentError, match=f"{message}, but --loss mse makes no use.*nor does any other of .* regression"
    ):
        make_loss("auto", problem_type=REGRESSION, **options)


@pytest.mark.parametrize(
    ("name", "problem_type", "options", "message"),
    [
        ("auto", SINGLE, {"label_smoothing_factor": 1.0}, "--label_smoothing_factor is 1.0"),
        ("auto", SINGLE, {"label_smoothing_factor": -0.1}, "--label_smoothing_factor is -0.1"),
        ("auto", SINGLE, {"class_weights": [1.0, -1.0]}, "--class_weights is"),
        ("auto", SINGLE, {"class_weights": [1.0, math.nan]}, "--class_weights is"),
        ("auto+dice", SEGMENTATION, {"class_weights": [[1.0]]}, "--class_weights is"),
        ("focal", SINGLE, {"focal_gamma": -1.0}, "--focal_gamma is -1.0"),
        ("huber", REGRESSION, {"huber_delta": 0.0}, "--huber_delta is 0.0"),
        ("auto", "ranking", {}, "--problem_type is 'ranking'.*semantic_segmentation"),
    ],
)
def test_values_out_of_range_name_their_flag(name, problem_type, options, message):
    with pytest.raises(ArgumentError, match=message):
        make_loss(name, problem_type=problem_type, **options)
