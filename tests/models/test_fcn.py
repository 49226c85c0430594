"""The fully convolutional network: scores by hand, any timm backbone, pretrained weights, and what transformers reloads."""

import json
import math
import sys

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModelForSemanticSegmentation,
    SegformerImageProcessor,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    pipeline,
)

from sft_hf.errors import HubError, ModelError
from sft_hf.models import fcn
from sft_hf.models.fcn import (
    WEIGHTS_FILE,
    FcnConfig,
    FcnForSemanticSegmentation,
    backbone_data_config,
    backbone_settings,
    load_pretrained_backbone,
)

SMALL_SWIN = {"img_size": [64, 64], "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1]}
STATISTICS = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bilinear", "input_size": [3, 96, 96]}


@pytest.fixture(autouse=True)
def _one_thread():
    """Threads cost more than they give on models this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def small(backbone="test_efficientnet", *, seed=0, **options):
    """Return a model in evaluation mode whose logits differ visibly from pixel to pixel."""
    torch.manual_seed(seed)
    model = FcnForSemanticSegmentation(FcnConfig(backbone=backbone, **{"num_labels": 3} | options)).eval()
    for score in model.scores:
        nn.init.normal_(score.weight)
    return model


def pictures(*size, seed=0):
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(seed))


def save_classifier(folder, architecture, *, dtype="float32", **model_args):
    """Save a timm classifier with random weights and statistics as transformers does; returns it in evaluation mode."""
    torch.manual_seed(1)
    settings = {"architecture": architecture, "model_args": model_args, "pretrained_cfg": dict(STATISTICS)}
    config = TimmWrapperConfig.from_dict({**settings, "num_classes": 2, "label_names": ["cat", "dog"]})
    model = TimmWrapperForImageClassification(config).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # so that statistics which are not loaded are seen
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 1.5)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    return model


def rewrite_weights(folder, *, prefix="", without=None, **changed):
    """Save the weights again without one, with others in the place of some, and with other names."""
    weights = {name.removeprefix("timm_model."): value for name, value in load_file(folder / WEIGHTS_FILE).items()}
    weights = {name: value for name, value in (weights | changed).items() if name != without}
    save_file({f"{prefix}{name}": value for name, value in weights.items()}, folder / WEIGHTS_FILE)


# Levels and scores


class FixedFeatures(nn.Module):
    """Two levels of one channel: 2 x 2 and 1 x 1."""

    def forward(self, pixel_values):
        return [torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), torch.tensor([[[[10.0]]]])]


def test_scores_of_the_levels_are_added_from_coarse_to_fine_by_hand():
    """10 x 0.5 + 1 = 6 everywhere, plus twice the finer level."""
    model = small(out_indices=(-2, -1), num_labels=1)
    model.backbone, model.scores = FixedFeatures(), nn.ModuleList([nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)])
    for score, weight, bias in zip(model.scores, (2.0, 0.5), (0.0, 1.0), strict=True):
        nn.init.constant_(score.weight, weight)
        nn.init.constant_(score.bias, bias)
    assert model(pictures(2, 2)).logits.tolist() == [[[[8.0, 10.0], [12.0, 14.0]]]]


def test_upsampling_is_bilinear_between_the_centres_of_pixels():
    """From 0 and 4 to four pixels: 0, 1, 3, 4 with align_corners=False (0, 4/3, 8/3, 4 with True)."""
    upsampled = fcn._upsampled(torch.tensor([0.0, 4.0]).view(1, 1, 1, 2), size=(1, 4))
    assert upsampled.flatten().tolist() == [0, 1, 3, 4]


@pytest.mark.parametrize(
    ("backbone", "backbone_kwargs", "strides", "odd"),
    [
        ("resnet18", {}, [8, 16, 32], (13, 8)),
        ("mobilenetv3_small_050", {}, [8, 16, 32], (13, 8)),
        ("tf_efficientnet_lite0", {}, [8, 16, 32], (13, 8)),
        ("convnext_atto", {}, [8, 16, 32], (12, 7)),  # four levels, and it rounds down
        ("test_mambaout", {}, [8, 16, 32], (13, 8)),  # channels last in its features
        ("vit_tiny_patch16_224", {"dynamic_img_size": True, "dynamic_img_pad": True}, [16, 16, 16], (7, 4)),
    ],
)
def test_logits_have_the_stride_of_the_finest_level(backbone, backbone_kwargs, strides, odd):
    model = small(backbone, backbone_kwargs=backbone_kwargs)
    assert model.backbone.feature_info.reduction() == strides
    with torch.no_grad():
        assert model(pictures(64, 64)).logits.shape == (2, 3, 64 // strides[0], 64 // strides[0])
        assert model(pictures(97, 61)).logits.shape == (2, 3, *odd)


@pytest.mark.parametrize(("out_indices", "side"), [((-1,), 2), ((-2, -1), 4), ((2, 3, 4), 8), ((0, 1, 2, 3, 4), 32)])
def test_out_indices_choose_the_levels(out_indices, side):
    model = small(out_indices=out_indices)
    assert len(model.scores) == len(out_indices)
    assert model(pictures(64, 64)).logits.shape == (2, 3, side, side)


def test_every_level_reaches_the_logits():
    model, inputs = small(), pictures(64, 64)
    before = model(inputs).logits
    for score in model.scores:
        nn.init.constant_(score.bias, 1.0)
        after = model(inputs).logits
        torch.testing.assert_close(after, before + 1)
        before = after


def test_dropout_is_on_the_coarsest_level_alone():
    model, inputs = small(classifier_dropout_prob=1.0), pictures(64, 64)
    model.dropout.train()
    model.scores[-1].weight.requires_grad_(True)
    model(inputs).logits.sum().backward()
    assert not model.scores[-1].weight.grad.any()
    assert model.scores[0].weight.grad.any()


# Loss and training


def test_it_starts_at_ln_classes_with_the_weights_of_timm():
    """All scores are zero, as in the paper, and the backbone is as timm initialises it."""
    torch.manual_seed(3)
    model = FcnForSemanticSegmentation(FcnConfig(backbone="test_resnet", num_labels=7))
    torch.manual_seed(3)
    backbone = timm.create_model("test_resnet", features_only=True, out_indices=(2, 3, 4))
    torch.testing.assert_close(model.backbone.state_dict(), backbone.state_dict(), atol=0, rtol=0)
    output = model(pictures(64, 64), labels=torch.zeros(2, 64, 64, dtype=torch.long))
    assert not output.logits.any()
    assert output.loss.item() == pytest.approx(math.log(7))


def test_from_config_keeps_the_weights_of_timm_too():
    torch.manual_seed(3)
    model = AutoModelForSemanticSegmentation.from_config(FcnConfig(backbone="test_resnet"))
    torch.manual_seed(3)
    backbone = timm.create_model("test_resnet", features_only=True, out_indices=(2, 3, 4))
    torch.testing.assert_close(model.backbone.state_dict(), backbone.state_dict(), atol=0, rtol=0)


def test_loss_is_the_cross_entropy_at_the_labels_size():
    model, labels = small(), torch.randint(0, 3, (2, 50, 70))
    labels[0, :20] = 255
    output = model(pictures(64, 64), labels=labels)
    logits = functional.interpolate(output.logits, size=(50, 70), mode="bilinear", align_corners=False)
    torch.testing.assert_close(output.loss, functional.cross_entropy(logits, labels, ignore_index=255))


def test_ignored_pixels_alone_have_no_loss_and_no_gradient():
    model = small(semantic_loss_ignore_index=9)
    loss = model(pictures(64, 64), labels=torch.full((2, 64, 64), 9)).loss
    loss.backward()
    assert loss.item() == 0
    assert not any(score.weight.grad.any() for score in model.scores)


def test_it_learns_a_batch_by_heart_from_random_weights():
    """Scores that start at zero keep the gradient from the backbone in the first step alone."""
    torch.manual_seed(0)
    model = FcnForSemanticSegmentation(FcnConfig(backbone="test_resnet", num_labels=2, classifier_dropout_prob=0.0))
    inputs, labels = pictures(64, 64), torch.zeros(2, 64, 64, dtype=torch.long)
    inputs[:, :, :, 24:] += 2
    labels[:, :, 24:] = 1
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    reached = []
    for _ in range(25):
        loss = model(inputs, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        reached.append(any(parameter.grad.any() for parameter in model.backbone.parameters()))
        optimizer.step()
    assert reached == [False] + [True] * 24
    assert loss.item() < 0.15
    logits = functional.interpolate(model(inputs).logits, size=(64, 64), mode="bilinear")
    assert (logits.argmax(dim=1) == labels).float().mean().item() > 0.97


def test_tuples_in_place_of_outputs():
    labels = torch.zeros(2, 64, 64, dtype=torch.long)
    loss, logits = small()(pictures(64, 64), labels=labels, return_dict=False)
    assert (loss.shape, logits.shape) == ((), (2, 3, 8, 8))


# Saving and reloading


@pytest.mark.parametrize(
    ("backbone", "backbone_kwargs"),
    [
        ("test_resnet", {}),
        ("test_efficientnet", {}),
        ("test_convnext", {}),
        ("swin_tiny_patch4_window7_224", SMALL_SWIN),  # it has buffers that are not saved
        ("test_vit", {"dynamic_img_size": True}),
    ],
)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_saved_and_reloaded_it_is_the_same(tmp_path, hub, backbone, backbone_kwargs, memory_format):
    """Also in channels_last, and without asking the Hub for the backbone."""
    model = small(
        backbone, backbone_kwargs=backbone_kwargs, out_indices=(-2, -1), id2label={0: "sky", 1: "sea", 2: "sun"}
    )
    model.to(memory_format=memory_format)
    model.save_pretrained(tmp_path)
    asked = len(hub.requests)
    reloaded, info = AutoModelForSemanticSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert len(hub.requests) == asked
    assert type(reloaded) is FcnForSemanticSegmentation
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert (reloaded.config.id2label[1], reloaded.config.out_indices) == ("sea", [-2, -1])
    reloaded.to(memory_format=memory_format)
    torch.testing.assert_close(reloaded(pictures(64, 64)).logits, model(pictures(64, 64)).logits, atol=0, rtol=0)


def test_what_a_checkpoint_lacks_is_initialised_and_the_rest_stays(tmp_path):
    """A convolution as timm does, a score at zero: not with whatever is in memory."""
    model = small("test_resnet")
    nn.init.ones_(model.scores[0].bias)
    lacking = {"backbone.layer4.0.conv1.weight", "backbone.layer4.0.bn1.running_var", "scores.0.weight"}
    there = {name: value for name, value in model.state_dict().items() if name not in lacking}
    model.save_pretrained(tmp_path, state_dict=dict(there))  # it empties what it is given
    reloaded = FcnForSemanticSegmentation.from_pretrained(tmp_path)
    state = reloaded.state_dict()
    for name, value in there.items():
        torch.testing.assert_close(state[name], value, atol=0, rtol=0)
    assert not state["scores.0.weight"].any()
    assert state["backbone.layer4.0.bn1.running_var"].unique().tolist() == [1.0]
    convolution = state["backbone.layer4.0.conv1.weight"]
    fan_out = convolution[:, 0].numel()
    assert convolution.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)  # He et al. 2015


def test_a_head_of_another_size_starts_anew(tmp_path):
    model = small()
    model.save_pretrained(tmp_path)
    other = AutoModelForSemanticSegmentation.from_pretrained(tmp_path, num_labels=5, ignore_mismatched_sizes=True)
    assert not other(pictures(64, 64)).logits.any()
    torch.testing.assert_close(other.base_model.state_dict(), model.backbone.state_dict(), atol=0, rtol=0)


def test_transformers_pipeline_reads_the_saved_folder(tmp_path, monkeypatch):
    names = ["sky", "sea", "sun"]
    model = small(id2label=dict(enumerate(names)))
    model.save_pretrained(tmp_path)
    processor = SegformerImageProcessor(size={"height": 64, "width": 64}, do_reduce_labels=False)
    processor.save_pretrained(tmp_path)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    # It logs an error, and goes on, for a model that it does not know.
    monkeypatch.setattr("transformers.pipelines.base.logger.error", pytest.fail)
    segment = pipeline("image-segmentation", model=str(tmp_path), subtask="semantic", device="cpu")
    found = {result["label"]: np.array(result["mask"]) for result in segment(picture)}

    logits = model(**processor(picture, return_tensors="pt")).logits
    classes = functional.interpolate(logits, size=(50, 70), mode="bilinear")[0].argmax(dim=0)
    assert set(found) == {names[index] for index in classes.unique()}
    assert len(found) > 1
    for label, mask in found.items():
        assert (mask == (classes.numpy() == names.index(label)) * 255).all()


def test_the_config_alone_builds_a_model(tmp_path):
    FcnConfig(backbone="test_resnet", num_labels=4).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "sft_hf_fcn"
    assert AutoModelForSemanticSegmentation.from_config(AutoConfig.from_pretrained(tmp_path)).config.num_labels == 4


def test_registering_again_changes_nothing():
    fcn.register()
    assert type(AutoConfig.for_model("sft_hf_fcn")) is FcnConfig


# Pretrained backbones


@pytest.mark.parametrize(
    ("architecture", "model_args"),
    [
        ("test_resnet", {}),
        ("test_efficientnet", {}),
        ("test_convnext", {}),  # its names change: stem.0 becomes stem_0
        ("test_vit", {"img_size": 64}),
        ("swin_tiny_patch4_window7_224", SMALL_SWIN),
    ],
)
def test_a_loaded_backbone_has_the_features_of_its_source(tmp_path, architecture, model_args):
    source = save_classifier(tmp_path, architecture, **model_args)
    model = FcnForSemanticSegmentation(FcnConfig(**backbone_settings(str(tmp_path)), num_labels=3)).eval()
    load_pretrained_backbone(model, str(tmp_path))
    with torch.no_grad():
        expected = source.timm_model.forward_intermediates(
            pictures(64, 64), indices=[-3, -2, -1], output_fmt="NCHW", intermediates_only=True
        )
        torch.testing.assert_close(model._features(pictures(64, 64)), expected, atol=0, rtol=0)


@pytest.mark.parametrize("prefix", ["", "timm_model."])
def test_weights_named_as_by_timm_or_as_by_transformers(tmp_path, prefix):
    source = save_classifier(tmp_path, "test_resnet")
    rewrite_weights(tmp_path, prefix=prefix)
    model = small("test_resnet")
    load_pretrained_backbone(model, str(tmp_path))
    torch.testing.assert_close(model.backbone.conv1[0].weight, source.timm_model.conv1[0].weight, atol=0, rtol=0)


def test_pitfall_8_a_float16_checkpoint_is_loaded_as_float32(tmp_path):
    source = save_classifier(tmp_path, "test_resnet", dtype="float16")
    model = small("test_resnet").to(memory_format=torch.channels_last)
    load_pretrained_backbone(model, str(tmp_path))
    weight = model.backbone.layer1[0].conv1.weight
    assert weight.dtype == torch.float32
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(weight, source.timm_model.layer1[0].conv1.weight.float())


def test_a_backbone_of_the_hub(tmp_path, hub, repo_name):
    source = save_classifier(tmp_path / "model", "test_resnet")
    hub.add_user("alice", "alice-token")
    commit = hub.add_repo("model", f"alice/{repo_name}", tmp_path / "model", private=True)
    hub.add_repo("model", f"alice/{repo_name}", {"README.md": "all files are gone"}, private=True)
    options = {"revision": commit, "token": "alice-token", "cache_dir": str(tmp_path / "cache")}
    model = FcnForSemanticSegmentation(FcnConfig(**backbone_settings(f"alice/{repo_name}", **options)))
    load_pretrained_backbone(model, f"alice/{repo_name}", **options)
    torch.testing.assert_close(model.backbone.conv1[0].weight, source.timm_model.conv1[0].weight, atol=0, rtol=0)
    with pytest.raises(ModelError, match="has no config.json, expected config.json and model.safetensors of a timm"):
        backbone_settings(f"alice/{repo_name}", **options | {"revision": "main"})
    with pytest.raises(HubError, match="The backbone alice/.*: no such model on the Hub"):
        backbone_settings(f"alice/{repo_name}", cache_dir=str(tmp_path / "other"))


def test_the_statistics_of_pixels_are_those_of_the_weights(tmp_path):
    """Before weights are loaded timm's for the architecture, after it the checkpoint's, also when saved and reloaded."""
    save_classifier(tmp_path / "timm", "test_resnet")
    model = small("test_resnet")
    assert backbone_data_config(model.config) == {
        "input_size": [3, 160, 160],
        "interpolation": "bilinear",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "crop_pct": 0.95,
        "crop_mode": "center",
    }
    load_pretrained_backbone(model, str(tmp_path / "timm"))
    model.save_pretrained(tmp_path / "fcn")
    for config in (model.config, AutoConfig.from_pretrained(tmp_path / "fcn")):
        assert backbone_data_config(config) == {**STATISTICS, "crop_pct": 0.875, "crop_mode": "center"}


# Errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "resnet19"}, "backbone is 'resnet19', expected an architecture of timm, such as resnet"),
        ({"backbone": "timm/resnet18"}, "backbone is 'timm/resnet18', expected an architecture"),
        ({"backbone_kwargs": {"pretrained": True}}, "backbone_kwargs hold pretrained, which the model sets itself"),
        ({"backbone_kwargs": {"depth": 3}}, r"test_resnet with out_indices \[-3, -2, -1\].*cannot be built: .*'depth'"),
        (
            {"out_indices": (2, 3, 5)},
            r"\[2, 3, 5\], expected rising indices of the 5 levels of test_resnet, whose strides are \[2, 4, 8, 16, 32\]",
        ),
        ({"out_indices": (3, 2)}, r"\[3, 2\], expected rising indices"),
        ({"out_indices": (3, -2)}, r"\[3, -2\], expected rising indices"),  # the same level twice
        ({"out_indices": ()}, r"\[\], expected rising indices"),
        ({"backbone": "test_vit", "out_indices": (7,)}, "cannot be built: feature index 7 is out of range"),
    ],
)
def test_a_backbone_that_cannot_be_built(options, message):
    with pytest.raises(ModelError, match=message):
        FcnForSemanticSegmentation(FcnConfig(**{"backbone": "test_resnet"} | options))


def test_a_backbone_of_a_fixed_size_says_what_to_set():
    with pytest.raises(ModelError, match="vit_tiny_patch16_224 does not take pictures of 64 x 48 pixels.*img_size"):
        small("vit_tiny_patch16_224")(pictures(64, 48))


def test_without_timm_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModelError, match="builtin:fcn needs timm for its backbone: pip install timm"):
        FcnForSemanticSegmentation(FcnConfig())


def test_weights_of_another_architecture_are_refused(tmp_path):
    save_classifier(tmp_path, "test_efficientnet")
    with pytest.raises(
        ModelError, match="are of the architecture test_efficientnet, the model's backbone is test_resnet"
    ):
        load_pretrained_backbone(small("test_resnet"), str(tmp_path))


def test_weights_of_an_architecture_built_differently_are_refused(tmp_path):
    save_classifier(tmp_path, "test_resnet", act_layer="gelu")
    assert backbone_settings(str(tmp_path))["backbone_kwargs"] == {"act_layer": "gelu"}
    with pytest.raises(
        ModelError, match=r"built with \{'act_layer': 'gelu'\}, which backbone_kwargs of the config, \{\}"
    ):
        load_pretrained_backbone(small("test_resnet"), str(tmp_path))


@pytest.mark.parametrize(
    ("architecture", "lacking", "listed"),
    [
        ("test_resnet", "layer4.0.bn1.running_mean", "layer4.0.bn1.running_mean"),
        ("test_efficientnet", "bn1.running_mean", "bn1.running_mean"),
        ("test_convnext", "stem.0.bias", "stem_0.bias"),
    ],
)
def test_missing_weights_are_listed_and_nothing_is_loaded(tmp_path, architecture, lacking, listed):
    """timm itself says so in a log alone for some architectures, and leaves them random."""
    save_classifier(tmp_path, architecture)
    rewrite_weights(tmp_path, without=lacking)
    model = small(architecture)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ModelError, match=rf"lacks 1 of the \d+ weights of the backbone {architecture}: {listed}\.$"):
        load_pretrained_backbone(model, str(tmp_path))
    torch.testing.assert_close(model.state_dict(), before, atol=0, rtol=0)


def test_no_weights_at_all_are_not_replaced_by_a_download(tmp_path, hub):
    save_classifier(tmp_path, "test_resnet")
    save_file({}, tmp_path / WEIGHTS_FILE)
    asked = len(hub.requests)
    with pytest.raises(ModelError, match="do not fit the backbone test_resnet"):
        load_pretrained_backbone(small("test_resnet"), str(tmp_path))
    assert len(hub.requests) == asked


def test_weights_of_another_shape_are_refused(tmp_path):
    save_classifier(tmp_path, "test_resnet")
    rewrite_weights(tmp_path, **{"layer1.0.conv1.weight": torch.zeros(5, 5, 1, 1)})
    with pytest.raises(ModelError, match=r"do not fit the backbone test_resnet(?s:.*)layer1.0.conv1.weight"):
        load_pretrained_backbone(small("test_resnet"), str(tmp_path))


def test_weights_that_cannot_be_read(tmp_path):
    save_classifier(tmp_path, "test_resnet")
    (tmp_path / WEIGHTS_FILE).write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ModelError, match="has a model.safetensors that cannot be read: "):
        load_pretrained_backbone(small("test_resnet"), str(tmp_path))


def test_a_folder_of_another_kind_is_refused(tmp_path):
    small().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="is no timm model: its config.json names no architecture.*'sft_hf_fcn'"):
        backbone_settings(str(tmp_path))
    (tmp_path / WEIGHTS_FILE).rename(tmp_path / "other.safetensors")
    (tmp_path / "config.json").write_text('{"architecture": "test_efficientnet"}')
    with pytest.raises(ModelError, match="has no model.safetensors, expected config.json and model.safetensors"):
        load_pretrained_backbone(small(), str(tmp_path))


def test_a_name_that_is_neither_a_folder_nor_a_repository():
    with pytest.raises(ModelError, match="The backbone ./no/such/folder: no such folder, and no name of the Hub"):
        backbone_settings("./no/such/folder")
