"""Models by name: loaded is what was asked for, in float32, with the head the data need; the rest is an error."""

import json
import logging

import pytest
import tiny
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    CLIPConfig,
    CLIPForImageClassification,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    set_seed,
)

from sft_hf.arguments import ModelArguments
from sft_hf.data.labels import Labels
from sft_hf.errors import ArgumentError, HubError, ModelError
from sft_hf.pretrained import (
    _resolve_hub_model,
    base_modules,
    freeze_base_model,
    license_of,
    load_config,
    load_image_processor,
    load_model,
    load_tokenizer,
    resolve_model,
)

ALICE, BOB, NOBODY = "alice-token", "bob-token", "no-such-token"
LABELS = Labels(names=("animals", "kitchen", "weather"), problem_type="single_label_classification")


@pytest.fixture(autouse=True)
def _users(hub, monkeypatch, caplog) -> None:
    hub.add_user("alice", ALICE)
    hub.add_user("bob", BOB)
    monkeypatch.setattr("sft_hf.hub.time.sleep", lambda seconds: None)
    monkeypatch.setattr(logging.getLogger("sft_hf"), "propagate", True)
    caplog.set_level(logging.INFO, logger="sft_hf")


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> str:
    return str(tiny.save_bert(tmp_path_factory.mktemp("bert")))


@pytest.fixture
def repo_id(repo_name) -> str:
    return f"alice/{repo_name}"


def load(name: str, **flags):
    """Tokenizer and model, as a task loads them; returns the model."""
    model_args = ModelArguments(model_name_or_path=name, **flags)
    load_tokenizer(model_args)
    return load_model(AutoModelForSequenceClassification, load_config(model_args, LABELS), model_args)


def config_of(name: str, *overrides: str):
    return load_config(ModelArguments(model_name_or_path=name, config_overrides=list(overrides)), LABELS)


# Names


def test_a_folder_is_a_model(bert):
    source = resolve_model(ModelArguments(model_name_or_path=bert))
    assert (source.path, source.hub_id, source.revision) == (bert, None, None)


def test_a_model_of_the_hub_with_the_commit_it_came_from(hub, repo_id):
    old = hub.add_repo("model", repo_id, tiny.bert())
    new = hub.add_repo("model", repo_id, {**tiny.bert(), "README.md": "a second revision"})
    for revision, sha in ((None, new), ("main", new), (old, old)):
        source = resolve_model(ModelArguments(model_name_or_path=repo_id, model_revision=revision))
        assert (source.path, source.hub_id, source.revision) == (repo_id, repo_id, sha)


def test_builtin_names():
    lstm = resolve_model(ModelArguments(model_name_or_path="builtin:lstm"))
    assert (lstm.architecture, lstm.hub_id) == ("lstm", None)
    minilm = resolve_model(ModelArguments(model_name_or_path="builtin:minilm"))
    assert (minilm.architecture, minilm.hub_id) == (None, "sentence-transformers/all-MiniLM-L6-v2")


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        (None, ArgumentError, "No model: give --model_name_or_path ORG/NAME"),
        ("builtin:bert", ModelError, "no such builtin model; there are builtin:minilm, builtin:lstm"),
        ("./runs/a", ModelError, "--model_name_or_path ./runs/a: no such folder"),
        ("a/b/c", ModelError, "--model_name_or_path a/b/c: no such folder, and no name of the Hub"),
    ],
)
def test_a_name_that_can_be_nothing(name, error, message):
    with pytest.raises(error, match=message):
        resolve_model(ModelArguments(model_name_or_path=name))


@pytest.mark.parametrize(
    ("token", "repo", "message"),
    [
        (None, {}, "no such model on the Hub, no such folder here, or it is private"),
        (BOB, {"private": True}, "or it is private and the token .* has no right to it"),
        (NOBODY, {"private": False}, "the Hub refuses the token"),
        (None, {"gated": True}, "this model is gated. Ask for access on the page of"),
        (BOB, {"gated": True}, "this model is gated. Ask for access on the page of"),
    ],
)
def test_what_may_not_be_read_says_why(hub, repo_id, token, repo, message):
    if repo:
        hub.add_repo("model", repo_id, tiny.bert(), **repo)
    with pytest.raises(HubError, match=f"^--model_name_or_path {repo_id}: .*{message}"):
        load(repo_id, token=token)


