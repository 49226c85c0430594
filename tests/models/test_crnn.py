"""The recurrent recogniser: padding changes nothing, a batch is learned by heart, the pipeline reads what was saved."""

import json
import math

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForCTC,
    AutoProcessor,
    pipeline,
)
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from sft_hf.ctc_decoding import GreedyDecoder
from sft_hf.data.vocabulary import build_tokenizer
from sft_hf.models import crnn
from sft_hf.models.crnn import (
    CrnnConfig,
    CrnnForAudioClassification,
    CrnnForCTC,
    CrnnModel,
    build_feature_extractor,
    build_processor,
    log_mel,
    spec_augment,
)

TEXTS = ["ABBA", "CAB", "B"]
LENGTHS = [8_000, 6_100, 2_345]  # samples: 50, 39 and 15 hops


@pytest.fixture(autouse=True)
def _one_thread():
    """Threads cost more than they give on models this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(TEXTS)


@pytest.fixture(scope="module")
def waveforms():
    """Each letter a chord of its own, in a little noise; numpy arrays as they are read from a file."""
    return [speak(text, length, seed) for seed, (text, length) in enumerate(zip(TEXTS, LENGTHS, strict=True))]


def speak(text, length, seed=0):
    times = torch.arange(length) / 16_000
    parts = [torch.sin(2 * math.pi * 400 * (1 + ord(letter) - ord("A")) * times) for letter in text]
    wave = torch.cat([part.chunk(len(text))[index] for index, part in enumerate(parts)])[:length]
    noise = torch.randn(length, generator=torch.Generator().manual_seed(seed))
    return (0.1 * functional.pad(wave, (0, length - len(wave))) + 0.01 * noise).numpy()


@pytest.fixture(scope="module")
def inputs(tokenizer, waveforms):
    return dict(build_processor(tokenizer)(waveforms, sampling_rate=16_000, padding=True, return_tensors="pt"))


@pytest.fixture(scope="module")
def labels(tokenizer):
    ids = [torch.tensor(tokenizer(text)["input_ids"]) for text in TEXTS]
    return torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=-100)


def small(seed=0, **options):
    """Return a model in evaluation mode whose logits differ visibly from frame to frame."""
    torch.manual_seed(seed)
    sizes = {"vocab_size": 6, "conv_channels": 4, "conv_stride": (2, 1), "hidden_size": 10}
    model = CrnnForCTC(CrnnConfig(**(sizes | options))).eval()
    torch.nn.init.normal_(model.lm_head.weight)
    return model


def classifier(**options):
    sizes = {"num_labels": 3, "conv_channels": 4, "hidden_size": 10}
    torch.manual_seed(0)
    model = CrnnForAudioClassification(CrnnConfig(**(sizes | options))).eval()
    torch.nn.init.normal_(model.classifier.weight)
    return model


def padded(inputs, samples):
    """Return the same batch with more padding."""
    return {name: functional.pad(value, (0, samples - value.shape[1])) for name, value in inputs.items()}


# Padding and frames


def test_padding_changes_nothing(inputs, waveforms):
    """Alone, in a batch, and in a batch with four times the padding."""
    model = small()
    together, further = model(**inputs).logits, model(**padded(inputs, 32_000)).logits
    frames = model._get_feat_extract_output_lengths(torch.tensor(LENGTHS)).tolist()
    for row, (waveform, length) in enumerate(zip(waveforms, frames, strict=True)):
        alone = model(torch.tensor(waveform)[None]).logits[0]
        assert len(alone) == length
        torch.testing.assert_close(together[row, :length], alone, atol=1e-4, rtol=0)
        torch.testing.assert_close(further[row, :length], alone, atol=1e-4, rtol=0)


def test_what_stands_in_the_padding_changes_nothing(inputs):
    model, noise = small(), torch.randn(inputs["input_values"].shape)
    other = inputs["input_values"].where(inputs["attention_mask"] == 1, noise)
    torch.testing.assert_close(model(other, inputs["attention_mask"]).logits, model(**inputs).logits)


def test_frames_of_the_padding_are_blank(inputs):
    """transformers' pipeline decodes them too."""
    model = small(pad_token_id=3)
    logits = model(**inputs).logits
    frames = model._get_feat_extract_output_lengths(torch.tensor(LENGTHS)).tolist()
    assert (frames[0], logits.shape[1]) == (frames[0], frames[0])
    for row, length in enumerate(frames):
        assert (logits[row, length:].argmax(dim=-1) == 3).all()
    assert (logits[0].argmax(dim=-1) != 3).any()


