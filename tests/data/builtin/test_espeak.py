"""eSpeak NG in a process of its own: what it says, in which order, the same each time, and what it does not know."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sft_hf.data.builtin import espeak

espeakng_loader = pytest.importorskip("espeakng_loader", reason="espeakng-loader, of the extra `demo`, speaks")


def utterance(text: str, voice: str = "en-us+m3", **parameters: int) -> dict:
    return {"text": text, "voice": voice, **parameters}


def run(*utterances: dict, data: str | None = None) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-I", espeak.__file__, espeakng_loader.get_library_path(), data or data_path()],
        input=json.dumps(utterances).encode(),
        capture_output=True,
    )


def data_path() -> str:
    return espeakng_loader.get_data_path()


def spoken(*utterances: dict, data: str | None = None) -> list[np.ndarray]:
    done = run(*utterances, data=data)
    assert (done.returncode, done.stderr) == (0, b"")
    assert np.frombuffer(done.stdout, np.int32, 1) == [22050]
    clips, position = [], 4
    while position < len(done.stdout):
        size = np.frombuffer(done.stdout, np.int32, 1, offset=position)[0]
        clips.append(np.frombuffer(done.stdout, np.int16, size, offset=position + 4))
        position += 4 + 2 * size
    return clips


def pitch(samples: np.ndarray) -> float:
    """The fundamental frequency in Hz, by the highest peak of the autocorrelation from 70 to 400 Hz."""
    samples = samples.astype(np.float64)
    spectrum = np.fft.rfft(samples, 2 * len(samples))
    correlation = np.fft.irfft(np.abs(spectrum) ** 2)
    shortest = 22050 // 400
    return 22050 / (shortest + correlation[shortest : 22050 // 70].argmax())


def test_each_utterance_is_said_in_its_place():
    short, long, short_again = spoken(utterance("one"), utterance("turn on the kitchen light"), utterance("one"))
    assert 0.2 < len(short) / 22050 < 0.8
    assert 1.0 < len(long) / 22050 < 2.0
    assert len(short_again) == pytest.approx(len(short), rel=0.05)
    assert all(np.abs(clip).max() > 5000 for clip in (short, long))


def test_the_same_in_every_process():
    """In one process it is not: each phrase goes on where the last one ended, and f2 breathes at random."""
    first, second, _ = spoken(*[utterance("one")] * 3)
    assert not np.array_equal(first, second)
    said = [utterance("one"), utterance("two", "en-us+f2"), utterance("three", "en-us+klatt3")]
    for one, other in zip(spoken(*said), spoken(*said), strict=True):
        np.testing.assert_array_equal(one, other)


def test_parameters_do_what_they_are_called():
    rate, low, loud = {"rate": 120}, {"pitch": 20, "range": 20}, {"volume": 40}
    usual, slow, deep, soft = spoken(*(utterance("one two three", **change) for change in ({}, rate, low, loud)))
    assert len(slow) > 1.2 * len(usual)
    assert pitch(deep) < 0.9 * pitch(usual)
    assert np.abs(soft).max() == pytest.approx(0.4 * np.abs(usual).max(), rel=0.1)


def test_a_parameter_is_of_one_utterance_when_all_have_it():
    fast, slow, fast_again = spoken(*(utterance("one two", rate=rate) for rate in (180, 100, 180)))
    assert len(fast) == pytest.approx(len(fast_again), rel=0.02)
    assert len(slow) > 1.5 * len(fast)


def test_a_woman_s_voice_is_higher():
    man, woman = spoken(utterance("one two three", "en-us+m4"), utterance("one two three", "en-us+f3"))
    assert 70 < pitch(man) < 120 < 160 < pitch(woman) < 300


def test_a_path_longer_than_the_library_has_room_for(tmp_path):
    folder = tmp_path / ("long" * 30) / ("longer" * 20)
    folder.mkdir(parents=True)
    (folder / "espeak-ng-data").symlink_to(data_path())
    assert len(str(folder)) > 200
    assert len(spoken(utterance("one"), data=str(folder / "espeak-ng-data"))[0]) > 4000


@pytest.mark.parametrize("voice", ["en-us+nobody", "nowhere+m3", "nowhere"])
def test_an_unknown_voice_is_named(voice):
    """The library itself speaks with its own voice where it does not know a variant."""
    done = run(utterance("one", voice))
    assert (done.returncode, done.stderr.decode().strip()) == (1, f"eSpeak NG has no voice {voice}")


def test_data_that_is_not_there_is_named(tmp_path):
    done = run(utterance("one"), data=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.decode().strip().endswith(f"eSpeak NG does not read its data in {tmp_path}")


def test_a_library_that_is_not_there_is_named(tmp_path):
    library = str(tmp_path / "libespeak-ng.so")
    done = subprocess.run(
        [sys.executable, "-I", espeak.__file__, library, data_path()], input=b"[]", capture_output=True
    )
    assert done.returncode == 1
    assert done.stderr.decode().startswith(library)
    assert "Traceback" not in done.stderr.decode()


def test_it_needs_the_standard_library_alone():
    """So that it starts in hundredths of a second, in whatever environment."""
    code = Path(espeak.__file__).read_text()
    imported = {line.split()[1] for line in code.splitlines() if line.startswith(("import ", "from "))}
    assert imported <= sys.stdlib_module_names
