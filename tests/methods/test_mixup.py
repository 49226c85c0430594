"""Pictures and labels are blended by the same share, which is drawn from seed, step and examples alone."""

import dataclasses

import numpy as np
import pytest
import torch
from transformers import HfArgumentParser, ViTConfig, ViTForImageClassification

from sft_hf.classification import Classification
from sft_hf.data.labels import Labels
from sft_hf.errors import ArgumentError
from sft_hf.losses import make_loss
from sft_hf.method import Method
from sft_hf.methods.mixup import Mixup
from sft_hf.seeding import seeded

SINGLE, MULTI = "single_label_classification", "multi_label_classification"
LABELS = Labels(SINGLE, ("bird", "cat", "dog", "fish"))
KEY = {"step": 5, "seed": 42}


def batch(size: int = 4, *, first_id: int = 0, dtype: torch.dtype = torch.uint8) -> dict:
    """Picture number i is all 50 * i, and its class is i modulo 4."""
    numbers = torch.arange(size)
    return {
        "pixel_values": (numbers * 50).to(dtype).view(-1, 1, 1, 1).repeat(1, 3, 8, 10),
        "labels": numbers % 4,
        "example_id": first_id + numbers,
        "other": "kept",
    }


def mixed(method: Mixup, given: dict, *, labels: Labels = LABELS, **key: int) -> dict:
    return method.prepare(labels=labels).wrap_batch(given, **{**KEY, **key})


def share_kept(result: dict) -> float:
    """Of example 0, whose partner is the last one."""
    return float(result["labels"][0, 0])


def test_mixup_by_hand():
    """Each picture gets 1 - share of the one before it, the first one of the last."""
    result = mixed(Mixup(mixup_alpha=1.0), batch())
    share = share_kept(result)
    assert 0.01 < share < 0.99
    pixels = torch.tensor(
        [150.0 * (1 - share), 50 * share, 100 * share + 50 * (1 - share), 150 * share + 100 * (1 - share)]
    )
    torch.testing.assert_close(result["pixel_values"], pixels.view(4, 1, 1, 1).expand(4, 3, 8, 10))
    one_hot = torch.eye(4)
    torch.testing.assert_close(result["labels"], share * one_hot + (1 - share) * one_hot[[3, 0, 1, 2]])
    assert result["pixel_values"].dtype == result["labels"].dtype == torch.float32
    assert result["other"] == "kept"


def test_cutmix_by_hand():
    """A rectangle of the picture before; the share is the exact area that is left."""
    shares = []
    for step in range(30):
        result = mixed(Mixup(cutmix_alpha=1.0), batch(), step=step)
        pasted = result["pixel_values"][1, 0] == 0
        assert set(result["pixel_values"][1].unique().tolist()) <= {0.0, 50.0}, "pixels are of one picture or the other"
        rows, columns = pasted.any(dim=1), pasted.any(dim=0)
        assert pasted.sum() == rows.sum() * columns.sum(), "a rectangle"
        torch.testing.assert_close(
            result["labels"][1], torch.tensor([pasted.float().mean(), 1 - pasted.float().mean(), 0, 0])
        )
        shares.append(share_kept(result))
    assert len(set(shares)) > 10


def test_the_shares_of_mixup_are_a_beta_distribution():
    """Beta(a, a) has mean 1/2 and variance 1 / (4 (2a + 1))."""
    shares = np.array([share_kept(mixed(Mixup(mixup_alpha=0.2), batch(), step=step)) for step in range(500)])
    assert abs(shares.mean() - 0.5) < 0.06
    assert abs(shares.var() - 1 / 5.6) < 0.02


def test_with_both_one_is_drawn_for_each_batch():
    is_cut = []
    for step in range(100):
        pixels = mixed(Mixup(mixup_alpha=1.0, cutmix_alpha=1.0), batch(), step=step)["pixel_values"]
        is_cut.append(set(pixels[1].unique().tolist()) <= {0.0, 50.0})
    assert 35 <= sum(is_cut) <= 65


def test_pitfall_44_the_blend_is_a_function_of_seed_step_and_examples():
    method = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0)
    given, result = batch(), mixed(method, batch())
    torch.rand(7)
    state = torch.get_rng_state()
    again = mixed(Mixup(mixup_alpha=0.8, cutmix_alpha=1.0), given)
    assert torch.equal(torch.get_rng_state(), state), "the process's own random numbers go on where they were"
    assert torch.equal(again["pixel_values"], result["pixel_values"])
    assert torch.equal(again["labels"], result["labels"])
    for other in (
        mixed(method, batch(), step=6),
        mixed(method, batch(), seed=43),
        mixed(method, batch(first_id=1)),
        mixed(method, {**batch(), "example_id": torch.tensor([0, 2, 1, 3])}),
    ):
        assert not torch.equal(other["labels"], result["labels"])


def test_the_given_batch_stays_as_it_is():
    given = batch(dtype=torch.float32)
    before = {name: value.clone() for name, value in given.items() if name != "other"}
    mixed(Mixup(mixup_alpha=1.0, cutmix_alpha=1.0), given)
    assert all(torch.equal(given[name], value) for name, value in before.items())


