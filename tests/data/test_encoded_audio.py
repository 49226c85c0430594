"""Pitfall 20: columns of clips, and what lists and encodes them, without torchcodec."""

import sys
from pathlib import Path

import pytest
from datasets import Audio, Dataset, DatasetInfo, Features, Value, load_dataset_builder
from datasets.features.features import generate_from_dict

from sft_hf.data.encoded_audio import EncodedAudio, undecoded, without_torchcodec


@pytest.fixture(autouse=True)
def _no_torchcodec(monkeypatch):
    for name in ("torchcodec", "torchcodec.encoders", "torchcodec.decoders"):
        monkeypatch.setitem(sys.modules, name, None)


def clips(feature=None) -> Dataset:
    """Two clips, one in memory and one in a file, as a parquet file of the Hub has them."""
    rows = {"audio": [{"bytes": b"1", "path": "1.wav"}, {"bytes": None, "path": "/no/2.wav"}], "text": ["yes", "no"]}
    dataset = Dataset.from_dict(rows)
    return dataset.cast_column("audio", Audio() if feature is None else feature)


def test_datasets_own_feature_needs_it():
    """Where this fails, the whole module can go."""
    with pytest.raises(ImportError, match="torchcodec"):
        Audio(decode=False).encode_example("1.wav")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("yes/1.wav", {"bytes": None, "path": "yes/1.wav"}),
        (Path("yes/1.wav"), {"bytes": None, "path": "yes/1.wav"}),
        (b"RIFF", {"bytes": b"RIFF", "path": None}),
        (bytearray(b"RIFF"), {"bytes": b"RIFF", "path": None}),
        ({"bytes": b"RIFF", "path": "1.wav"}, {"bytes": b"RIFF", "path": "1.wav"}),
        ({"path": "1.wav"}, {"bytes": None, "path": "1.wav"}),
    ],
)
def test_values_are_encoded_as_they_come(value, expected):
    assert EncodedAudio(decode=False).encode_example(value) == expected
    features = Features({"audio": EncodedAudio(decode=False)})
    assert Dataset.from_dict({"audio": [value]}, features=features)[0] == {"audio": expected}


@pytest.mark.parametrize("kind", ["string", "large_string"])
def test_a_stream_of_paths_can_be_cast(kind):
    stream = Dataset.from_dict(
        {"audio": ["1.wav", None]}, features=Features({"audio": Value(kind)})
    ).to_iterable_dataset()
    rows = list(stream.cast_column("audio", EncodedAudio(decode=False)))
    assert rows == [{"audio": {"bytes": None, "path": "1.wav"}}, {"audio": None}]


def test_in_a_file_of_datasets_it_is_an_audio_like_any_other():
    written = Features({"audio": EncodedAudio(16_000, decode=False)}).to_dict()
    assert generate_from_dict(written["audio"]) == Audio(16_000, decode=False)
    assert isinstance(EncodedAudio(decode=False), Audio)
    mapped = undecoded(clips()).map(lambda row: row)
    assert Features.from_arrow_schema(mapped.data.schema)["audio"] == Audio(decode=False), "not to be decoded later"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("feature", [Audio(16_000), Audio(16_000, decode=False), EncodedAudio(16_000, decode=False)])
def test_no_clip_is_decoded(stream, feature):
    dataset = clips(feature)
    rows = undecoded(dataset.to_iterable_dataset() if stream else dataset)
    assert rows.features == {"audio": EncodedAudio(16_000, decode=False), "text": Value("string")}
    assert [row["audio"]["path"] for row in rows] == ["1.wav", "/no/2.wav"]
    assert dataset.features["audio"] == feature, "what was given stays as it was"


def test_streams_can_be_mapped():
    stream = undecoded(clips().to_iterable_dataset())
    stream = stream.map(lambda row: {**row, "text": row["text"].upper()}, features=stream.features)
    stream = stream.filter(lambda row: row["audio"]["bytes"] is None)
    assert list(stream) == [{"audio": {"bytes": None, "path": "/no/2.wav"}, "text": "NO"}]


def test_datasets_without_clips_are_left_alone():
    dataset = Dataset.from_dict({"text": ["a"]})
    assert undecoded(dataset) is dataset
    assert list(undecoded(dataset.to_iterable_dataset())) == [{"text": "a"}]
    unknown = dataset.to_iterable_dataset().map(lambda row: row)
    assert unknown.features is None
    assert list(undecoded(unknown)) == [{"text": "a"}]


def sounds(folder: Path) -> Path:
    for name in ("train/1.wav", "train/2.wav", "test/1.wav"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"sound")
    for split, rows in (("train", "1.wav,yes\n2.wav,no\n"), ("test", "1.wav,yes\n")):
        (folder / split / "metadata.csv").write_text(f"file_name,text\n{rows}")
    return folder


def test_the_builder_of_a_folder_of_sounds_lists_them(tmp_path):
    """Also the cache is one that datasets, with torchcodec, decodes from."""
    options = {"data_dir": str(sounds(tmp_path / "data")), "cache_dir": str(tmp_path / "cache")}
    with pytest.raises(Exception, match="An error occurred while generating the dataset"):
        load_dataset_builder("audiofolder", **options).download_and_prepare()
    builder = without_torchcodec(load_dataset_builder("audiofolder", **options))
    builder.download_and_prepare()
    (written,) = (tmp_path / "cache").rglob("dataset_info.json")
    assert DatasetInfo.from_directory(str(written.parent)).features["audio"] == Audio()
    splits = builder.as_dataset()
    assert [row["text"] for row in undecoded(splits["train"])] == ["yes", "no"]
    assert undecoded(splits["test"])[0]["audio"] == {"bytes": None, "path": f"{tmp_path}/data/test/1.wav"}


def test_the_builder_of_a_folder_of_sounds_streams_them(tmp_path):
    builder = without_torchcodec(load_dataset_builder("audiofolder", data_dir=str(sounds(tmp_path))))
    rows = undecoded(builder.as_streaming_dataset()["train"].decode(False))
    assert [row["audio"]["path"] for row in rows] == [f"{tmp_path}/train/1.wav", f"{tmp_path}/train/2.wav"]