@pytest.mark.parametrize("repo", [{"private": True}, {"gated": True}])
def test_the_owner_reads_private_and_gated_models(hub, repo_id, repo):
    hub.add_repo("model", repo_id, tiny.bert(), **repo)
    assert load(repo_id, token=ALICE).config.num_labels == 3


def test_a_revision_and_a_tokenizer_that_are_not_there(hub, repo_id):
    hub.add_repo("model", repo_id, tiny.bert())
    with pytest.raises(HubError, match=f"--model_name_or_path {repo_id}: there is no such revision"):
        load(repo_id, model_revision="v9")
    with pytest.raises(HubError, match=f"--tokenizer_name {repo_id}-no: no such model on the Hub"):
        load(repo_id, tokenizer_name=f"{repo_id}-no")


def test_the_tokenizer_of_another_model(hub, repo_id, tmp_path):
    """--model_revision is the model's: the tokenizer's repository has no such commit."""
    sha = hub.add_repo("model", repo_id, tiny.bert())
    hub.add_repo("model", f"{repo_id}-gpt", tiny.save_decoder(tmp_path))
    model_args = ModelArguments(model_name_or_path=repo_id, model_revision=sha, tokenizer_name=f"{repo_id}-gpt")
    assert load_tokenizer(model_args).eos_token == "<|endoftext|>"


@pytest.mark.parametrize("failure", [{"status": 503}, {"cut": True}])
@pytest.mark.parametrize("path", ["/api/models/", r"/resolve/.*safetensors"])
def test_one_failure_of_the_hub_is_survived(hub, repo_id, path, failure):
    hub.add_repo("model", repo_id, tiny.bert())
    hub.fail("GET", path, **failure)
    assert load(repo_id).config.num_labels == 3


def test_a_hub_that_stays_down_is_an_error_of_the_hub(hub, repo_id):
    hub.add_repo("model", repo_id, tiny.bert())
    hub.fail("GET", r"/resolve/.*safetensors", status=503, times=100)
    with pytest.raises(HubError, match=f"--model_name_or_path {repo_id}: the Hub could not be asked .*503"):
        load(repo_id)


def test_offline_the_newest_commit_of_the_cache_is_loaded(hub, repo_id, tmp_path, monkeypatch):
    """Downloads are by commit, so the cache does not know which one main was."""
    cache = {"cache_dir": str(tmp_path)}
    old = hub.add_repo("model", repo_id, tiny.bert(num_labels=2))
    load(repo_id, model_revision=old, **cache)
    new = hub.add_repo("model", repo_id, tiny.bert(num_labels=3))
    weight = load(repo_id, **cache).classifier.weight
    _resolve_hub_model.cache_clear()  # a new process
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert resolve_model(ModelArguments(model_name_or_path=repo_id, **cache)).revision == new
    torch.testing.assert_close(load(repo_id, **cache).classifier.weight, weight)
    assert resolve_model(ModelArguments(model_name_or_path=repo_id, model_revision=old, **cache)).revision == old
    with pytest.raises(HubError, match="a/never-seen: HF_HUB_OFFLINE is set and this model is not in the cache"):
        load("a/never-seen", **cache)
    with pytest.raises(HubError, match=f"{repo_id}: HF_HUB_OFFLINE is set and this model is not in the cache"):
        load(repo_id, model_revision="v2", **cache)


# Weights


def dtypes(model) -> set[torch.dtype]:
    return {parameter.dtype for parameter in model.parameters()}


@pytest.mark.parametrize("from_scratch", [False, True])
def test_pitfall_8_a_checkpoint_in_float16_is_trained_in_float32(tmp_path, from_scratch):
    folder = str(tiny.save_bert(tmp_path, dtype="float16"))
    assert dtypes(load(folder, from_scratch=from_scratch)) == {torch.float32}
    assert dtypes(load(folder, from_scratch=from_scratch, dtype="auto")) == {torch.float16}
    assert dtypes(load(folder, from_scratch=from_scratch, dtype="bfloat16")) == {torch.bfloat16}


