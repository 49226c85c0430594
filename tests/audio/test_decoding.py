"""Each kind of clip has its rule: what is decoded, at which rate and scale, and why a clip is refused."""

import struct
import sys
import types
from io import BytesIO
from zipfile import ZipFile

import numpy as np
import pytest
import soundfile
import torch

from sft_hf.audio import decoding
from sft_hf.audio.decoding import Header, UnreadableAudio, check_clip, decode, digest, read_header

RATE = 16_000


def tone(seconds: float = 0.5, rate: int = RATE, frequency: float = 440) -> np.ndarray:
    """A sine of half the full scale with a little noise, float32 (samples,)."""
    time = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(0).standard_normal(len(time))
    return (0.5 * np.sin(2 * np.pi * frequency * time) + 0.01 * noise).astype(np.float32)


def encoded(samples: np.ndarray, file_format: str = "WAV", rate: int = RATE, **options) -> dict:
    """What an Audio(decode=False) column holds."""
    buffer = BytesIO()
    soundfile.write(buffer, samples, rate, format=file_format, **options)
    return {"bytes": buffer.getvalue(), "path": f"a.{file_format.lower()}"}


def without_length(clip: dict) -> dict:
    """An mp3 behind whose first frame, of the length, nothing says it any more."""
    data = clip["bytes"]
    return {**clip, "bytes": data[data.index(data[:2], 4) :]}


def cut(clip: dict, share: float) -> dict:
    return {**clip, "bytes": clip["bytes"][: int(len(clip["bytes"]) * share)]}


FORMATS = {
    "wav": {"file_format": "WAV"},
    "24-bit wav": {"file_format": "WAV", "subtype": "PCM_24"},
    "float wav": {"file_format": "WAV", "subtype": "FLOAT"},
    "flac": {"file_format": "FLAC"},
    "vorbis": {"file_format": "OGG"},
    "opus": {"file_format": "OGG", "subtype": "OPUS"},
    "mp3": {"file_format": "MP3"},
    "aiff": {"file_format": "AIFF"},
    "au": {"file_format": "AU"},
    "w64": {"file_format": "W64"},
}
LOSSY = {"vorbis": 0.05, "opus": 0.3, "mp3": 0.05}


# ---- formats, ranges, channels ----


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_the_waveform_that_was_written(name):
    samples, clip = tone(), encoded(tone(), **FORMATS[name])
    decoded = decode(clip, sampling_rate=RATE)
    assert decoded.dtype == np.float32
    assert decoded.shape == samples.shape
    np.testing.assert_allclose(decoded, samples, atol=LOSSY.get(name, 2**-15))
    assert read_header(clip) == Header(num_frames=8000, sampling_rate=RATE, num_channels=1)
    assert check_clip(clip) == (None, read_header(clip))
    assert read_header(clip).seconds == 0.5


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32"])
def test_integers_are_scaled_by_the_range_of_their_type(subtype):
    clip = encoded(np.array([-1.0, -0.5, 0.0, 0.5]), subtype=subtype)
    assert decode(clip, sampling_rate=RATE).tolist() == [-1, -0.5, 0, 0.5]


@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
def test_floats_are_as_they_are(subtype):
    clip = encoded(np.array([-3.0, 0.25, 1.5]), subtype=subtype)
    assert decode(clip, sampling_rate=RATE).tolist() == [-3, 0.25, 1.5]


def test_several_channels_become_their_mean():
    clip = encoded(np.array([[0.5, -0.25, 0.0], [0.5, 0.5, -0.25]]))
    np.testing.assert_allclose(decode(clip, sampling_rate=RATE), [1 / 12, 0.25])
    assert read_header(clip) == Header(num_frames=2, sampling_rate=RATE, num_channels=3)


# ---- rates and parts ----