def test_a_batch_of_one_keeps_its_picture():
    given = {**batch(), **{name: batch()[name][2:3] for name in ("pixel_values", "labels", "example_id")}}
    result = mixed(Mixup(mixup_alpha=1.0, cutmix_alpha=1.0), given)
    assert (result["pixel_values"] == 100).all()
    assert result["pixel_values"].dtype == torch.float32
    assert result["labels"].tolist() == [[0.0, 0.0, 1.0, 0.0]]


def test_several_labels_are_blended_too():
    labels = Labels(MULTI, ("red", "round"))
    given = {**batch(2), "labels": torch.tensor([[1.0, 1.0], [0.0, 1.0]])}
    result = mixed(Mixup(mixup_alpha=1.0), given, labels=labels)
    share = share_kept(result)
    assert 0.01 < share < 0.99
    torch.testing.assert_close(result["labels"], torch.tensor([[share, 1.0], [1 - share, 1.0]]))


# ---- losses ----


@pytest.mark.parametrize("name", ["cross_entropy", "focal", "bce"])
@pytest.mark.parametrize(
    "options", [{}, {"label_smoothing_factor": 0.1}, {"class_weights": [1.0, 2.0, 0.5, 1.0]}], ids=str
)
def test_the_loss_of_a_blend_is_the_blend_of_the_losses(name, options):
    """Zhang et al., section 2: with smoothing and class weights too, since every loss is linear in its targets."""
    loss = make_loss(name, problem_type=SINGLE, **options)
    logits, ids = torch.randn(4, 4, generator=torch.Generator().manual_seed(0)), batch()["labels"]
    result = mixed(Mixup(mixup_alpha=1.0), batch())
    share, partner = share_kept(result), ids.roll(1)
    torch.testing.assert_close(
        loss(logits, result["labels"]), share * loss(logits, ids) + (1 - share) * loss(logits, partner)
    )
    torch.testing.assert_close(
        loss.denominator(result["labels"]), share * loss.denominator(ids) + (1 - share) * loss.denominator(partner)
    )


def test_pitfall_3_soft_targets_do_not_change_the_problem_type():
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    config = ViTConfig(**sizes, image_size=8, patch_size=4, num_labels=4, problem_type=SINGLE)
    model = ViTForImageClassification(config)
    given = batch()
    given["pixel_values"] = given["pixel_values"][..., :8]
    result = mixed(Mixup(mixup_alpha=1.0), {name: value for name, value in given.items() if name != "other"})
    loss = make_loss("auto", problem_type=SINGLE)
    _, sums = Classification.loss_sums(None, loss, model, result)
    assert model.config.problem_type == SINGLE
    expected = torch.nn.functional.cross_entropy(
        model(result["pixel_values"]).logits, result["labels"], reduction="sum"
    )
    torch.testing.assert_close(sum(sums.values()), expected)
    # The trap: a head that sees such labels decides for itself, and the saved configuration keeps that.
    model.config.problem_type = None
    model(pixel_values=result["pixel_values"], labels=result["labels"])
    assert model.config.problem_type == MULTI


# ---- flags ----


def test_both_are_off_by_default():
    method = Mixup()
    assert method.prepare(labels=Labels("regression", ("label",))) is method
    given = batch()
    assert method.wrap_batch(given, **KEY) is given


def test_the_two_alphas_are_the_only_flags():
    (method,) = HfArgumentParser([Mixup]).parse_args_into_dataclasses(["--mixup_alpha", "0.2"])
    assert method == Mixup(mixup_alpha=0.2, cutmix_alpha=0.0)
    assert {item.name for item in dataclasses.fields(Mixup)} == {"mixup_alpha", "cutmix_alpha"}


@pytest.mark.parametrize("name", ["mixup_alpha", "cutmix_alpha"])
@pytest.mark.parametrize("alpha", [-0.2, float("nan")])
def test_an_alpha_is_not_negative(name, alpha):
    with pytest.raises(ArgumentError, match=rf"^--{name} is {alpha}, expected 0 \(off\) or a number above it\.$"):
        Mixup(**{name: alpha})


@pytest.mark.parametrize("problem_type", ["regression", "semantic_segmentation"])
def test_what_are_no_classes_of_a_picture_cannot_be_blended(problem_type):
    message = rf"^--cutmix_alpha 1.0 blends classes, but the problem type is {problem_type}\. Set it to 0\.$"
    with pytest.raises(ArgumentError, match=message):
        Mixup(cutmix_alpha=1.0).prepare(labels=Labels(problem_type, ("a", "b")))


def test_a_method_is_ready_as_it_is_unless_it_needs_the_labels():
    method = Method()
    assert method.prepare(labels=LABELS) is method


def test_the_generator_is_seeded_by_seed_step_and_ids():
    """What the docstring promises, drawn by hand: the share of a plain Beta distribution."""
    with seeded(42, 5, 0, 1, 2, 3):
        torch.multinomial(torch.tensor([1.0]), 1)
        share = float(torch.distributions.Beta(torch.tensor([1.0]), torch.tensor([1.0])).sample(()))
    assert share_kept(mixed(Mixup(mixup_alpha=1.0), batch())) == pytest.approx(share)
