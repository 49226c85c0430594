"""From an encoded clip, of whatever format, rate and number of channels, to a mono float32 waveform at the rate a model wants.

    clip = {"bytes": None, "path": "yes/1.flac"}           # a row, as datasets' Audio(decode=False) gives it
    read_header(clip)                                      # Header(num_frames=35840, sampling_rate=44100, num_channels=2)
    decode(clip, sampling_rate=16000)                      # float32 (13003,)
    decode(clip, sampling_rate=16000, start_seconds=0.2, seconds=0.5)    # float32 (8000,); the rest is not decoded

Each kind of clip has a rule:

    wav, flac, ogg (vorbis, opus), mp3, aiff, au, w64, caf ...    libsndfile, which the soundfile package brings
    m4a, mp4, aac, webm, mka, wma, amr, ape                       torchcodec, where it and ffmpeg are installed
    integers                                                      the range of their type becomes -1..1
    floats                                                        as they are, also outside of -1..1
    several channels                                              their mean
    another sampling rate                                         soxr, high quality; n frames become round(n * wanted / rate), at
                                                                  least one
    wav that was written to a pipe or never closed, flac whose    as long as there is sound
    header says no length
    mp3 without a Xing, Info or VBRI header                       as long as there is sound; libsndfile takes the bit rate of its first
                                                                  frame for that of all, and may stop in the middle
    damaged, missing, empty, of length zero, samples that are     `UnreadableAudio`
    not finite, over 0.1 s less sound than the header says, over
    6 hours, rates below 100 Hz and above 10 MHz
"""

import hashlib
import os
import re
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from io import BytesIO
from math import ceil
from threading import Lock
from typing import Any, BinaryIO

import numpy as np
import soundfile
import soxr
from datasets.utils.file_utils import is_local_path, xopen

from sft_hf.audio.containers import ENDLESS, endless_mp3, ends_in_a_page, open_ended_wav, other_format, skip_to_mp3

EncodedClip = dict[str, Any]  # {"bytes": bytes | None, "path": str | None}, what Audio(decode=False) gives
BLOCK = 1 << 18  # samples of all channels that are decoded at once
# A few kilobytes can say that they are days of silence, or of a sample a second: gigabytes at the rate of a model.
LONGEST_SECONDS = 6 * 60 * 60
RATES = (100, 10_000_000)  # hertz: earthquakes and whales to ultrasound
MISSING_SECONDS = 0.1  # sloppy headers, and encoders that drop their last frame, stay below it
STREAMED_BYTES = 0x7FFF0000  # wav files that were written to a pipe say as much or more
# libsndfile makes good for a header that says more bytes than there are, and tells it nowhere but in its log.
CORRECTED = re.compile(r"^\s*(?:data|Data Size|SSND|riff|Riff size)\s*: (\d+) \(should be (\d+)\)$", re.MULTILINE)
STDERR = Lock()


class UnreadableAudio(Exception):
    """A clip that cannot be decoded; says which file and why, without a full stop."""


@dataclass(frozen=True)
class Header:
    """How much sound there is in a clip; a frame is one sample of each channel."""

    num_frames: int
    sampling_rate: int
    num_channels: int

    @property
    def seconds(self) -> float:
        """How long the clip is."""
        return self.num_frames / self.sampling_rate


def read_header(clip: EncodedClip) -> Header:
    """The length, rate and channels of a clip; one whose header says no length is decoded for it.

    Raises UnreadableAudio for what is missing, empty, of length zero, or no sound.
    """
    with _opened(clip) as sound:
        num_frames = sound.num_frames
        if num_frames is None:
            num_frames = sum(map(len, sound.blocks()))
        return Header(num_frames, sound.sampling_rate, sound.num_channels)


def decode(
    clip: EncodedClip, *, sampling_rate: int, start_seconds: float = 0.0, seconds: float | None = None
) -> np.ndarray:
    """The waveform of a clip, or `seconds` of it from `start_seconds` on: float32 (samples,), mono, nominally -1..1.

    A part has round(seconds * sampling_rate) samples, fewer only where the clip ends before; it is found by seeking. Raises
    UnreadableAudio, also for a part that would begin behind the clip's end.
    """
    with _opened(clip) as sound:
        rate = sound.sampling_rate
        frames = None if seconds is None else ceil(seconds * rate)
        blocks = list(sound.blocks(_rounded(start_seconds * rate), frames))
    if not blocks:
        raise UnreadableAudio(f"{sound.name} ends before second {start_seconds:g}")
    samples = _resampled(blocks[0] if len(blocks) == 1 else np.concatenate(blocks), rate, sampling_rate)
    return samples if seconds is None else samples[: max(_rounded(seconds * sampling_rate), 1)]