@pytest.mark.parametrize(
    ("rate", "frames", "wanted", "length"),
    [
        (8000, 8000, 16_000, 16_000),
        (8000, 7, 16_000, 14),
        (44_100, 44_101, 16_000, 16_000),
        (44_100, 35_840, 16_000, 13_003),
        (48_000, 8000, 16_000, 2667),
        (48_000, 1, 16_000, 1),
        (16_000, 5, 8000, 3),
        (11_025, 11_025, 16_000, 16_000),
        (22_050, 22_051, 16_000, 16_001),
    ],
)
def test_the_length_at_another_rate_is_rounded_and_never_zero(rate, frames, wanted, length):
    """n frames become round(n * wanted / rate), halves up, at least one."""
    clip = encoded(tone(1, rate=frames), rate=rate)
    assert decode(clip, sampling_rate=wanted).shape == (length,)


@pytest.mark.parametrize("rate", [8000, 44_100, 48_000])
def test_a_tone_stays_itself_at_another_rate(rate):
    decoded = decode(encoded(tone(1, rate), rate=rate), sampling_rate=RATE)
    expected = tone(1)
    noise = 0.06  # of tone, at five standard deviations
    np.testing.assert_allclose(decoded[200:-200], expected[200:-200], atol=2 * noise)
    spectrum = np.abs(np.fft.rfft(decoded))
    assert spectrum.argmax() == 440


@pytest.mark.parametrize("name", FORMATS)
def test_a_part_is_that_part_of_the_whole(name):
    clip = encoded(tone(2), **FORMATS[name])
    whole = decode(clip, sampling_rate=RATE)
    part = decode(clip, sampling_rate=RATE, start_seconds=1.25, seconds=0.5)
    assert part.shape == (8000,)
    # An opus decoder is still finding its way.
    np.testing.assert_allclose(part, whole[20_000:28_000], atol=5e-3)
    last = decode(clip, sampling_rate=RATE, start_seconds=1.9, seconds=0.5)
    np.testing.assert_allclose(last, whole[30_400:], atol=5e-3)


