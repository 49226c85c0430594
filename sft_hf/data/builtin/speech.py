"""The built-in speech: digits to classify and commands to recognise, spoken by eSpeak NG.

    spoken_digits()["train"][0]    -> {"audio": {"bytes": b"fLaC...", "path": "five_en+Denis_132_46_51.flac"}, "label": 5, ...}
    voice_commands()["train"][0]   -> {"audio": ..., "text": "turn on the hallway light", "speaker": "en-us+f1"}

A speaker is an accent and a voice; no voice is in two splits. Speed, pitch, melody and the silence around each clip are drawn, with one
seed. The clips are 16 kHz, 16 bits: that is the rate of the models, which would resample eSpeak's 22,050 Hz at each reading.
"""

import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from io import BytesIO

import numpy as np
from datasets import Audio, ClassLabel, Dataset, DatasetDict, DatasetInfo, Features, Value

from sft_hf.data.builtin import espeak
from sft_hf.data.splits import hold_out
from sft_hf.errors import DataError

SEED = 42
SAMPLING_RATE = 16_000
DIGITS = "zero one two three four five six seven eight nine".split()
# Accent and voice. Many of eSpeak's voices are another one under a new name: by the distances of their mean spectra, none here is one
# of another split. Whisper tiny.en, given nine commands on end by each, gets 8, 5 and 6 % of the words wrong.
SPEAKERS = {
    "train": (
        "en-us+m1 en-us+m3 en-us+Reed en-us+Storm en-us+edward en-us+max en-us+rob en-us+f1 en-us+f2 en-us+belinda en-us+anika "
        "en-us+zac en+m2 en+m6 en+adam en+Denis en+grandpa en+gustave en+f1 en+f4 en+grandma en-gb-x-rp+m7 en-gb-x-rp+victor "
        "en-gb-x-rp+benjamin en-gb-x-rp+f2 en-us+Alex en-us+klatt3 en+Lee en-gb-scotland+pedro en-gb-scotland+f4"
    ).split(),
    "validation": "en-us+Andrea en-us+norbert en+Annie en+pablo en-us+ed".split(),
    "test": (
        "en-us+f3 en-us+m4 en-us+michel en-us+steph en+david en+f5 en+m8 en-gb-x-rp+linda en-us+marcelo en-gb-scotland+quincy"
    ).split(),
}
DIGIT_REPEATS = {"train": 4, "validation": 4, "test": 2}  # of each digit by each speaker
# By each speaker: phrases that training clips say, and others.
COMMANDS = {"train": (60, 0), "validation": (6, 24), "test": (4, 16)}
OTHER_PHRASES = 0.25
RATES = (120, 170)  # words a minute
PITCHES = (40, 60)  # 50 is the voice's own
RANGES = (40, 65)  # of the melody; 50 is the voice's own
VOLUME = 50  # percent of the library's default, at which some voices are cut off
SILENCE = (0.05, 0.25)  # seconds, before and behind

# A token is a word, words of which one is said, or a name for such words.
WORDS = {
    "ROOM": "kitchen|office|hallway|library|studio",
    "DEVICE": "light|lamp|fan|radio",
    "NUMBER": "one|two|three|four|five|six|seven|eight|nine|ten",
    "NAME": "anna|david|peter",
}
GRAMMAR = (
    "turn on|off the ROOM DEVICE",
    "turn on|off the DEVICE",
    "turn the ROOM light|lamp to NUMBER",
    "start a timer for NUMBER minutes|hours",
    "make the ROOM warmer|cooler|brighter",
    "open|close the ROOM door|window",
    "open|close|lock the front|garage door",
    "play|stop the radio|music",
    "volume up|down",
    "call NAME",
    "send a message to NAME",
    "what time is it",
    "what is the weather today|tomorrow",
)


def spoken_digits() -> DatasetDict:
    """Audio classification: the ten digits, 1,200 clips of 30 speakers to train on, 200 of 5 to validate, 200 of 10 to test.

    Raises DataError where espeakng-loader is not installed.
    """
    return _spoken("spoken_digits", lambda split, _: DIGITS * DIGIT_REPEATS[split], "label", ClassLabel(names=DIGITS))


def voice_commands() -> DatasetDict:
    """Speech recognition: phrases of two to six words, 1,800 clips of 30 speakers to train on, 150 of 5, and 200 of 10 to test.

    Of the validation and test clips, four fifths say a phrase that no training clip says, though its words are said. Raises DataError
    where espeakng-loader is not installed.
    """
    known, others = _phrases()

    def choose(split: str, generator: np.random.Generator) -> list[str]:
        num_known, num_others = COMMANDS[split]
        return [
            *generator.choice(known, size=num_known, replace=False).tolist(),
            *generator.choice(others, size=num_others, replace=False).tolist(),
        ]

    return _spoken("voice_commands", choose, "text", Value("string"))


