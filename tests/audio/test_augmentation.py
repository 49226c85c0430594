"""Gain, speed, noise and silence of known size, masks of known place; the same for the same seed, epoch and example, whoever draws."""

import pickle
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from sft_hf.audio.augmentation import WAVEFORM_AUGMENTATIONS, WaveformAugmentation, coloured_noise, spec_augment

RATE = 16_000
KEY = {"seed": 7, "epoch": 2, "example_id": 11}
FULL = WAVEFORM_AUGMENTATIONS["full"]


def tone(seconds: float = 1.0, hertz: float = 440.0, amplitude: float = 0.1) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def augmented(augmentation: WaveformAugmentation, waveform: np.ndarray, **key: int) -> np.ndarray:
    return augmentation(waveform, sampling_rate=RATE, **{**KEY, **key})


def decibels(louder: np.ndarray, softer: np.ndarray) -> float:
    return 10 * np.log10(np.square(louder, dtype=np.float64).mean() / np.square(softer, dtype=np.float64).mean())


def masked(features: np.ndarray, **options) -> np.ndarray:
    return spec_augment(features, **{"layout": "frames_bins", **KEY, **options})


# ---- randomness ----


@pytest.mark.parametrize("policy", ["light", "full"])
def test_pitfall_44_a_waveform_is_a_function_of_seed_epoch_and_example(policy):
    augment = WAVEFORM_AUGMENTATIONS[policy]
    result = augmented(augment, tone())
    assert result.dtype == np.float32
    torch.manual_seed(1)
    np.random.seed(1)
    again = pickle.loads(pickle.dumps(augment))  # as it reaches a spawned worker
    np.testing.assert_array_equal(augmented(again, tone()), result)
    for name in KEY:
        assert not np.array_equal(augmented(augment, tone(), **{name: KEY[name] + 1}), result), name


def test_pitfall_44_so_are_masks():
    features = np.random.default_rng(0).standard_normal((100, 80)).astype(np.float32)
    result = masked(features)
    torch.manual_seed(1)
    np.testing.assert_array_equal(masked(features), result)
    for name in KEY:
        assert not np.array_equal(masked(features, **{name: KEY[name] + 1}), result), name


@dataclass
class Augmented(Dataset):
    """Every example is the same tone: what differs was drawn."""

    order: list[int]

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> tuple[int, np.ndarray]:
        example_id = self.order[index]
        return example_id, augmented(FULL, tone(0.2), example_id=example_id)


def test_pitfall_44_workers_and_order_change_nothing():
    results = [
        {int(example_id): waveform for example_id, waveform in DataLoader(Augmented(order), batch_size=None, **options)}
        for order, options in ((list(range(6)), {}), ([4, 1, 5, 0, 3, 2], {"num_workers": 2}))
    ]
    assert len({waveform.shape for waveform in results[0].values()}) > 1
    for example_id, waveform in results[0].items():
        torch.testing.assert_close(results[1][example_id], waveform, rtol=0, atol=0)


def test_a_setting_changes_nothing_but_what_it_names():
    """With noise switched off, speed, shift and gain are drawn as before: the difference is noise alone."""
    quiet = replace(FULL, noise_decibels=None, gain_decibels=0.0)
    noisy = replace(FULL, noise_decibels=(30.0, 30.0), gain_decibels=0.0)
    without, with_noise = augmented(quiet, tone()), augmented(noisy, tone())
    assert len(without) == len(with_noise) != RATE
    assert decibels(without, with_noise - without) == pytest.approx(30, abs=0.5)


def test_masks_know_nothing_of_what_the_waveform_drew():
    """Else short masks would always go with slow speech: both would begin with the same number."""
    speeds = replace(WaveformAugmentation(), speed_percent=(50, 149))
    drawn = [
        (len(augmented(speeds, tone(), example_id=number)), masked_frames(number)) for number in range(200)
    ]  # fmt: skip
    assert abs(np.corrcoef(np.transpose(drawn))[0, 1]) < 0.2


def masked_frames(example_id: int) -> int:
    features = np.arange(1000, dtype=np.float32)[:, None].repeat(2, axis=1)
    return int((masked(features, example_id=example_id)[:, 0] != features[:, 0]).sum())


# ---- waveforms ----


def test_gain_of_so_many_decibels_changes_the_level_by_that():
    """A tone whose peak is 0.1 is 0.07 RMS; 6 dB are a factor of 1.995."""
    changes = [
        decibels(augmented(WaveformAugmentation(gain_decibels=6.0), tone(), example_id=number), tone())
        for number in range(200)
    ]
    assert min(changes) == pytest.approx(-6, abs=0.2)
    assert max(changes) == pytest.approx(6, abs=0.2)
    assert np.mean(changes) == pytest.approx(0, abs=0.6)


