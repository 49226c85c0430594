"""The perceptron: its size, grey pictures as RGB, plain SGD, and what transformers reloads."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional
from transformers import AutoConfig, AutoModelForImageClassification, ViTImageProcessor, pipeline

from sft_hf.models import mlp
from sft_hf.models.mlp import MlpConfig, MlpForImageClassification

LABELS = torch.tensor([0, 1, 2, 2])


def small(seed=0, **options):
    """Return a model in evaluation mode over pictures of 4 x 4, whose logits differ visibly from picture to picture."""
    torch.manual_seed(seed)
    options = {"image_size": 4, "hidden_sizes": [8], "num_labels": 3} | options
    model = MlpForImageClassification(MlpConfig(**options)).eval()
    torch.nn.init.normal_(model.classifier.weight)
    return model


def pictures(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Sizes and pixels


def test_the_perceptron_of_introductions_has_109_386_parameters():
    """784 x 128 + 128, 128 x 64 + 64, 64 x 10 + 10."""
    model = MlpForImageClassification(MlpConfig(num_labels=10))
    assert [tuple(weight.shape) for weight in model.parameters() if weight.dim() == 2] == [
        (128, 784),
        (64, 128),
        (10, 64),
    ]
    assert model.num_parameters() == 100_480 + 8_256 + 650 == 109_386
    assert model(torch.zeros(5, 1, 28, 28)).logits.shape == (5, 10)


def test_logits_by_hand():
    """Pixels 1 and -2, hidden relu(1 - (-2)) = 3 and relu(-2) = 0, logits 3 + 0.5 and -3."""
    model = MlpForImageClassification(MlpConfig(image_size=1, num_channels=2, hidden_sizes=[2], num_labels=2)).eval()
    hidden = model.mlp[0]
    hidden.load_state_dict({"weight": torch.tensor([[1.0, -1.0], [0.0, 1.0]]), "bias": torch.zeros(2)})
    model.classifier.load_state_dict(
        {"weight": torch.tensor([[1.0, 7.0], [-1.0, 7.0]]), "bias": torch.tensor([0.5, 0.0])}
    )
    logits = model(torch.tensor([1.0, -2.0]).view(1, 2, 1, 1)).logits
    assert logits.tolist() == [[3.5, -3.0]]


def test_grey_pictures_as_rgb_have_the_same_logits():
    model, grey = small(), pictures(4, 1, 4, 4)
    torch.testing.assert_close(model(grey.expand(-1, 3, -1, -1)).logits, model(grey).logits)


def test_colours_are_averaged_unless_the_config_has_three_channels():
    colours = pictures(4, 3, 4, 4)
    torch.testing.assert_close(small()(colours).logits, small()(colours.mean(dim=1, keepdim=True)).logits)
    assert small(num_channels=3).mlp[0].in_features == 3 * 4 * 4
    assert not torch.equal(small(num_channels=3)(colours).logits, small(num_channels=3)(colours.flip(1)).logits)


@pytest.mark.parametrize(
    ("channels", "shape", "message"),
    [
        (1, (4, 1, 5, 4), r"are \(4, 1, 5, 4\), expected \(batch, 1, 4, 4\), or RGB \(batch, 3, 4, 4\): set the image"),
        (1, (4, 2, 4, 4), r"are \(4, 2, 4, 4\), expected \(batch, 1, 4, 4\), or RGB"),
        (1, (1, 4, 4), r"are \(1, 4, 4\), expected"),
        (3, (4, 1, 4, 4), r"are \(4, 1, 4, 4\), expected \(batch, 3, 4, 4\): set the image processor's size"),
    ],
)
def test_pictures_of_another_size_are_refused(channels, shape, message):
    with pytest.raises(ValueError, match=message):
        small(num_channels=channels)(torch.zeros(shape))


def test_dropout_is_between_the_layers():
    model, inputs = small(hidden_dropout_prob=0.5), pictures(4, 1, 4, 4)
    torch.testing.assert_close(model(inputs).logits, model(inputs).logits)
    assert not torch.equal(model.train()(inputs).logits, model(inputs).logits)


# Loss and training


@pytest.mark.parametrize(
    ("problem_type", "num_labels", "labels", "reference"),
    [
        ("single_label_classification", 3, torch.tensor([0, 1, 2, -100]), functional.cross_entropy),
        ("multi_label_classification", 3, torch.eye(4, 3), functional.binary_cross_entropy_with_logits),
        ("regression", 1, torch.arange(4.0), lambda logits, labels: functional.mse_loss(logits[:, 0], labels)),
    ],
)
@pytest.mark.parametrize("given", [True, False])
def test_pitfall_3_loss_is_that_of_the_problem_type(problem_type, num_labels, labels, reference, given):
    """Inferred from the labels if not given, but never written into the config."""
    problem_type = problem_type if given else None
    model = small(num_labels=num_labels, problem_type=problem_type)
    output = model(pictures(4, 1, 4, 4), labels=labels)
    torch.testing.assert_close(output.loss, reference(output.logits, labels))
    assert model.config.problem_type == problem_type


def test_pitfall_1_the_loss_honours_num_items_in_batch():
    """One batch of four, or one and three: the same gradient."""
    model, inputs = small(), pictures(4, 1, 4, 4)
    model(inputs, labels=LABELS).loss.backward()
    whole = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    for rows in (slice(0, 1), slice(1, 4)):
        model(inputs[rows], labels=LABELS[rows], num_items_in_batch=4).loss.backward()
    torch.testing.assert_close([parameter.grad for parameter in model.parameters()], whole)


def test_plain_sgd_at_0_01_trains_it():
    """From ln(10), with batches of 64, on ten made-up digits in noise; a normal initialisation with 0.02 stays there."""
    torch.manual_seed(0)
    labels = torch.arange(640) % 10
    inputs = pictures(10, 1, 28, 28)[labels] + pictures(640, 1, 28, 28, seed=1)
    model = MlpForImageClassification(MlpConfig(num_labels=10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    losses = []
    for _ in range(5):
        for rows in torch.randperm(640).split(64):
            loss = model(inputs[rows], labels=labels[rows]).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(10), abs=0.1)
    assert losses[-1] < 1.8


def test_tuples_in_place_of_outputs():
    loss, logits = small()(pictures(4, 1, 4, 4), labels=LABELS, return_dict=False)
    assert (loss.shape, logits.shape) == ((), (4, 3))


# Initialisation, saving and reloading


def test_initialisation_is_that_of_torch():
    """Uniform between -1/28 and 1/28 for 784 inputs: a standard deviation of 1/28 over the root of 3."""
    layer = MlpForImageClassification(MlpConfig()).mlp[0]
    for parameter in (layer.weight, layer.bias):
        assert parameter.abs().max().item() <= 1 / 28
        assert parameter.std().item() == pytest.approx(1 / 28 / 3**0.5, rel=0.15)


def test_saved_and_reloaded_it_is_the_same(tmp_path):
    model, inputs = small(id2label={0: "cat", 1: "dog", 2: "owl"}), pictures(4, 1, 4, 4)
    model.save_pretrained(tmp_path)
    reloaded, info = AutoModelForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert type(reloaded) is MlpForImageClassification
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert reloaded.config.id2label == {0: "cat", 1: "dog", 2: "owl"}
    assert reloaded.config.hidden_sizes == [8]
    torch.testing.assert_close(reloaded(inputs).logits, model(inputs).logits, atol=0, rtol=0)


def test_a_head_of_another_size_starts_anew_and_the_rest_stays(tmp_path):
    model = small()
    model.save_pretrained(tmp_path)
    other = AutoModelForImageClassification.from_pretrained(tmp_path, num_labels=5, ignore_mismatched_sizes=True)
    assert other(pictures(4, 1, 4, 4)).logits.shape == (4, 5)
    assert 0 < other.classifier.weight.abs().max().item() <= 8**-0.5
    torch.testing.assert_close(other.base_model.state_dict(), model.base_model.state_dict(), atol=0, rtol=0)


def test_a_checkpoint_that_lacks_one_weight_keeps_the_others(tmp_path):
    model = small()
    there = {name: value for name, value in model.state_dict().items() if name != "mlp.0.bias"}
    model.save_pretrained(tmp_path, state_dict=dict(there))  # it empties what it is given
    reloaded = MlpForImageClassification.from_pretrained(tmp_path)
    for name, value in there.items():
        torch.testing.assert_close(reloaded.state_dict()[name], value, atol=0, rtol=0)
    assert 0 < reloaded.mlp[0].bias.abs().max().item() <= 16**-0.5


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_transformers_pipeline_reads_the_saved_folder(tmp_path, mode, monkeypatch):
    """Grey files arrive as RGB; a colour picture counts by the mean of its channels."""
    model = small(image_size=28, num_labels=3, id2label={0: "cat", 1: "dog", 2: "owl"})
    model.save_pretrained(tmp_path)
    size, mean, std = {"height": 28, "width": 28}, 0.1307, 0.3081
    ViTImageProcessor(size=size, image_mean=[mean] * 3, image_std=[std] * 3).save_pretrained(tmp_path)
    shape = (28, 28) if mode == "L" else (28, 28, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    # It logs an error, and goes on, for a model that it does not know.
    monkeypatch.setattr("transformers.pipelines.base.logger.error", pytest.fail)
    classify = pipeline("image-classification", model=str(tmp_path), device="cpu")
    results = classify(Image.fromarray(pixels, mode=mode))

    grey = torch.from_numpy(pixels).float().view(28, 28, -1).mean(dim=-1)
    probabilities = model(((grey / 255 - mean) / std)[None, None]).logits.softmax(dim=-1)[0]
    assert {result["label"]: result["score"] for result in results} == pytest.approx(
        dict(zip(["cat", "dog", "owl"], probabilities.tolist(), strict=True)), abs=1e-5
    )


def test_the_config_alone_builds_a_model(tmp_path):
    MlpConfig(num_labels=4, hidden_sizes=(6, 5)).save_pretrained(tmp_path)
    model = AutoModelForImageClassification.from_config(AutoConfig.from_pretrained(tmp_path))
    assert type(model) is MlpForImageClassification
    assert [layer.out_features for layer in (model.mlp[0], model.mlp[3], model.classifier)] == [6, 5, 4]


def test_registering_again_changes_nothing():
    mlp.register()
    assert type(AutoConfig.for_model("sft_hf_mlp")) is MlpConfig