def _phrases() -> tuple[list[str], list[str]]:
    """The phrases that training clips say, and those that they do not."""
    tokens = [[WORDS.get(token, token).split("|") for token in line.split()] for line in GRAMMAR]
    phrases = [" ".join(words) for choices in tokens for words in itertools.product(*choices)]
    vocabulary = sorted({word for phrase in phrases for word in phrase.split()})
    # With the words as labels, each of them keeps a phrase in train.
    stratify = [[float(word in phrase.split()) for word in vocabulary] for phrase in phrases]
    parts = hold_out(num_rows=len(phrases), fraction=OTHER_PHRASES, seed=SEED, stratify=stratify)
    return [phrases[row] for row in parts.train], [phrases[row] for row in parts.validation]


@dataclass(frozen=True)
class _Utterance:
    """What eSpeak NG is asked to say."""

    text: str
    voice: str
    rate: int
    pitch: int
    range: int
    volume: int = VOLUME

    @property
    def file_name(self) -> str:
        return f"{self.text.replace(' ', '_')}_{self.voice}_{self.rate}_{self.pitch}_{self.range}.flac"


def _spoken(
    name: str, choose: Callable[[str, np.random.Generator], list[str]], column: str, feature: ClassLabel | Value
) -> DatasetDict:
    """Clips of what each speaker of a split says: the texts of `choose(split, generator)`."""
    generators = {split: np.random.default_rng((SEED, number)) for number, split in enumerate(SPEAKERS)}
    utterances = {split: _utterances(split, choose, generator) for split, generator in generators.items()}
    # One process says them all.
    clips = _say(list(itertools.chain(*utterances.values())), name=name)
    splits = {}
    for split, said in utterances.items():
        columns = {
            "audio": [_encoded(next(clips), utterance.file_name, generators[split]) for utterance in said],
            column: [utterance.text for utterance in said],
            "speaker": [utterance.voice for utterance in said],
        }
        splits[split] = _dataset(columns, {column: feature})
    return DatasetDict(splits)


def _utterances(
    split: str, choose: Callable[[str, np.random.Generator], list[str]], generator: np.random.Generator
) -> list[_Utterance]:
    """In no order, since a stream or the first rows should hold something of everything."""
    said = [(text, speaker) for speaker in SPEAKERS[split] for text in choose(split, generator)]
    drawn = generator.integers(*np.transpose([RATES, PITCHES, RANGES]), size=(len(said), 3), endpoint=True).tolist()
    utterances = [_Utterance(*pair, *numbers) for pair, numbers in zip(said, drawn, strict=True)]
    return [utterances[row] for row in generator.permutation(len(utterances))]


def _say(utterances: list[_Utterance], *, name: str) -> Iterator[np.ndarray]:
    """Samples of each utterance, int16 at 16 kHz."""
    try:
        import espeakng_loader
    except ImportError:
        raise DataError(
            f"--dataset_name builtin:{name} is spoken by the package espeakng-loader, which is not installed "
            f"(pip install espeakng-loader, or the extra `demo`)."
        ) from None
    done = subprocess.run(
        [sys.executable, "-I", espeak.__file__, espeakng_loader.get_library_path(), espeakng_loader.get_data_path()],
        input=json.dumps([asdict(utterance) for utterance in utterances]).encode(),
        capture_output=True,
    )
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip()
        raise DataError(f"--dataset_name builtin:{name}: eSpeak NG ended with {done.returncode}: {reason}")
    return _clips(done.stdout)


def _clips(output: bytes) -> Iterator[np.ndarray]:
    """What `espeak.py` wrote, resampled."""
    import soxr

    [sampling_rate] = np.frombuffer(output, np.int32, 1)
    position = 4
    while position < len(output):
        [num_samples] = np.frombuffer(output, np.int32, 1, offset=position)
        samples = np.frombuffer(output, np.int16, num_samples, offset=position + 4)
        yield soxr.resample(samples, sampling_rate, SAMPLING_RATE)
        position += 4 + samples.nbytes


def _encoded(samples: np.ndarray, file_name: str, generator: np.random.Generator) -> dict[str, bytes | str]:
    import soundfile

    silence = np.round(generator.uniform(*SILENCE, size=2) * SAMPLING_RATE).astype(int)
    buffer = BytesIO()
    soundfile.write(buffer, np.pad(samples, silence), SAMPLING_RATE, format="FLAC")
    return {"bytes": buffer.getvalue(), "path": file_name}


def _dataset(columns: dict[str, list], features: dict[str, ClassLabel | Value]) -> Dataset:
    # To encode what already is, datasets asks for torchcodec where a column is declared to be audio; cast to it, it does not.
    stored = {"audio": {"bytes": Value("binary"), "path": Value("string")}, **features, "speaker": Value("string")}
    info = DatasetInfo(description="Spoken by eSpeak NG", features=Features(stored))
    dataset = Dataset.from_dict(columns, features=info.features, info=info)
    return dataset.cast_column("audio", Audio(sampling_rate=SAMPLING_RATE, decode=False))