def test_a_gain_that_would_clip_is_lowered_until_the_peak_is_one():
    loud = tone(amplitude=0.9)
    peaks = [
        np.abs(augmented(WaveformAugmentation(gain_decibels=20.0), loud, example_id=number)).max()
        for number in range(20)
    ]
    assert sum(peak == pytest.approx(1, abs=1e-6) for peak in peaks) >= 5
    assert max(peaks) <= 1 + 1e-6
    assert min(peaks) < 0.5


def test_noise_does_not_clip_either():
    square = np.sign(tone()).astype(np.float32)
    result = augmented(WaveformAugmentation(noise_decibels=(10.0, 10.0)), square)
    assert np.abs(result).max() == pytest.approx(1, abs=1e-6)
    assert np.corrcoef(square, result)[0, 1] == pytest.approx(np.sqrt(10 / 11), abs=0.01)  # and is not cut off


def test_a_clip_over_one_stays_below_its_own_peak():
    assert np.abs(augmented(FULL, tone(amplitude=1.5))).max() <= 1.5 + 1e-6


@pytest.mark.parametrize(("percent", "num_samples"), [(90, 17_778), (100, 16_000), (110, 14_545)])
def test_speed_changes_the_length_by_that_and_the_pitch_too(percent, num_samples):
    """16,000 * 100 / 90 = 17,777.8 and 16,000 * 100 / 110 = 14,545.5 (of which the resampler makes 14,545)."""
    result = augmented(WaveformAugmentation(speed_percent=(percent, percent)), tone())
    assert len(result) == num_samples
    spectrum = np.abs(np.fft.rfft(result))
    assert spectrum.argmax() * RATE / num_samples == pytest.approx(440 * percent / 100, abs=1)


def test_speeds_are_whole_percents_and_every_one_is_drawn():
    speeds = WaveformAugmentation(speed_percent=(90, 110))
    lengths = {len(augmented(speeds, tone(0.1), example_id=number)) for number in range(300)}
    assert lengths == {round(1600 * 100 / percent) for percent in range(90, 111)}


@pytest.mark.parametrize("ratio", [0.0, 10.0, 40.0])
def test_noise_has_the_signal_to_noise_ratio_that_was_drawn(ratio):
    result = augmented(WaveformAugmentation(noise_decibels=(ratio, ratio)), tone(amplitude=0.1))
    assert decibels(tone(), result - tone()) == pytest.approx(ratio, abs=0.01)


def test_ratios_lie_within_their_range():
    noise = WaveformAugmentation(noise_decibels=(10.0, 40.0))
    ratios = [decibels(tone(), augmented(noise, tone(), example_id=number) - tone()) for number in range(100)]
    assert 10 <= min(ratios) < 12
    assert 38 < max(ratios) <= 40.01


