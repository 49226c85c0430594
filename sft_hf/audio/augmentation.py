"""Training sound: louder or softer, later, faster, in noise, masked; a function of (seed, epoch, example_id) and of nothing else.

    augment = WAVEFORM_AUGMENTATIONS["full"]
    augment(waveform, sampling_rate=16_000, seed=42, epoch=3, example_id=17)              # float32 (samples,), as in every process
    spec_augment(features, layout="frames_bins", seed=42, epoch=3, example_id=17)         # float32 (frames, bins)

No word is lost: a clip is moved by silence before it, and what would clip is turned down instead. Neither the number of workers and
ranks, nor the order, nor a resume changes a sample (pitfall 44).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import soxr
import torch
from scipy import fft

from sft_hf.seeding import seeded

SPECTROGRAM = 1  # a further number of the key, so that the masks of an example know nothing of what its waveform drew
STEEPEST_NOISE = 2.0  # power falls by 1 / frequency ** 2 in brown noise, evenly spread is white
FLAT_BELOW_HERTZ = 50.0  # else nearly all of a brown noise would be where no ear and no filter bank hears it
NUM_MASKS = 2
TIME_SHARE = 0.1
FREQUENCY_SHARE = 0.2


@dataclass(frozen=True)
class WaveformAugmentation:
    """A clip faster or slower, later, in noise and louder or softer, in this order; the default changes nothing.

    `speed_percent` is a range of whole percent: at 110 a clip takes 100/110 of its time and sounds higher, as a record does (Ko et al.
    2015, https://www.isca-archive.org/interspeech_2015/ko15_interspeech.html). `time_shift_seconds` is the longest silence put before
    it. `noise_decibels` is a range of signal-to-noise ratios; the noise's power falls by 1 / frequency ** slope, with a slope from 0
    (white) to 2 (brown). `gain_decibels` is by how much it gets louder or softer at most. Each is drawn evenly from its range.
    """

    speed_percent: tuple[int, int] = (100, 100)
    time_shift_seconds: float = 0.0
    noise_decibels: tuple[float, float] | None = None
    gain_decibels: float = 0.0

    def __call__(
        self, waveform: np.ndarray, *, sampling_rate: int, seed: int, epoch: int, example_id: int
    ) -> np.ndarray:
        """Samples `(samples,)`, float32, nominally -1..1, as other ones: more or fewer, within `durations`, and none over 1.

        Clips that are over 1 to begin with stay below their own peak.
        """
        assert waveform.dtype == np.float32, f"samples are {waveform.dtype}"
        assert waveform.ndim == 1, f"samples are {waveform.shape}"
        limit = max(1.0, _peak(waveform))
        with seeded(seed, epoch, example_id):
            # All are drawn whatever is used, so that a setting changes nothing but what it names.
            speed, shift, noise, slope, gain = torch.rand(5, dtype=torch.float64).tolist()
            waveform = _faster(
                waveform, percent=int(_between((self.speed_percent[0], self.speed_percent[1] + 1), speed))
            )
            power = _power(waveform)  # of the clip, without the silence that is put before it
            waveform = np.pad(waveform, (round(shift * self.time_shift_seconds * sampling_rate), 0))
            if self.noise_decibels is not None and power > 0:
                amplitude = np.sqrt(power / 10 ** (_between(self.noise_decibels, noise) / 10))
                slope *= STEEPEST_NOISE
                waveform = waveform + np.float32(amplitude) * coloured_noise(
                    len(waveform), slope=slope, sampling_rate=sampling_rate
                )
        return _louder(waveform, decibels=_between((-self.gain_decibels, self.gain_decibels), gain), limit=limit)

    def durations(self, seconds: float) -> tuple[float, float]:
        """The shortest and the longest that a clip of `seconds` becomes: for what must fit frames to labels, or a window."""
        slowest, fastest = self.speed_percent
        return seconds * 100 / fastest, seconds * 100 / slowest + self.time_shift_seconds


WAVEFORM_AUGMENTATIONS = {
    "none": WaveformAugmentation(),
    "light": WaveformAugmentation(time_shift_seconds=0.1, gain_decibels=6.0),
    "full": WaveformAugmentation(
        speed_percent=(90, 110), time_shift_seconds=0.1, noise_decibels=(10.0, 40.0), gain_decibels=6.0
    ),
}


def coloured_noise(num_samples: int, *, slope: float, sampling_rate: int) -> np.ndarray:
    """Noise `(num_samples,)`, float32, of mean power 1, that falls by 1 / frequency ** `slope`; from torch's CPU random numbers."""
    size = fft.next_fast_len(num_samples, real=True)
    spectrum = fft.rfft(torch.randn(size).numpy())
    frequencies = fft.rfftfreq(size, 1 / sampling_rate).astype(np.float32)
    # The square root of the power is the amplitude.
    spectrum *= np.maximum(frequencies, FLAT_BELOW_HERTZ) ** np.float32(-slope / 2)
    noise = fft.irfft(spectrum, size)[:num_samples]
    return noise / np.float32(np.sqrt(_power(noise)))


def spec_augment(
    features: np.ndarray,
    *,
    layout: Literal["frames_bins", "bins_frames"],
    seed: int,
    epoch: int,
    example_id: int,
    num_frames: int | None = None,
) -> np.ndarray:
    """SpecAugment without warping (Park et al. 2019, https://arxiv.org/abs/1904.08779): two masks in time and two in frequency.

    A mask is up to a tenth of the frames, or a fifth of the bins, wide, and holds the features' mean. `layout` is frames_bins
    `(frames, bins)` as of AST and Speech2Text, or bins_frames as of Whisper. `num_frames` counts the frames of sound where an
    extractor has padded behind them; what is behind is neither masked nor averaged. Float32 of the same shape, a copy.
    """
    assert layout in ("frames_bins", "bins_frames"), f"{layout} is not a layout"
    masked = features.copy()
    frames_first = masked if layout == "frames_bins" else masked.T
    sound = frames_first[:num_frames]
    mean = sound.mean(dtype=np.float64)
    with seeded(seed, epoch, example_id, SPECTROGRAM):
        for axis, share in ((0, TIME_SHARE), (1, FREQUENCY_SHARE)):
            for width, start in torch.rand(NUM_MASKS, 2, dtype=torch.float64).tolist():
                span = _span(sound.shape[axis], share=share, width=width, start=start)
                sound[(slice(None),) * axis + (span,)] = mean
    return masked


def _span(length: int, *, share: float, width: float, start: float) -> slice:
    """A part of `length` from two numbers below 1: 0 to `share` of it wide, anywhere in it."""
    size = int(width * (int(share * length) + 1))
    first = int(start * (length - size + 1))
    return slice(first, first + size)


def _between(limits: tuple[float, float], drawn: float) -> float:
    return limits[0] + drawn * (limits[1] - limits[0])


def _faster(waveform: np.ndarray, *, percent: int) -> np.ndarray:
    """Samples `(samples,)` as `(samples * 100 / percent,)`, rounded."""
    return waveform if percent == 100 else soxr.resample(waveform, percent, 100)


def _louder(waveform: np.ndarray, *, decibels: float, limit: float) -> np.ndarray:
    """Samples times the gain, or times less where the peak would pass the limit."""
    factor, peak = 10 ** (decibels / 20), _peak(waveform)
    return waveform * np.float32(limit / peak if factor * peak > limit else factor)


def _peak(waveform: np.ndarray) -> float:
    return float(np.abs(waveform).max(initial=0.0))


def _power(waveform: np.ndarray) -> float:
    return float(np.square(waveform).mean(dtype=np.float64)) if len(waveform) else 0.0