def test_padding_on_the_left_is_refused(inputs):
    flipped = {name: value.flip(1) for name, value in inputs.items()}
    with pytest.raises(ValueError, match="padding_side"):
        small()(**flipped)


@pytest.mark.parametrize("conv_stride", [(2, 2), (2, 1), (2, 2, 1), (1,), (3, 2)], ids=str)
def test_frames_are_the_samples_over_the_ratio_rounded_up(conv_stride):
    """Whatever the rounding in between."""
    model = small(conv_stride=conv_stride, hidden_size=2)
    ratio = 160 * math.prod(conv_stride)
    assert model.config.inputs_to_logits_ratio == ratio
    samples = [0, 1, 160, 161, ratio, ratio + 1, 3 * ratio, 3 * ratio + 161, 16_000]
    expected = [max(1, math.ceil(size / ratio)) for size in samples]
    assert model._get_feat_extract_output_lengths(torch.tensor(samples)).tolist() == expected
    assert [int(model._get_feat_extract_output_lengths(size)) for size in samples] == expected
    assert [model(torch.randn(1, size)).logits.shape[1] for size in samples] == expected


# Features


def normalised(features):
    return (features - features.mean(dim=0)) / (features.var(dim=0, correction=0) + 1e-5).sqrt()


def test_features_are_those_of_transformers_spectrogram(waveforms):
    """The same filters over the same windows by another implementation, one waveform at a time."""
    filters = mel_filter_bank(201, 80, 0.0, 8000.0, 16_000, norm="slaney", mel_scale="slaney")
    window = window_function(400, "hann")
    for waveform in waveforms:
        reference = spectrogram(
            waveform, window, frame_length=400, hop_length=160, power=2.0, pad_mode="constant", mel_filters=filters,
            log_mel="log10",
        )  # fmt: skip
        features, num_frames = log_mel(torch.tensor(waveform)[None], torch.tensor([len(waveform)]), CrnnConfig())
        assert features.shape == (1, num_frames.item(), 80)
        expected = normalised(torch.tensor(reference.T[: num_frames.item()], dtype=torch.float32))
        torch.testing.assert_close(features[0], expected, atol=2e-3, rtol=0)


def test_features_have_zero_mean_and_unit_variance_over_an_utterances_own_frames(inputs):
    features, num_frames = log_mel(inputs["input_values"], torch.tensor(LENGTHS), CrnnConfig())
    assert num_frames.tolist() == [50, 39, 15]
    for row, length in enumerate(num_frames):
        own = features[row, :length]
        torch.testing.assert_close(own.mean(dim=0), torch.zeros(80), atol=1e-5, rtol=0)
        torch.testing.assert_close(own.var(dim=0, correction=0), torch.ones(80), atol=1e-2, rtol=0)
        assert not features[row, length:].any()


def test_a_tone_is_in_the_band_of_its_frequency():
    """A kilohertz that starts half way: on Slaney's scale, 15 mels of the 45.2 up to 8 kHz, in 81 steps."""
    tone = torch.sin(2 * math.pi * 1000 * torch.arange(16_000) / 16_000)
    tone[:8000] = 1e-4 * torch.randn(8000)
    features, _ = log_mel(tone[None], torch.tensor([16_000]), CrnnConfig())
    assert round(15 / (15 + math.log(8) / math.log(6.4) * 27) * 81) - 1 == 26
    power = torch.stft(tone[8000:], 400, 160, window=torch.hann_window(400), return_complex=True).abs()[:, 10].square()
    assert (crnn._mel_filters(400, 80, 16_000, torch.device("cpu")) @ power).argmax().item() == 26
    assert (features[0, 60:90] > 0.9).all(dim=0)[26]


@pytest.mark.parametrize("gain", [0.01, 10.0])
def test_loudness_changes_nothing(inputs, gain):
    """Nor does it where a clip has digital silence in it, which is as quiet as 80 dB below its loudest band."""
    waveforms, lengths = inputs["input_values"].clone(), torch.tensor(LENGTHS)
    waveforms[0, 4000:] = 0
    features, louder = (log_mel(waveforms * factor, lengths, CrnnConfig())[0] for factor in (1.0, gain))
    torch.testing.assert_close(louder, features, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    "waveform", [torch.zeros(1, 4000), torch.zeros(1, 0), torch.ones(1, 1)], ids=["0", "none", "one"]
)
def test_silence_has_finite_features_and_logits(waveform):
    features, _ = log_mel(waveform, torch.tensor([waveform.shape[1]]), CrnnConfig())
    assert features.abs().max() < 1e-3
    assert small()(waveform).logits.isfinite().all()