def test_a_head_of_another_size_starts_random_and_is_named(tmp_path, caplog):
    folder = str(tiny.save_bert(tmp_path, num_labels=5))
    model = load(folder)
    assert model.classifier.weight.shape == (3, 32)
    assert f"new weights, not in {folder}: classifier.bias, classifier.weight" in caplog.text
    assert [record.levelname for record in caplog.records if record.name == "sft_hf.pretrained"] == ["INFO"]


def test_a_head_of_the_same_size_is_kept_and_another_order_of_its_classes_is_a_warning(tmp_path, caplog):
    other = {0: "weather", 1: "animals", 2: "kitchen"}
    folder = str(tiny.save_bert(tmp_path, num_labels=3, id2label=other))
    saved = AutoModelForSequenceClassification.from_pretrained(folder).classifier.weight
    model = load(folder)
    torch.testing.assert_close(model.classifier.weight, saved)
    assert model.config.id2label == {0: "animals", 1: "kitchen", 2: "weather"}
    assert "its head starts in the wrong order" in caplog.text


def test_only_a_head_may_have_another_shape(bert):
    """Pretrained position embeddings would start random, and the run would look like fine-tuning."""
    with pytest.raises(ModelError, match=r"position_embeddings.weight: \(64, 32\) there, \(128, 32\) here"):
        load(bert, config_overrides=["max_position_embeddings=128"])
    load(bert, config_overrides=["max_position_embeddings=128"], from_scratch=True)


def test_new_weights_in_the_base_model_are_a_warning(bert, caplog):
    load(bert, config_overrides=["num_hidden_layers=3"])
    warning = next(record for record in caplog.records if record.levelname == "WARNING")
    assert "bert.encoder.layer.2" in warning.getMessage()


def test_weights_of_another_architecture_are_an_error(tmp_path):
    """Every weight would start random, and the run would look like fine-tuning."""
    tiny.save_bert(tmp_path)
    config = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "vocab_size": 96}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="weights of GPT2ForSequenceClassification are not in the checkpoint"):
        load(str(tmp_path))
    assert load(str(tmp_path), from_scratch=True).config.num_labels == 3


def test_from_scratch_has_the_architecture_and_not_the_weights(bert, caplog):
    pretrained, scratch = load(bert), load(bert, from_scratch=True)
    assert scratch.state_dict().keys() == pretrained.state_dict().keys()
    name = "bert.encoder.layer.0.output.dense.weight"
    assert not torch.equal(scratch.state_dict()[name], pretrained.state_dict()[name])
    assert "starts from random weights" in caplog.text


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"config.json": b"{"}, "is not a valid JSON file"),
        ({"config.json": b'{"model_type": "brt"}'}, "does not recognize this architecture"),
        ({"config.json": b'{"model_type": "vit"}'}, "Unrecognized configuration class .*ViTConfig"),
        ({"model.safetensors": b"cut off"}, "cannot be loaded"),
        ({"model.safetensors": None}, "does not appear to have a file named|no file named"),
    ],
)
def test_a_folder_that_cannot_be_loaded_says_why(tmp_path, files, message):
    tiny.save_bert(tmp_path)
    for name, content in files.items():
        (tmp_path / name).unlink() if content is None else (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=rf"--model_name_or_path {tmp_path} [\s\S]*({message})"):
        load(str(tmp_path))


@pytest.mark.parametrize(("kind", "trained"), [("bert", {"classifier"}), ("decoder", {"score"})])
def test_a_frozen_base_model_leaves_the_head(tmp_path, kind, trained, caplog):
    save = {"bert": tiny.save_bert, "decoder": tiny.save_decoder}[kind]
    model = load(str(save(tmp_path)))
    freeze_base_model(model)
    named = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert named == trained
    assert "the base model is frozen" in caplog.text