@pytest.mark.parametrize("rate", [8000, 11_025, 16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("start", [0.0, 0.123456, 0.7])
def test_parts_of_a_length_have_as_many_samples_whatever_their_rate(rate, start):
    clip = encoded(tone(2, rate), rate=rate)
    assert decode(clip, sampling_rate=RATE, start_seconds=start, seconds=0.3333).shape == (5333,)


def test_what_is_before_and_behind_a_part_is_not_decoded(monkeypatch):
    decoded = []
    read = soundfile.SoundFile.read
    monkeypatch.setattr(
        soundfile.SoundFile, "read", lambda self, **kw: decoded.append(len(kw["out"])) or read(self, **kw)
    )
    decode(encoded(tone(60), "FLAC"), sampling_rate=8000, start_seconds=30, seconds=0.25)
    assert decoded == [4000]


def test_a_part_behind_the_end_is_an_error():
    clip = encoded(tone(0.5), "FLAC")
    with pytest.raises(UnreadableAudio, match=r"^a.flac ends before second 0.5$"):
        decode(clip, sampling_rate=RATE, start_seconds=0.5, seconds=0.1)


def test_long_clips_are_read_in_blocks(monkeypatch):
    monkeypatch.setattr(decoding, "BLOCK", 1000)
    clip = encoded(tone(0.5), "FLAC")
    np.testing.assert_allclose(decode(clip, sampling_rate=RATE), tone(0.5), atol=2**-15)
    assert decode(clip, sampling_rate=RATE, seconds=0.125).shape == (2000,)
    assert check_clip(clip)[1].num_frames == 8000


# ---- where clips come from ----


def test_bytes_paths_and_archives(tmp_path):
    clip = encoded(tone(), "FLAC")
    (tmp_path / "a.flac").write_bytes(clip["bytes"])
    with ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.write(tmp_path / "a.flac", "yes/a.flac")
    for other in (
        {"bytes": clip["bytes"], "path": None},
        {"bytes": None, "path": str(tmp_path / "a.flac")},
        {"bytes": None, "path": f"zip://yes/a.flac::{tmp_path}/all.zip"},
    ):
        np.testing.assert_array_equal(decode(other, sampling_rate=RATE), decode(clip, sampling_rate=RATE))
        assert check_clip(other) == check_clip(clip)
        assert digest(other) == digest(clip)


def test_equal_files_have_equal_digests():
    assert len(digest(encoded(tone()))) == 32
    others = [encoded(tone(), "FLAC"), encoded(tone(0.6)), encoded(tone(), subtype="FLOAT"), encoded(tone(), rate=8000)]
    assert len({digest(clip) for clip in (encoded(tone()), encoded(tone()), *others)}) == 5


def test_a_name_that_lies_about_the_format_does_no_harm(tmp_path):
    (tmp_path / "a.mp3").write_bytes(encoded(tone(), "FLAC")["bytes"])
    assert check_clip({"bytes": None, "path": str(tmp_path / "a.mp3")})[0] is None


# ---- lengths that headers do not say ----


@pytest.mark.parametrize("size", [0, 0x7FFFF000, 0xFFFFFFFF])
@pytest.mark.parametrize("kind", ["bytes", "path"])
def test_a_wav_that_was_written_to_a_pipe_is_as_long_as_its_sound(tmp_path, size, kind):
    """sox and ffmpeg write such headers; 0, which also stays where a recorder was killed, reads as no sound at all."""
    data = encoded(tone())["bytes"]
    riff, end = data[:4] + size.to_bytes(4, "little") + data[8:40], size.to_bytes(4, "little") + data[44:]
    assert data[36:40] == b"data"
    (tmp_path / "a.wav").write_bytes(riff + end)
    clip = {"bytes": riff + end, "path": None} if kind == "bytes" else {"bytes": None, "path": str(tmp_path / "a.wav")}
    assert read_header(clip).num_frames == 8000
    assert check_clip(clip) == (None, read_header(clip))
    np.testing.assert_array_equal(decode(clip, sampling_rate=RATE), decode(encoded(tone()), sampling_rate=RATE))


def flac_that_says(num_frames: int) -> dict:
    """https://www.rfc-editor.org/rfc/rfc9639#section-8.2: the last 36 bits of the 8 bytes from 18 on."""
    clip = encoded(tone(2), "FLAC")
    field = int.from_bytes(clip["bytes"][18:26], "big") >> 36 << 36 | num_frames
    return {**clip, "bytes": clip["bytes"][:18] + field.to_bytes(8, "big") + clip["bytes"][26:]}


def test_a_flac_that_was_written_to_a_pipe_is_as_long_as_its_sound():
    clip = flac_that_says(0)
    assert read_header(clip).num_frames == 32_000
    assert check_clip(clip)[1].num_frames == 32_000
    np.testing.assert_array_equal(
        decode(clip, sampling_rate=RATE), decode(encoded(tone(2), "FLAC"), sampling_rate=RATE)
    )
    part = decode(clip, sampling_rate=RATE, start_seconds=1.5, seconds=1)
    np.testing.assert_array_equal(part, decode(clip, sampling_rate=RATE)[24_000:])
    with pytest.raises(UnreadableAudio, match="ends before second 2"):
        decode(clip, sampling_rate=RATE, start_seconds=2)


@pytest.mark.parametrize(
    "options", [{"bitrate_mode": "VARIABLE", "compression_level": 0.2}, {"bitrate_mode": "CONSTANT"}]
)
def test_an_mp3_that_says_no_length_is_as_long_as_its_sound(options):
    """libsndfile estimates it from the first frame's bit rate, and of the variable one reads 58 % of the clip, without a word."""
    whole = encoded(tone(4), "MP3", **options)
    clip = without_length(whole)
    frames = check_clip(clip)[1].num_frames
    assert 64_000 <= frames < 65_152, "an encoder fills its last frame"
    assert read_header(clip).num_frames == frames
    part = decode(clip, sampling_rate=RATE, start_seconds=3, seconds=0.5)
    # The rest of the encoder's delay stays in front: mp3 says elsewhere how long it was.
    np.testing.assert_allclose(part, decode(clip, sampling_rate=RATE)[48_000:56_000], atol=1e-6)
    np.testing.assert_allclose(part[576:], decode(whole, sampling_rate=RATE)[48_000 : 56_000 - 576], atol=1e-3)


def test_a_few_missing_samples_are_a_sloppy_header():
    """Less than a tenth of a second: mp3 files often lack their last frame, and not every header is counted right."""
    clip = encoded(tone(2))
    assert check_clip({**clip, "bytes": clip["bytes"][:-3000]}) == (None, Header(30_500, RATE, 1))
    mp3 = encoded(tone(2), "MP3")
    reason, header = check_clip({**mp3, "bytes": mp3["bytes"][:-3]})
    assert reason is None
    assert 31_000 < header.num_frames < read_header(mp3).num_frames == 32_000


# ---- what cannot be decoded ----


@pytest.mark.parametrize("share", [0.5, 0.8])
@pytest.mark.parametrize("name", FORMATS)
def test_a_clip_that_is_cut_short_is_refused(name, share):
    clip = cut(encoded(tone(4), **FORMATS[name]), share)
    reason, header = check_clip(clip)
    assert header is None
    assert reason.startswith(f"{clip['path']} ")
    assert not reason.endswith(".")
    with pytest.raises(UnreadableAudio) as error:
        decode(clip, sampling_rate=RATE)
    assert str(error.value) == reason


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("wav", "a.wav is cut short: its header says 4.00 s, and 2.00 s are there"),
        ("w64", "a.w64 is cut short: its header says 4.00 s, and 2.00 s are there"),
        ("flac", "a.flac cannot be decoded: flac decoder lost sync"),
        ("vorbis", "a.ogg is cut short: it ends in the middle of a page"),
    ],
)
def test_the_reason_says_what_is_missing(name, reason):
    assert check_clip(cut(encoded(tone(4), **FORMATS[name]), 0.5))[0] == reason