def test_features_are_float32_under_autocast_and_for_half_precision_weights(inputs):
    lengths = torch.tensor(LENGTHS)
    expected, _ = log_mel(inputs["input_values"], lengths, CrnnConfig())
    with torch.autocast("cpu", torch.bfloat16):
        features, _ = log_mel(inputs["input_values"], lengths, CrnnConfig())
    assert (features.dtype, expected.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(features, expected, atol=0, rtol=0)
    rounded = inputs["input_values"].bfloat16()
    features, _ = log_mel(rounded, lengths, CrnnConfig())
    torch.testing.assert_close(features, log_mel(rounded.float(), lengths, CrnnConfig())[0], atol=0, rtol=0)
    model = small()
    logits = model(**inputs).logits
    torch.testing.assert_close(model.to(torch.bfloat16)(**inputs).logits.float(), logits, atol=0.3, rtol=0.1)


# SpecAugment


def test_spec_augment_masks_its_share_of_each_utterance():
    """Spans of 5 hops, 0.2 of 400 and of 100, and of 8 bands, 0.1 of 80; a little less for the overlaps."""
    torch.manual_seed(0)
    config = CrnnConfig(mask_time_prob=0.2, mask_time_length=5, mask_feature_prob=0.1, mask_feature_length=8)
    num_frames = torch.tensor([400, 100] * 100)
    masked = spec_augment(torch.ones(200, 400, 80), num_frames, config) == 0
    in_time, in_bands = masked.all(dim=2), masked.all(dim=1)
    assert in_time[::2].float().mean().item() == pytest.approx(0.2, abs=0.03)
    assert in_time[1::2, :100].float().mean().item() == pytest.approx(0.2, abs=0.03)
    assert not in_time[1::2, 100:].any()
    assert in_bands.float().mean().item() == pytest.approx(0.1, abs=0.01)
    runs = in_time[0].int().diff(prepend=torch.zeros(1).int(), append=torch.zeros(1).int()).nonzero()[:, 0].view(-1, 2)
    assert (runs.diff(dim=1) >= 5).all()
    assert not masked[~(in_time[:, :, None] | in_bands[:, None])].any()


def test_spec_augment_is_of_training_alone_and_follows_the_seed(inputs):
    model = small(dropout=0.0)
    expected = model(**inputs).logits
    torch.manual_seed(1)
    first = model.train()(**inputs).logits
    torch.manual_seed(1)
    torch.testing.assert_close(model(**inputs).logits, first)
    assert not torch.allclose(model(**inputs).logits, first)
    model.config.apply_spec_augment = False
    torch.testing.assert_close(model(**inputs).logits, expected)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_spec_augment_of_nothing_and_of_clips_shorter_than_a_span(share):
    config = CrnnConfig(mask_time_prob=share, mask_feature_prob=0.0)
    features = spec_augment(torch.ones(2, 4, 80), torch.tensor([4, 1]), config)
    assert (features == 1).all() or share
    assert features.isfinite().all()


# Loss and training


def test_loss_is_the_mean_of_torch(inputs, labels):
    model = small()
    output = model(**inputs, labels=labels)
    expected = functional.ctc_loss(
        output.logits.log_softmax(dim=-1).transpose(0, 1),
        labels.clamp(min=0),
        model._get_feat_extract_output_lengths(torch.tensor(LENGTHS)),
        (labels != -100).sum(dim=1),
    )
    torch.testing.assert_close(output.loss, expected)


def test_pitfall_1_the_trainer_of_transformers_divides_by_the_steps():
    """It would otherwise take the loss for one that is already divided by the labels of the whole batch."""
    assert CrnnForCTC.accepts_loss_kwargs is False


def test_the_gradient_does_not_depend_on_the_cut(inputs, labels):
    """Three at once, or two and one with padding of their own."""
    model = small()
    (model(**inputs, labels=labels).loss).backward()
    whole = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    for rows, samples in [(slice(0, 2), 8000), (slice(2, 3), 2345)]:
        part = {name: value[rows, :samples] for name, value in inputs.items()}
        loss = model(**part, labels=labels[rows]).loss
        (loss * len(part["input_values"]) / 3).backward()
    torch.testing.assert_close([parameter.grad for parameter in model.parameters()], whole, atol=1e-4, rtol=1e-3)


def test_it_learns_a_batch_by_heart(tokenizer, inputs, labels):
    model = small(hidden_size=24, num_hidden_layers=1, dropout=0.0, apply_spec_augment=False).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(80):
        loss = model(**inputs, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    assert model(**inputs, labels=labels).loss.item() < 0.1
    frames = model._get_feat_extract_output_lengths(torch.tensor(LENGTHS))
    assert GreedyDecoder(tokenizer)(model(**inputs).logits, frames) == TEXTS


def test_bfloat16_autocast_on_a_cpu(inputs, labels):
    model = small()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(**inputs, labels=labels)
    output.loss.backward()
    assert (output.logits.dtype, output.loss.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(output.logits.float(), model(**inputs).logits, atol=0.3, rtol=0.1)
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_tuples_in_place_of_outputs(inputs, labels):
    loss, logits = small()(**inputs, labels=labels, return_dict=False)
    assert (loss.shape, logits.shape) == ((), (3, 25, 6))


# Classification


def test_a_clips_class_does_not_depend_on_the_padding(inputs, waveforms):
    model = classifier()
    expected = torch.cat([model(torch.tensor(waveform)[None]).logits for waveform in waveforms])
    torch.testing.assert_close(model(**inputs).logits, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(model(**padded(inputs, 32_000)).logits, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("problem_type", "num_labels", "targets", "reference"),
    [
        ("single_label_classification", 3, torch.tensor([0, 2, -100]), functional.cross_entropy),
        ("multi_label_classification", 3, torch.eye(3), functional.binary_cross_entropy_with_logits),
        ("regression", 1, torch.arange(3.0), lambda logits, targets: functional.mse_loss(logits[:, 0], targets)),
    ],
)
@pytest.mark.parametrize("given", [True, False])
def test_loss_is_that_of_the_problem_type(inputs, problem_type, num_labels, targets, reference, given):
    """Inferred from the labels if not given, but never written into the config (pitfall 3)."""
    problem_type = problem_type if given else None
    model = classifier(num_labels=num_labels, problem_type=problem_type)
    output = model(**inputs, labels=targets)
    torch.testing.assert_close(output.loss, reference(output.logits, targets))
    assert model.config.problem_type == problem_type


def test_pitfall_1_the_loss_of_a_class_honours_num_items_in_batch(inputs):
    model, targets = classifier(), torch.tensor([0, 1, 2])
    part = {name: value[:2] for name, value in inputs.items()}
    loss = model(**part, labels=targets[:2], num_items_in_batch=torch.tensor(8)).loss
    torch.testing.assert_close(loss, model(**part, labels=targets[:2]).loss * 2 / 8)


# Saving and reloading


def test_saved_and_reloaded_it_is_the_same(tmp_path, inputs):
    model = small(conv_stride=(2, 2), mask_time_prob=0.2)
    model.save_pretrained(tmp_path)
    reloaded, info = AutoModelForCTC.from_pretrained(tmp_path, output_loading_info=True)
    assert type(reloaded) is CrnnForCTC
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert (reloaded.config.conv_stride, reloaded.config.mask_time_prob) == ([2, 2], 0.2)
    torch.testing.assert_close(reloaded(**inputs).logits, model(**inputs).logits, atol=0, rtol=0)


def test_the_base_model_reloads_under_another_head(tmp_path, inputs):
    """As when a recogniser becomes a classifier: the base's weights survive, the head is new."""
    model = small()
    assert model.base_model is model.crnn
    model.save_pretrained(tmp_path)
    base = AutoModel.from_pretrained(tmp_path)
    assert type(base) is CrnnModel
    expected = model.crnn(**inputs).last_hidden_state
    assert expected.shape == (3, 25, 20)
    torch.testing.assert_close(base(**inputs).last_hidden_state, expected, atol=0, rtol=0)
    headed, info = AutoModelForAudioClassification.from_pretrained(tmp_path, num_labels=5, output_loading_info=True)
    assert sorted(info["missing_keys"]) == ["classifier.bias", "classifier.weight"]
    torch.testing.assert_close(headed.crnn(**inputs).last_hidden_state, expected, atol=0, rtol=0)


def test_window_and_filters_are_not_among_the_weights(inputs):
    """They cannot be lost, be rounded or be trained; made under inference_mode they serve training too."""
    model = small()
    assert not list(model.buffers())
    assert not [name for name in model.state_dict() if "mel" in name or "window" in name]
    crnn._window.cache_clear(), crnn._mel_filters.cache_clear()
    with torch.inference_mode():
        model(**inputs)
    model.train()(**inputs).logits.sum().backward()
    assert model.crnn.convolutions.layers[0].weight.grad.isfinite().all()


def test_a_checkpoint_that_lacks_one_weight_keeps_the_others(tmp_path):
    model = small()
    lacking = ("bias_hh_l0", "final_layer_norm.weight", "convolutions.layers.0.bias", "lm_head.bias")
    there = {name: value for name, value in model.state_dict().items() if not name.endswith(lacking)}
    model.save_pretrained(tmp_path, state_dict=dict(there))  # it empties what it is given
    reloaded = CrnnForCTC.from_pretrained(tmp_path)
    for name, value in reloaded.state_dict().items():
        initial = torch.ones_like(value) if "layer_norm.weight" in name else torch.zeros_like(value)
        torch.testing.assert_close(value, there.get(name, initial), atol=0, rtol=0)


def test_the_config_alone_builds_a_model(tmp_path):
    CrnnConfig(vocab_size=30, num_hidden_layers=1).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "sft_hf_crnn"
    model = AutoModelForCTC.from_config(AutoConfig.from_pretrained(tmp_path))
    assert (model.lm_head.out_features, len(model.crnn.layers)) == (30, 1)


def test_registering_again_changes_nothing():
    crnn.register()
    assert type(AutoConfig.for_model("sft_hf_crnn")) is CrnnConfig


# transformers' pipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    """A saved model that says something of everything."""
    folder = tmp_path_factory.mktemp("crnn")
    small(seed=3).save_pretrained(folder)
    build_processor(tokenizer).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_pipeline_reads_the_saved_folder(folder, tokenizer, inputs, waveforms, batch_size):
    """Of a padded batch it decodes the padding too."""
    transcribe = pipeline("automatic-speech-recognition", model=folder, device="cpu")
    model = AutoModelForCTC.from_pretrained(folder)
    frames = model._get_feat_extract_output_lengths(torch.tensor(LENGTHS))
    expected = GreedyDecoder(tokenizer)(model(**inputs).logits, frames)
    assert all(expected)
    assert len(set(expected)) == 3
    clips = [{"raw": waveform, "sampling_rate": 16_000} for waveform in waveforms]
    assert [result["text"] for result in transcribe(clips, batch_size=batch_size)] == expected


def test_the_pipeline_has_timestamps_in_seconds(folder, waveforms):
    """The last of the 25 frames of 20 ms ends with the clip."""
    transcribe = pipeline("automatic-speech-recognition", model=folder, device="cpu")
    result = transcribe({"raw": waveforms[0], "sampling_rate": 16_000}, return_timestamps="char")
    times = [chunk["timestamp"] for chunk in result["chunks"]]
    assert "".join(chunk["text"] for chunk in result["chunks"]).strip() == result["text"]
    assert times == sorted(times)
    assert 0.4 < times[-1][1] <= 0.5
    np.testing.assert_allclose(np.array(times) / 0.02, np.round(np.array(times) / 0.02), atol=1e-6)


def test_the_processor_pads_and_changes_nothing_else(folder, waveforms):
    processor = AutoProcessor.from_pretrained(folder)
    batch = processor(waveforms, sampling_rate=16_000, padding=True, return_tensors="pt")
    assert batch["attention_mask"].sum(dim=1).tolist() == LENGTHS
    np.testing.assert_array_equal(batch["input_values"][2, : LENGTHS[2]].numpy(), waveforms[2])
    assert not batch["input_values"][2, LENGTHS[2] :].any()
    assert processor.tokenizer("ABBA")["input_ids"] == [3, 4, 4, 3]


def test_the_pipeline_of_audio_classification_reads_the_saved_folder(tmp_path, inputs, waveforms):
    model = classifier(id2label={0: "a", 1: "b", 2: "c"})
    model.save_pretrained(tmp_path)
    build_feature_extractor().save_pretrained(tmp_path)
    classify = pipeline("audio-classification", model=str(tmp_path), device="cpu", top_k=3)
    clips = [{"raw": waveform, "sampling_rate": 16_000} for waveform in waveforms]
    expected = model(**inputs).logits.softmax(dim=-1).tolist()
    for results, probabilities in zip(classify(clips), expected, strict=True):
        scores = {result["label"]: result["score"] for result in results}
        assert [scores[label] for label in "abc"] == pytest.approx(probabilities, abs=1e-5)