@pytest.mark.parametrize(("slope", "per_octave"), [(0, 0.0), (1, -3.01), (2, -6.02)])
def test_noise_is_white_pink_or_brown(slope, per_octave):
    """Half the power at twice the frequency is 10 log10(1/2) = -3.01 dB."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        noise = coloured_noise(20 * RATE, slope=slope, sampling_rate=RATE)
    assert (noise.shape, noise.dtype) == ((20 * RATE,), np.float32)
    assert np.square(noise).mean() == pytest.approx(1, abs=1e-4)
    power = np.abs(np.fft.rfft(noise)) ** 2  # 20 bins a Hz
    low, high = power[20 * 900 : 20 * 1100].mean(), power[20 * 1800 : 20 * 2200].mean()
    assert 10 * np.log10(high / low) == pytest.approx(per_octave, abs=0.3)


def test_a_time_shift_is_silence_before_the_clip_and_loses_nothing():
    shift = WaveformAugmentation(time_shift_seconds=0.1)
    results = [augmented(shift, tone(0.5), example_id=number) for number in range(100)]
    silences = [len(result) - 8000 for result in results]
    for result, silence in zip(results, silences, strict=True):
        assert not result[:silence].any()
        np.testing.assert_array_equal(result[silence:], tone(0.5))
    assert 0 <= min(silences) < 50
    assert 1550 < max(silences) <= 1600


@pytest.mark.parametrize(
    "augment", [*WAVEFORM_AUGMENTATIONS.values(), WaveformAugmentation(noise_decibels=(10.0, 40.0))]
)
@pytest.mark.parametrize("num_samples", [0, 1, 1600])
@pytest.mark.filterwarnings("error")
def test_silence_stays_silent(augment, num_samples):
    silence = np.zeros(num_samples, dtype=np.float32)
    result = augmented(augment, silence)
    assert result.dtype == np.float32
    assert not result.any()


def test_none_changes_nothing():
    clip = tone(amplitude=1.2)
    np.testing.assert_array_equal(augmented(WAVEFORM_AUGMENTATIONS["none"], clip), clip)


def test_policies():
    assert list(WAVEFORM_AUGMENTATIONS) == ["none", "light", "full"]
    light, full = WAVEFORM_AUGMENTATIONS["light"], WAVEFORM_AUGMENTATIONS["full"]
    assert light == replace(full, speed_percent=(100, 100), noise_decibels=None)
    assert (full.speed_percent, full.noise_decibels, full.gain_decibels) == ((90, 110), (10, 40), 6)


def test_how_short_and_how_long_a_clip_can_become():
    """99 s are 90 s at 110 %, and 110 s at 90 %, behind 0.1 s of silence."""
    assert FULL.durations(99.0) == pytest.approx((90.0, 110.1))
    assert WAVEFORM_AUGMENTATIONS["none"].durations(30.0) == (30.0, 30.0)
    lengths = [len(augmented(FULL, tone(0.1), example_id=number)) / RATE for number in range(300)]
    shortest, longest = FULL.durations(0.1)
    assert shortest - 1 / RATE <= min(lengths) <= max(lengths) <= longest + 1 / RATE


def test_samples_of_another_kind_are_the_callers_mistake():
    with pytest.raises(AssertionError, match="samples are float64"):
        augmented(FULL, tone().astype(np.float64))
    with pytest.raises(AssertionError, match=r"samples are \(2, 16000\)"):
        augmented(FULL, np.stack([tone(), tone()]))


# ---- masks ----


def test_masks_hold_the_mean_and_the_rest_is_untouched():
    features = np.random.default_rng(0).standard_normal((200, 80)).astype(np.float32)
    before = features.copy()
    result = masked(features)
    np.testing.assert_array_equal(features, before)
    assert (result.dtype, result.shape) == (np.float32, (200, 80))
    changed = result != features
    assert changed.any()
    np.testing.assert_allclose(result[changed], features.mean(), atol=1e-6)
    # What is masked is whole frames and whole bins.
    frames, bins = changed.all(axis=1), changed.all(axis=0)
    np.testing.assert_array_equal(changed, frames[:, None] | bins[None, :])


def test_two_masks_in_time_up_to_a_tenth_and_two_in_frequency_up_to_a_fifth():
    """Of 100 frames up to 10 at once, of 80 bins up to 16; two of them make at most 20 and 32."""
    features = np.random.default_rng(0).standard_normal((100, 80)).astype(np.float32)
    counts = []
    for number in range(300):
        changed = masked(features, example_id=number) != features
        counts.append((changed.all(axis=1).sum(), changed.all(axis=0).sum()))
    counts = np.array(counts)
    assert counts.min(axis=0).tolist() <= [2, 3]
    assert (counts.max(axis=0) >= [17, 28]).all()
    assert (counts.max(axis=0) <= [20, 32]).all()


def test_masks_reach_every_place():
    features = np.random.default_rng(0).standard_normal((50, 40)).astype(np.float32)
    changed = np.zeros((50, 40), dtype=bool)
    for number in range(300):
        changed |= masked(features, example_id=number) != features
    assert changed.all()


def test_whispers_layout_is_the_other_s_turned():
    features = np.random.default_rng(0).standard_normal((300, 80)).astype(np.float32)
    turned = masked(np.ascontiguousarray(features.T), layout="bins_frames")
    np.testing.assert_array_equal(turned.T, masked(features))


def test_padding_behind_the_sound_is_neither_masked_nor_averaged():
    """Whisper's features are 3,000 frames whatever the clip: of two seconds, 200 are sound."""
    sound = np.random.default_rng(0).standard_normal((80, 200)).astype(np.float32)
    features = np.concatenate([sound, np.full((80, 2800), -100, dtype=np.float32)], axis=1)
    result = masked(features, layout="bins_frames", num_frames=200)
    assert (result[:, 200:] == -100).all()
    np.testing.assert_array_equal(result[:, :200], masked(sound, layout="bins_frames"))


def test_a_single_frame_has_masks_of_no_width():
    features = np.ones((1, 80), dtype=np.float32)
    np.testing.assert_array_equal(masked(features), features)


def test_an_unknown_layout_is_the_callers_mistake():
    with pytest.raises(AssertionError, match="channels_last is not a layout"):
        masked(np.zeros((10, 10), dtype=np.float32), layout="channels_last")