def test_a_part_of_what_is_there_can_be_read_of_a_flac_that_is_cut_short():
    assert read_header(cut(encoded(tone(4), "FLAC"), 0.5)).num_frames == 64_000, "the header alone does not tell"
    assert decode(cut(encoded(tone(4), "FLAC"), 0.5), sampling_rate=RATE, seconds=1).shape == (RATE,)


@pytest.mark.parametrize("name", ["flac", "vorbis", "opus"])
def test_damage_in_the_middle_is_found(name):
    clip = encoded(tone(10), **FORMATS[name])
    middle = len(clip["bytes"]) // 2
    damaged = {**clip, "bytes": clip["bytes"][:middle] + bytes(200) + clip["bytes"][middle + 200 :]}
    assert "cannot be decoded: flac decoder" in check_clip(damaged)[0] or "is cut short" in check_clip(damaged)[0]


def test_a_header_that_says_too_much_is_refused():
    reason, _ = check_clip(flac_that_says(100_000))
    assert reason == "a.flac is cut short: its header says 6.25 s, and 2.00 s are there"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("channels", [1, 2])
def test_samples_that_are_not_finite_are_refused(bad, channels):
    samples = np.repeat(tone()[:, None], channels, axis=1)
    samples[7000, 0] = bad
    clip = encoded(samples, subtype="FLOAT")
    assert check_clip(clip) == ("a.wav has samples that are not finite", None)
    with pytest.raises(UnreadableAudio, match=r"^a.wav has samples that are not finite$"):
        decode(clip, sampling_rate=8000)
    assert decode(clip, sampling_rate=RATE, seconds=0.1).shape == (1600,)


@pytest.mark.parametrize("name", ["wav", "aiff", "au", "vorbis"])
def test_clips_of_length_zero_are_refused(name):
    clip = encoded(tone()[:0], **FORMATS[name])
    assert check_clip(clip) == (f"{clip['path']} is of length zero", None)
    for read in (read_header, lambda clip: decode(clip, sampling_rate=RATE)):
        with pytest.raises(UnreadableAudio, match="is of length zero$"):
            read(clip)


def test_an_mp3_of_one_frame_that_says_its_length_has_no_sound():
    clip = encoded(tone(), "MP3")
    only_length = {**clip, "bytes": clip["bytes"][: clip["bytes"].index(clip["bytes"][:2], 4)]}
    assert check_clip(only_length)[0].startswith(
        r"a.mp3 cannot be decoded: it has no frame of sound; it begins with b'\xff"
    )