def test_a_frozen_clip_leaves_the_head():
    """By its name its base would be `clip`, which the classifier does not have."""
    vision = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    model = CLIPForImageClassification(CLIPConfig(vision_config=vision))
    freeze_base_model(model)
    named = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert named == {"classifier"}
    assert base_modules(model) == [model.vision_model]


def test_a_model_that_is_all_base_cannot_be_frozen(bert):
    with pytest.raises(ModelError, match="--freeze_base_model: BertModel names no base model"):
        freeze_base_model(load(bert).base_model)


# Models of timm


def load_timm(name: str, labels: Labels = LABELS, **flags):
    model_args = ModelArguments(model_name_or_path=name, **flags)
    return load_model(AutoModelForImageClassification, load_config(model_args, labels), model_args)


@pytest.mark.parametrize("name", ["test_resnet", "timm/test_resnet", "timm/test_resnet.r160_in1k"])
def test_an_architecture_by_its_name(hub, name, caplog):
    """Nothing is asked of the Hub, and nothing is pretrained."""
    before = len(hub.requests)
    model_args = ModelArguments(model_name_or_path=name, from_scratch=True)
    source = resolve_model(model_args)
    assert (source.timm_architecture, source.hub_id, source.is_random) == ("test_resnet", None, True)
    assert load_timm(name, from_scratch=True).config.architecture == "test_resnet"
    settings = load_image_processor(model_args).data_config
    assert (settings["input_size"], settings["interpolation"], settings["mean"]) == (
        (3, 160, 160),
        "bilinear",
        (0.5,) * 3,
    )
    assert f"{name} starts from random weights" in caplog.text
    assert len(hub.requests) == before


def test_a_bare_architecture_is_not_pretrained(hub, repo_id):
    with pytest.raises(
        ModelError, match=r"resnet18 is an architecture of timm.*timm/resnet18\.TAG; with --from_scratch"
    ):
        load_timm("resnet18")
    with pytest.raises(HubError, match="timm/resnet18: no such model on the Hub"):
        load_timm("timm/resnet18")
    with pytest.raises(HubError, match="alice/resnet18: no such model on the Hub"):  # somebody's own
        load_timm("alice/resnet18", from_scratch=True)


def test_random_weights_are_drawn_as_timm_draws_them():
    """transformers draws all with a standard deviation of 0.02; a ResNet's are He's, and its blocks begin as the identity."""
    set_seed(1)
    model = load_timm("test_resnet", from_scratch=True)
    weights = model.state_dict()
    assert weights["timm_model.layer1.0.bn2.weight"].abs().max() == 0
    convolution = weights["timm_model.layer4.0.conv2.weight"]
    fan_out = convolution.shape[0] * 9
    assert float(convolution.std()) == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
    set_seed(1)
    again = load_timm("test_resnet", from_scratch=True).state_dict()
    assert all(torch.equal(again[name], value) for name, value in weights.items())


@pytest.mark.parametrize("from_scratch", [False, True])
def test_batch_norm_averages_over_batches(tmp_path, from_scratch, caplog):
    """transformers gives MobileNetV2 a momentum of 0.997, by which torch forgets all batches but the last."""
    sizes = {"depth_multiplier": 0.25, "image_size": 32, "num_labels": 2}
    MobileNetV2ForImageClassification(MobileNetV2Config(**sizes)).save_pretrained(tmp_path)
    arguments = ModelArguments(model_name_or_path=str(tmp_path), from_scratch=from_scratch)
    model = load_model(AutoModelForImageClassification, load_config(arguments, LABELS), arguments)
    layers = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert {layer.momentum for layer in layers} == {0.1}
    assert f"BatchNorm: {len(layers)} layers of MobileNetV2ForImageClassification" in caplog.text
    layer = layers[0].train()
    before = layer.running_mean.clone()
    layer(torch.full((2, layer.num_features, 4, 4), 10.0))
    assert torch.allclose(layer.running_mean, 0.9 * before + 1.0)