def check_clip(clip: EncodedClip) -> tuple[str | None, Header | None]:
    """The reason why a clip cannot be decoded, or what there is in it; all of it is decoded, and nothing kept."""
    try:
        with _opened(clip) as sound:
            num_frames = sum(map(len, sound.blocks()))
            return None, Header(num_frames, sound.sampling_rate, sound.num_channels)
    except UnreadableAudio as error:
        return str(error), None


def digest(clip: EncodedClip) -> str:
    """32 hexadecimal digits that are equal for equal files. Raises UnreadableAudio for one that is not there."""
    with _file(_source(clip)) as file:
        return hashlib.blake2b(file.read(), digest_size=16).hexdigest()


def _rounded(number: float) -> int:
    """Halves go up, as in `_resampled`."""
    return int(number + 0.5)


def _resampled(samples: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    if rate == wanted:
        return samples
    length = max((2 * len(samples) * wanted + rate) // (2 * rate), 1)
    resampled = soxr.resample(samples, rate, wanted, quality="HQ")[:length]
    return np.pad(resampled, (0, length - len(resampled)))


# The file


def _name(clip: EncodedClip | None) -> str:
    return (clip or {}).get("path") or "the clip"


def _source(clip: EncodedClip | None) -> bytes | str:
    """The file's bytes, or the path of one that is here; streams name files in archives and on the Hub too."""
    clip = clip or {}
    data, path = clip.get("bytes"), clip.get("path")
    if data is None and not path:
        raise UnreadableAudio("there is no clip: neither bytes nor a path")
    try:
        if data is None and not is_local_path(path):
            with xopen(path, "rb") as file:
                data = file.read()
        size = os.path.getsize(path) if data is None else len(data)
    except FileNotFoundError:
        raise UnreadableAudio(f"{path} does not exist") from None
    except OSError as error:
        raise UnreadableAudio(f"{path} cannot be read: {error}") from error
    if size == 0:
        raise UnreadableAudio(f"{_name(clip)} is empty")
    return path if data is None else data


def _file(source: bytes | str) -> BinaryIO:
    """Raises UnreadableAudio for a folder, or a file that may not be read."""
    try:
        return BytesIO(source) if isinstance(source, bytes) else open(source, "rb")
    except OSError as error:
        raise UnreadableAudio(f"{source} cannot be read: {error}") from error


@contextmanager
def _opened(clip: EncodedClip | None) -> Iterator["_Sound | _OtherSound"]:
    source, name = _source(clip), _name(clip)
    with _file(source) as file:
        head, kind = file.read(12), other_format(file)
        if ends_in_a_page(file):
            raise UnreadableAudio(f"{name} is cut short: it ends in the middle of a page")
        is_mp3 = skip_to_mp3(file)
        source = (endless_mp3(file) if is_mp3 else open_ended_wav(file)) or source
    if kind:
        yield _OtherSound(name, _torchcodec_decoder(source, name, kind))
        return
    with _quiet() if is_mp3 else nullcontext():
        with _reasons(name, f"; it begins with {head!r}"):
            opened = _SoundFile(BytesIO(source) if isinstance(source, bytes) else source)
        with opened:
            sound = _Sound(name, opened)
            _refuse_bomb(name, sound.sampling_rate, sound.num_frames)
            yield sound


def _refuse_bomb(name: str, rate: int, num_frames: int | None) -> None:
    if not RATES[0] <= rate <= RATES[1]:
        raise UnreadableAudio(f"{name} says that it has {rate} samples a second, expected {RATES[0]} to {RATES[1]}")
    if num_frames is not None and num_frames > LONGEST_SECONDS * rate:
        raise UnreadableAudio(
            f"{name} lasts {num_frames / rate / 3600:.1f} hours, expected {LONGEST_SECONDS // 3600} at most: cut it up"
        )


@contextmanager
def _reasons(name: str, more: str = "") -> Iterator[None]:
    """What libsndfile and torchcodec raise becomes the reason against a clip."""
    try:
        yield
    # TypeError: soundfile takes what is called .raw for samples without a header.
    except (soundfile.SoundFileError, RuntimeError, ValueError, IndexError, TypeError) as error:
        raise UnreadableAudio(f"{name} cannot be decoded: {_first_line(error)}{more}") from error


def _first_line(error: Exception) -> str:
    """Without the object that libsndfile was given, and without the line of source code at which torchcodec gave up."""
    line = getattr(error, "error_string", None) or str(error).partition("\n")[0]
    if line.startswith("File does not exist"):  # libsndfile's word for an mp3 with no frame but that of its length
        return "it has no frame of sound"
    return re.sub(r"^(.*\.(cpp|h):\d+, |Error : )", "", line).rstrip(".")


def _mono(block: np.ndarray, name: str) -> np.ndarray:
    """(frames, channels) -> (frames,)"""
    mono = block[:, 0] if block.shape[1] == 1 else block.mean(axis=1)
    if not np.isfinite(mono).all():
        raise UnreadableAudio(f"{name} has samples that are not finite")
    return mono


# What libsndfile reads


class _SoundFile(soundfile.SoundFile):
    """Reads on without seeking to where it is after each block; at the end of a flac of unknown length that is an error."""

    def seekable(self) -> bool:
        return False


@dataclass(frozen=True)
class _Sound:
    """An open file."""

    name: str
    file: soundfile.SoundFile

    @property
    def sampling_rate(self) -> int:
        return self.file.samplerate

    @property
    def num_channels(self) -> int:
        return self.file.channels

    @property
    def num_frames(self) -> int | None:
        """What the header says, None where it says nothing. Raises UnreadableAudio for none at all."""
        if self.file.frames == 0:
            raise UnreadableAudio(f"{self.name} is of length zero")
        return None if self.file.frames >= ENDLESS else self.file.frames

    def blocks(self, start: int = 0, frames: int | None = None) -> Iterator[np.ndarray]:
        """Mono blocks of what there is of `frames` from `start` on. Raises UnreadableAudio where less is there than should."""
        expected, decoded = frames, 0
        if self.num_frames is None:
            deque(self._read(start), maxlen=0)
        elif start >= self.num_frames:
            return
        else:
            self._refuse_short_file()
            expected = min(self.num_frames - start, self.num_frames if frames is None else frames)
            with _reasons(self.name):
                self.file.seek(start)
        for block in self._read(expected):
            decoded += len(block)
            _refuse_bomb(self.name, self.sampling_rate, start + decoded)  # where the header says no length
            yield _mono(block, self.name)
        if self.num_frames is not None and expected - decoded > MISSING_SECONDS * self.sampling_rate:
            raise self._cut_short(start + expected, start + decoded)
        if start == decoded == 0:
            raise UnreadableAudio(f"{self.name} is of length zero")

    def _read(self, frames: int | None) -> Iterator[np.ndarray]:
        """(frames, channels) as they are in the file, up to its end."""
        while frames is None or frames > 0:
            size = max(BLOCK // self.num_channels, 1)
            size = size if frames is None else min(size, frames)
            with _reasons(self.name):
                block = self.file.read(out=np.empty((size, self.num_channels), np.float32))
            if len(block):
                yield block
            if len(block) < size:
                return
            frames = None if frames is None else frames - size

    def _refuse_short_file(self) -> None:
        for declared, there in (map(int, pair) for pair in CORRECTED.findall(self.file.extra_info)):
            missing = self.num_frames * (declared - there) / max(there, 1)
            if declared < STREAMED_BYTES and missing > MISSING_SECONDS * self.sampling_rate:
                raise self._cut_short(self.num_frames + missing, self.num_frames)

    def _cut_short(self, declared: float, there: float) -> UnreadableAudio:
        declared, there = declared / self.sampling_rate, there / self.sampling_rate
        return UnreadableAudio(
            f"{self.name} is cut short: its header says {declared:.2f} s, and {there:.2f} s are there"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep libmpg123's notes on junk between frames off the terminal, where they are printed past Python."""
    with STDERR:
        kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            os.close(nowhere)


# What torchcodec reads


@dataclass(frozen=True)
class _OtherSound:
    """A file of a format that libsndfile does not read; its length is what is decoded."""

    name: str
    decoder: Any  # torchcodec.decoders.AudioDecoder
    num_frames = None

    @property
    def sampling_rate(self) -> int:
        return self.decoder.metadata.sample_rate

    @property
    def num_channels(self) -> int:
        return self.decoder.metadata.num_channels

    def blocks(self, start: int = 0, frames: int | None = None) -> Iterator[np.ndarray]:
        """One mono block of what there is of `frames` from `start` on, none behind the end. Raises UnreadableAudio.

        All is decoded for it: what torchcodec gives for a part of an opus stream is some milliseconds away from there.
        """
        _refuse_bomb(
            self.name, self.sampling_rate, round((self.decoder.metadata.duration_seconds or 0) * self.sampling_rate)
        )
        with _reasons(self.name):
            samples = self.decoder.get_all_samples().data.numpy().T  # (frames, channels)
        if len(samples) == 0:
            raise UnreadableAudio(f"{self.name} is of length zero")
        if start < len(samples):
            yield _mono(samples[start:] if frames is None else samples[start : start + frames], self.name)


def _torchcodec_decoder(source: bytes | str, name: str, kind: str) -> Any:
    try:
        from torchcodec.decoders import AudioDecoder

        return AudioDecoder(source)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        reason = _first_line(error)
        if not isinstance(error, ImportError) and "libtorchcodec" not in reason:
            raise UnreadableAudio(f"{name} cannot be decoded: {reason}") from error
        raise UnreadableAudio(
            f"{name} is {kind}, which libsndfile does not read; torchcodec with ffmpeg does: `pip install torchcodec`, and ffmpeg "
            f"from the packages of the system ({reason})"
        ) from error