@pytest.mark.parametrize(
    ("clip", "reason"),
    [
        ({"bytes": b"", "path": "yes/1.wav"}, "yes/1.wav is empty"),
        ({"bytes": b"", "path": None}, "the clip is empty"),
        ({"bytes": None, "path": None}, "there is no clip: neither bytes nor a path"),
        (None, "there is no clip: neither bytes nor a path"),
        ({"bytes": None, "path": "nowhere/1.wav"}, "nowhere/1.wav does not exist"),
        (
            {"bytes": b"<html><body>404</body>", "path": "yes/1.wav"},
            "yes/1.wav cannot be decoded: Format not recognised; it begins with b'<html><body>'",
        ),
        (
            {"bytes": b"\xff", "path": "1.mp3"},
            r"1.mp3 cannot be decoded: Format not recognised; it begins with b'\xff'",
        ),
        ({"bytes": b"ID3\4\0\0\0\0", "path": "1.mp3"}, "1.mp3 cannot be decoded: "),
        ({"bytes": b"RIFF\0\0\0\0WAVE", "path": "1.wav"}, "1.wav cannot be decoded: "),
        ({"bytes": b"OggS", "path": "1.ogg"}, "1.ogg is cut short: it ends in the middle of a page"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_reasons(clip, reason):
    found, header = check_clip(clip)
    assert found.startswith(reason)
    assert header is None
    with pytest.raises(UnreadableAudio):
        read_header(clip)


def test_text_samples_without_a_header_and_folders_are_no_clips(tmp_path):
    for name in ("text.wav", "samples.raw"):
        (tmp_path / name).write_bytes(b"to be or not to be" * 99)
    (tmp_path / "folder.wav").mkdir()
    for name, reason in (
        ("text.wav", "cannot be decoded: Format not recognised; it begins with b'to be or not'"),
        ("samples.raw", "cannot be decoded: samplerate must be specified; it begins with b'to be or not'"),
        ("folder.wav", "cannot be read: "),
    ):
        found, _ = check_clip({"bytes": None, "path": str(tmp_path / name)})
        assert found.startswith(f"{tmp_path}/{name} {reason}")


# ---- headers that lie ----


def wav(*, rate: int = RATE, channels: int = 1, data: bytes = bytes(64_000), size: int | None = None) -> dict:
    """Samples of 8 bits behind a header that says whatever it is told to."""
    numbers = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, channels, rate, rate * channels % 2**32, channels % 2**16, 8)
    body = numbers + struct.pack("<4sI", b"data", len(data) if size is None else size) + data
    return {"bytes": struct.pack("<4sI4s", b"RIFF", 4 + len(body), b"WAVE") + body, "path": "a.wav"}


def silence(seconds: float, file_format: str, **options) -> dict:
    """At 1,000 Hz; lossless formats and their kin need next to nothing for it."""
    buffer = BytesIO()
    with soundfile.SoundFile(buffer, "w", 1000, 1, format=file_format, **options) as file:
        for _ in range(round(seconds)):
            file.write(np.zeros(1000, np.float32))
    return {"bytes": buffer.getvalue(), "path": "a"}


@pytest.mark.parametrize(
    ("clip", "reason"),
    [
        (wav(rate=0), "a.wav cannot be decoded: "),
        (wav(rate=1), "a.wav says that it has 1 samples a second, expected 100 to 10000000"),  # 4 GB at 16 kHz
        (wav(rate=10**9), "a.wav says that it has 1000000000 samples a second, expected 100 to 10000000"),
        (wav(rate=2**32 - 1), "a.wav cannot be decoded: "),
        (wav(channels=0), "a.wav cannot be decoded: Channel count is zero"),
        (wav(channels=65535), "a.wav cannot be decoded: Too many channels specified"),
        (wav(rate=100, data=bytes(2_160_001)), "a.wav lasts 6.0 hours, expected 6 at most: cut it up"),
        (wav(size=1 << 30), "a.wav is cut short: its header says 67108.86 s, and 4.00 s are there"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_header_that_says_what_nobody_records_is_refused(clip, reason):
    assert check_clip(clip)[0].startswith(reason)
    with pytest.raises(UnreadableAudio):
        decode(clip, sampling_rate=RATE)


@pytest.mark.parametrize("file_format", ["FLAC", "W64", "CAF", "RF64", "AU"])
def test_a_header_that_says_2_to_the_40_frames_reserves_no_memory(file_format):
    """Refused, or as long as there is sound; what numbers a file begins with are replaced by the largest ones."""
    clip = encoded(tone(), file_format)
    for position in range(4, 96):
        forged = bytearray(clip["bytes"])
        forged[position : position + 5] = b"\xff" * 5
        reason, header = check_clip({"bytes": bytes(forged), "path": "a"})
        assert reason or header.num_frames <= 2 * len(tone())


def test_silence_of_days_in_a_small_file_is_refused(monkeypatch):
    monkeypatch.setattr(decoding, "LONGEST_SECONDS", 600)
    clip = silence(700, "FLAC", subtype="PCM_S8")
    assert len(clip["bytes"]) < 20_000
    assert check_clip(clip)[0] == "a lasts 0.2 hours, expected 0 at most: cut it up"
    # A header that says no length is believed as far as the limit, and no further.
    forged = bytearray(clip["bytes"])
    forged[21] &= 0xF0
    forged[22:26] = bytes(4)
    assert check_clip({"bytes": bytes(forged), "path": "a"})[0] == "a lasts 0.2 hours, expected 0 at most: cut it up"
    assert check_clip(silence(590, "FLAC"))[0] is None


def test_many_channels_are_read_in_smaller_blocks(monkeypatch):
    sizes = []
    plain = soundfile.SoundFile.read
    monkeypatch.setattr(
        soundfile.SoundFile,
        "read",
        lambda self, out, **options: sizes.append(out.size) or plain(self, out=out, **options),
    )
    clip = wav(channels=1000, data=bytes(range(128, 228)) * 10 * 600)
    assert check_clip(clip) == (None, Header(600, RATE, 1000))
    assert len(sizes) == 3
    assert max(sizes) <= decoding.BLOCK


def test_running_out_of_memory_is_not_the_clip_s_fault(monkeypatch):
    def fail(self, **options):
        raise MemoryError

    monkeypatch.setattr("soundfile.SoundFile.read", fail)
    with pytest.raises(MemoryError):
        check_clip(encoded(tone()))


def test_junk_in_an_mp3_is_not_talked_about(capfd):
    """libmpg123 writes to the standard error past Python, in every epoch and worker."""
    clip = encoded(tone(4), "MP3")
    middle = len(clip["bytes"]) // 2
    noisy = {**clip, "bytes": clip["bytes"][:middle] + bytes(500) + clip["bytes"][middle:] + b"TAG?" * 500}
    soundfile.read(BytesIO(noisy["bytes"]))
    assert "mpg123" in (alone := capfd.readouterr().err).lower() or "Illegal" in alone or "Xing" in alone
    check_clip(noisy)
    read_header(noisy)
    assert capfd.readouterr().err == ""
    print("still here", file=sys.stderr)
    assert capfd.readouterr().err == "still here\n"


# ---- what torchcodec reads ----

OTHERS = {
    "MP4 or M4A": b"\0\0\0\x1cftypisom",
    "WebM or Matroska": b"\x1aE\xdf\xa3\x9fB\x86\x81",
    "WMA": b"0&\xb2u\x8ef\xcf\x11\xa6\xd9",
    "AAC": b"\xff\xf1L@\x1b\xdf\xfc",
    "AMR": b"#!AMR-WB\n",
}


class TorchcodecWithoutFfmpeg:
    """What torchcodec 0.17 does where ffmpeg's libraries are not there; before, the import raised it."""

    def __init__(self, source):
        raise RuntimeError("Could not load libtorchcodec. Likely causes:\n 1. FFmpeg is not properly installed")


class FakeDecoder:
    """torchcodec.decoders.AudioDecoder, as far as it is used, of half a second in stereo at 8 kHz."""

    samples = np.stack([tone(0.5, 8000), -tone(0.5, 8000) / 2])

    def __init__(self, source):
        assert isinstance(source, (bytes, str))
        self.metadata = types.SimpleNamespace(sample_rate=8000, num_channels=2, duration_seconds=9.0)

    def get_all_samples(self):
        return types.SimpleNamespace(data=torch.from_numpy(self.samples))


@pytest.fixture
def with_torchcodec(monkeypatch):
    def install(decoder):
        module = None if decoder is None else types.ModuleType("torchcodec.decoders")
        if decoder is not None:
            module.AudioDecoder = decoder
        monkeypatch.setitem(sys.modules, "torchcodec", module and types.ModuleType("torchcodec"))
        monkeypatch.setitem(sys.modules, "torchcodec.decoders", module)

    return install


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("decoder", [None, TorchcodecWithoutFfmpeg])
def test_a_format_that_libsndfile_does_not_read_names_what_is_missing(with_torchcodec, kind, decoder):
    with_torchcodec(decoder)
    reason, header = check_clip({"bytes": OTHERS[kind] + bytes(99), "path": "1.x"})
    assert reason.startswith(
        f"1.x is {kind}, which libsndfile does not read; torchcodec with ffmpeg does: `pip install torchcodec`, and ffmpeg from "
        "the packages of the system ("
    )
    assert ("torchcodec.decoders" if decoder is None else "Could not load libtorchcodec") in reason
    assert header is None


def test_what_torchcodec_decodes_follows_the_same_rules(with_torchcodec, monkeypatch):
    with_torchcodec(FakeDecoder)
    clip = {"bytes": OTHERS["MP4 or M4A"], "path": "1.m4a"}
    mono = FakeDecoder.samples.mean(axis=0)
    np.testing.assert_allclose(decode(clip, sampling_rate=8000), mono, rtol=1e-5)
    assert decode(clip, sampling_rate=RATE).shape == (8000,)
    np.testing.assert_allclose(
        decode(clip, sampling_rate=8000, start_seconds=0.25, seconds=0.125), mono[2000:3000], rtol=1e-5
    )
    assert read_header(clip) == Header(num_frames=4000, sampling_rate=8000, num_channels=2), (
        "its own length is an estimate"
    )
    assert check_clip(clip) == (None, read_header(clip))
    with monkeypatch.context() as patch:
        patch.setattr(decoding, "LONGEST_SECONDS", 8)  # it says 9
        assert check_clip(clip)[0] == "1.m4a lasts 0.0 hours, expected 0 at most: cut it up"
    with pytest.raises(UnreadableAudio, match="1.m4a ends before second 2"):
        decode(clip, sampling_rate=RATE, start_seconds=2)
    monkeypatch.setattr(FakeDecoder, "samples", np.full((1, 4), np.nan, dtype=np.float32))
    assert check_clip(clip)[0] == "1.m4a has samples that are not finite"
    monkeypatch.setattr(FakeDecoder, "samples", np.zeros((1, 0), dtype=np.float32))
    assert check_clip(clip)[0] == "1.m4a is of length zero"


@pytest.mark.parametrize("when", ["opening", "decoding"])
def test_what_torchcodec_cannot_decode_is_refused(with_torchcodec, when):
    class Failing(FakeDecoder):
        def __init__(self, source):
            super().__init__(source)
            if when == "opening":
                self.get_all_samples()

        def get_all_samples(self):
            raise RuntimeError("open, /build/src/SingleStreamDecoder.cpp:70, Failed to open input buffer: Invalid data")

    with_torchcodec(Failing)
    reason, _ = check_clip({"bytes": OTHERS["AAC"], "path": "1.aac"})
    assert reason == "1.aac cannot be decoded: Failed to open input buffer: Invalid data"


@pytest.mark.parametrize("name", FORMATS)
def test_pitfall_20_usual_formats_need_no_torchcodec(with_torchcodec, name):
    with_torchcodec(None)
    assert check_clip(encoded(tone(), **FORMATS[name]))[0] is None