@pytest.mark.parametrize("from_scratch", [False, True])
def test_pitfall_11_a_timm_model_has_the_labels_of_the_data(tmp_path, from_scratch, caplog):
    """Also reloaded, and where the checkpoint has as many others; what timm saved names the number of classes twice."""
    folder = str(tiny.save_timm(tmp_path / "timm"))
    model = load_timm(folder, from_scratch=from_scratch)
    assert model.timm_model.get_classifier().weight.shape == (3, 96)
    if not from_scratch:
        assert f"new weights, not in {folder}: timm_model.fc.bias, timm_model.fc.weight" in caplog.text
        assert [record.levelname for record in caplog.records if record.name == "sft_hf.pretrained"] == ["INFO"]
    five = Labels(names=("v", "w", "x", "y", "z"), problem_type="multi_label_classification")
    for labels, trained in ((LABELS, model), (five, load_timm(folder, five, from_scratch=from_scratch))):
        trained.save_pretrained(tmp_path / "saved")
        reloaded = AutoModelForImageClassification.from_pretrained(tmp_path / "saved")
        assert reloaded.config.id2label == dict(enumerate(labels.names))
        assert (reloaded.config.num_labels, reloaded.config.problem_type) == (len(labels.names), labels.problem_type)
        assert reloaded.timm_model.num_classes == len(labels.names)
        for name, value in trained.state_dict().items():
            assert torch.equal(reloaded.state_dict()[name], value), name


def test_a_timm_checkpoint_is_loaded_but_for_its_head(tmp_path):
    folder = tiny.save_timm(tmp_path)
    there = load_file(folder / "model.safetensors")
    here = load_timm(str(folder)).timm_model.state_dict()
    assert [name for name, value in there.items() if not torch.equal(here[name], value)] == ["fc.bias", "fc.weight"]


def test_positions_of_a_timm_model_are_not_lost(tmp_path):
    model_args = ModelArguments(model_name_or_path=str(tiny.save_timm(tmp_path, "test_vit")))
    config = load_config(model_args, LABELS)
    config.model_args |= {"img_size": [32, 32]}
    with pytest.raises(
        ModelError, match=r"1 of its weights .* timm_model.pos_embed: \(1, 101, 64\) there, \(1, 5, 64\) here"
    ):
        load_model(AutoModelForImageClassification, config, model_args)


@pytest.mark.parametrize(
    ("architecture", "trained"),
    [
        ("test_resnet", {"fc"}),
        ("test_vit", {"head"}),  # whose class token and positions are no modules
        ("test_convnext", {"head"}),
        ("deit_tiny_distilled_patch16_224", {"head", "head_dist"}),
    ],
)
def test_a_frozen_timm_model_leaves_the_head(architecture, trained):
    """Its base_model, by transformers, is all of it, the classifier too."""
    model = load_timm(architecture, from_scratch=True)
    freeze_base_model(model)
    named = {name.split(".")[1] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert named == trained
    inside = {name.split(".")[0] for part in base_modules(model) for name, _ in part.named_parameters()}
    assert inside, "the trainer switches these to evaluation"
    heads = [getattr(model.timm_model, name) for name in trained]
    assert not any(part is head for part in base_modules(model) for head in heads)


def test_an_image_processor_that_is_not_there(bert):
    with pytest.raises(ModelError, match=f"--model_name_or_path {bert} cannot be loaded"):
        load_image_processor(ModelArguments(model_name_or_path=bert))


# Configuration


def test_the_labels_of_the_data_stand_in_the_configuration(bert):
    """Pitfall 3: without problem_type a head infers the loss from the labels' dtype."""
    config = config_of(bert)
    assert config.id2label == {0: "animals", 1: "kitchen", 2: "weather"}
    assert config.label2id == {"animals": 0, "kitchen": 1, "weather": 2}
    assert (config.num_labels, config.problem_type) == (3, "single_label_classification")


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("hidden_dropout_prob=0.3", 0.3),
        ("hidden_dropout_prob=1e-5", 1e-5),  # YAML reads it as a string (pitfall 9)
        ("hidden_dropout_prob=1", 1.0),
        ("num_hidden_layers=1", 1),
        ("use_cache=false", False),
        ("hidden_act=relu", "relu"),
        ("classifier_dropout=0.1", 0.1),  # None so far
    ],
)
def test_overrides_get_the_type_of_what_they_override(bert, override, value):
    found = getattr(config_of(bert, override), override.split("=")[0])
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("hidden_size", "expected key=value"),
        ("hidden_droput=0.1", "BertConfig has no 'hidden_droput'. Did you mean hidden_dropout_prob?"),
        ("hidden_dropout_prob=much", r"hidden_dropout_prob is a number \(0.0\), not 'much'"),
        ("hidden_size=32.5", r"hidden_size is a int \(32\), not '32.5'"),
        ("use_cache=1", r"use_cache is a bool \(True\), not '1'"),
        ("problem_type=regression", "the data decide that; see --problem_type"),
        ("image_size=64", "give --image_size, which tells the image processor too"),
    ],
)
def test_an_override_that_cannot_be_meant(bert, override, message):
    with pytest.raises(ArgumentError, match=f"--config_overrides {override}: {message}"):
        config_of(bert, override)


