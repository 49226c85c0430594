"""Columns of paths: what is completed, what becomes an encoded picture or clip, and what is refused."""

from pathlib import Path

import pytest
from datasets import Dataset, Features, Image, IterableDataset, Value

from sft_hf.data.encoded_audio import EncodedAudio
from sft_hf.data.paths import as_encoded_audio, as_encoded_images, named, path_columns, with_absolute_paths
from sft_hf.errors import DataError


def table(**columns) -> Dataset:
    return Dataset.from_dict(columns)


@pytest.mark.parametrize("stream", [False, True])
def test_columns_of_paths_are_known_by_name_and_by_the_first_path(stream):
    dataset = table(
        image=[None, "", "a.PNG"], Mask=["m.tif"] * 3, path=["a.wav"] * 3, text=["a.png"] * 3, file=["notes.txt"] * 3,
        label=["cat"] * 3, file_name=[None] * 3, img=["https://example.com/1.jpg"] * 3, filename=[1, 2, 3],
        audio=["b.FLAC"] * 3, wav_path=["c.opus"] * 3, speech=["hello.there"] * 3,
    )  # fmt: skip
    dataset = dataset.cast_column("file_name", Value("string"))
    assert path_columns(dataset.to_iterable_dataset() if stream else dataset) == [
        "image",
        "Mask",
        "path",
        "audio",
        "wav_path",
    ]


@pytest.mark.parametrize("stream", [False, True])
def test_paths_become_absolute(tmp_path, monkeypatch, stream):
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    paths = ["a/1.png", "../b/2.png", "/data/3.png", "~/4.png", None, "", "https://example.com/5.png", " 6.png "]
    dataset = table(image=paths, mask=["m.png"] * 8, text=["a/1.png"] * 8)
    dataset = with_absolute_paths(
        dataset.to_iterable_dataset() if stream else dataset, ["image", "mask"], tmp_path / "t"
    )
    rows = list(dataset)
    folder = f"{tmp_path}/t"
    assert [row["image"] for row in rows] == [
        f"{folder}/a/1.png", f"{tmp_path}/b/2.png", "/data/3.png", f"{tmp_path}/me/4.png", None, "",
        "https://example.com/5.png", f"{folder}/6.png",
    ]  # fmt: skip
    assert rows[0]["mask"] == f"{folder}/m.png"
    assert rows[0]["text"] == "a/1.png"
    assert list(dataset.features) == ["image", "mask", "text"]


# as_encoded_..., what a column may already be, and what it becomes
MEDIA = {
    "picture": (as_encoded_images, Image(mode="RGB"), Image(decode=False)),
    "clip": (as_encoded_audio, EncodedAudio(16_000), EncodedAudio(decode=False)),
}


@pytest.mark.parametrize("stream", [None, "new", "mapped"])
@pytest.mark.parametrize("kind", ["decoded", "path", "large path", "bytes", "large bytes", "struct"])
@pytest.mark.parametrize("medium", MEDIA)
def test_any_column_of_pictures_or_clips_becomes_an_encoded_one(tmp_path, medium, kind, stream):
    (tmp_path / "1.x").write_bytes(b"a file")
    path, data = str(tmp_path / "1.x"), b"a file"
    as_encoded, decoded_feature, encoded_feature = MEDIA[medium]
    value, feature, expected = {
        "decoded": (path, decoded_feature, {"bytes": None, "path": path}),
        "path": (path, Value("string"), {"bytes": None, "path": path}),
        "large path": (path, Value("large_string"), {"bytes": None, "path": path}),
        "bytes": (data, Value("binary"), {"bytes": data, "path": None}),
        "large bytes": (data, Value("large_binary"), {"bytes": data, "path": None}),
        "struct": (
            {"path": "1.x", "bytes": data},
            {"path": Value("string"), "bytes": Value("binary")},
            {"bytes": data, "path": "1.x"},
        ),
    }[kind]
    features = Features({"file": feature, "label": Value("int64")})
    dataset = Dataset.from_dict({"file": [value, None], "label": [3, 4]}, features=features)
    if stream:
        dataset = dataset.to_iterable_dataset().decode(False)
    if stream == "mapped":  # as every source's is, to number its rows
        dataset = dataset.map(lambda row: row, features=dataset.features)
    encoded = as_encoded(dataset, "file")
    assert isinstance(encoded, IterableDataset) == bool(stream)
    assert encoded.features == {"file": encoded_feature, "label": Value("int64")}
    rows = list(encoded)
    assert rows == [{"file": expected, "label": 3}, {"file": None, "label": 4}]
    assert list(encoded.map(lambda row: row, features=encoded.features)) == rows
    assert list(encoded.filter(lambda row: row["file"] is None or "path" in row["file"])) == rows


def test_nothing_is_decoded():
    dataset = Dataset.from_dict({"image": [b"no picture"]})
    for as_encoded, _, _ in MEDIA.values():
        assert as_encoded(dataset, "image")[0]["image"]["bytes"] == b"no picture"


ADVICE = (
    "A relative path in a --train_file, --validation_file or --test_file begins at the folder of that file. "
    "--image_column_name, for masks --label_column_name, chooses another column."
)


def test_files_that_are_not_there_are_counted_with_their_rows(tmp_path):
    (tmp_path / "1.png").touch()
    paths = [str(tmp_path / "1.png"), "/no/2.png", None, "/no/3.png"]
    with pytest.raises(DataError) as error:
        as_encoded_images(table(image=paths, example_id=[10, 11, 12, 13]), "image")
    assert str(error.value) == (
        "Column 'image': 2 of 3 values (row 11: /no/2.png, row 13: /no/3.png) name no file that is there. " + ADVICE
    )
    with pytest.raises(DataError, match=r"9 of 9 values \(row 0: n0.png, .*row 4: n4.png, \.\.\.\) name no file"):
        as_encoded_images(table(mask=[f"n{number}.png" for number in range(9)]), "mask")
    with pytest.raises(DataError, match=r"1 of 1 values \(row 0: /no/2.png\) name no file"):
        as_encoded_images(table(image=["/no/2.png"] * 3).to_iterable_dataset(), "image")


@pytest.mark.parametrize("stream", [False, True])
def test_urls_are_not_downloaded(stream):
    dataset = table(image=["https://example.com/1.png"])
    with pytest.raises(DataError) as error:
        as_encoded_images(dataset.to_iterable_dataset() if stream else dataset, "image")
    assert str(error.value) == (
        "Column 'image': 1 of 1 values (row 0: https://example.com/1.png) are URLs, which are not downloaded. Download "
        "the files and give their paths. " + ADVICE
    )


def test_a_missing_clip_names_the_flag_of_clips():
    with pytest.raises(DataError) as error:
        as_encoded_audio(table(audio=["/no/1.wav"]), "audio")
    assert str(error.value) == (
        "Column 'audio': 1 of 1 values (row 0: /no/1.wav) name no file that is there. A relative path in a --train_file, "
        "--validation_file or --test_file begins at the folder of that file. --audio_column_name chooses another column."
    )


def test_a_message_names_the_first_files():
    assert named([Path("a/1.wav"), Path("2.wav")]) == "a/1.wav, 2.wav"
    assert named([Path(f"{number}.wav") for number in range(9)]) == "0.wav, 1.wav, 2.wav, 3.wav, 4.wav, ..."