# Code of the repository


@pytest.mark.parametrize("model_type", ["mybert", "bert"])
def test_code_of_a_repository_does_not_run_without_permission(hub, repo_id, tmp_path, model_type):
    marker = tmp_path / "marker"
    code = f"""
open({str(marker)!r}, "w").close()
from transformers import BertConfig
class MyConfig(BertConfig):
    model_type = {model_type!r}
"""
    config = json.loads(tiny.bert()["config.json"])
    config |= {"model_type": model_type, "auto_map": {"AutoConfig": "code.MyConfig"}}
    files = {**tiny.bert(), "config.json": json.dumps(config), "code.py": code}
    hub.add_repo("model", repo_id, files)
    if model_type == "bert":  # transformers has a class of its own, which is taken
        load(repo_id)
    else:
        with pytest.raises(ModelError, match="comes with code of its own, .* unless --trust_remote_code says so"):
            load(repo_id)
    assert not marker.exists()
    load_config(ModelArguments(model_name_or_path=repo_id, trust_remote_code=True), LABELS)
    assert marker.exists()


# Licence


def license_of_model(model_args):
    return license_of(resolve_model(model_args), model_args)


@pytest.mark.parametrize(
    ("card", "license_name"),
    [
        ("---\nlicense: mit\n---\n# A model", "mit"),
        ("# A model without metadata", None),
        ("---\nlicense: [mit\n---\n", None),
        ("---\n- license: mit\n---\n", None),
        ("---\nlicense: mit\nmodel-index: 3\n---\n", "mit"),
        (None, None),
    ],
)
def test_the_licence_is_the_card_s_and_a_broken_card_costs_nothing(hub, repo_id, tmp_path, card, license_name):
    """It is read after training: whatever stands in somebody's card must not lose the run."""
    hub.add_repo("model", repo_id, {**tiny.bert(), **({"README.md": card} if card else {})})
    assert license_of_model(ModelArguments(model_name_or_path=repo_id)) == license_name
    if card:
        (tmp_path / "README.md").write_text(card)
    assert license_of_model(ModelArguments(model_name_or_path=str(tmp_path))) == license_name


def test_the_licence_is_that_of_the_commit_which_is_trained(hub, repo_id, tmp_path):
    old = hub.add_repo("model", repo_id, {**tiny.bert(), "README.md": "---\nlicense: mit\n---\n"})
    hub.add_repo("model", repo_id, {**tiny.bert(), "README.md": "---\nlicense: other\n---\n"})
    model_args = ModelArguments(model_name_or_path=repo_id, model_revision=old, cache_dir=str(tmp_path))
    assert license_of_model(model_args) == "mit"
    assert list(tmp_path.rglob("README.md"))


def test_a_licence_that_cannot_be_had_costs_nothing(hub, repo_id):
    hub.add_repo("model", repo_id, tiny.bert())
    model_args = ModelArguments(model_name_or_path=repo_id)
    resolve_model(model_args)
    hub.fail("HEAD", "README.md", status=503, times=100)
    assert license_of_model(model_args) is None
