"""Which column is the input and which the label, on the features of real datasets and on unclear ones."""

import logging

import pytest
from datasets import Audio, ClassLabel, Features, Image, LargeList, List, Value

from sft_hf.data.columns import (
    AUDIO_FLAG,
    IMAGE_FLAG,
    LABEL_FLAG,
    TEXT_FLAG,
    TRANSCRIPT_FLAG,
    describe_feature,
    feature_kind,
    find_audio_column,
    find_column,
    find_image_column,
    find_label_column,
    find_mask_column,
    find_text_columns,
    find_transcript_column,
    is_audio,
    is_text,
    item_feature,
)
from sft_hf.data.encoded_audio import EncodedAudio
from sft_hf.errors import DataError

STRING, INTEGER, FLOAT, BOOLEAN = Value("string"), Value("int64"), Value("float32"), Value("bool")
TWO = ClassLabel(names=["no", "yes"])

# name -> (features, text columns, label column); what the Hub or a csv reader gives, flags are not needed
KNOWN = {
    "mrpc": (
        {"sentence1": STRING, "sentence2": STRING, "label": TWO, "idx": INTEGER},
        ["sentence1", "sentence2"],
        "label",
    ),
    "stsb": (
        {"sentence1": STRING, "sentence2": STRING, "label": FLOAT, "idx": INTEGER},
        ["sentence1", "sentence2"],
        "label",
    ),
    "cola": ({"sentence": STRING, "label": TWO, "idx": INTEGER}, ["sentence"], "label"),
    "mnli": (
        {"premise": STRING, "hypothesis": STRING, "label": TWO, "idx": INTEGER},
        ["premise", "hypothesis"],
        "label",
    ),
    "qnli": ({"question": STRING, "sentence": STRING, "label": TWO, "idx": INTEGER}, ["question", "sentence"], "label"),
    "qqp": ({"question1": STRING, "question2": STRING, "label": TWO}, ["question1", "question2"], "label"),
    "boolq": ({"question": STRING, "passage": STRING, "label": TWO, "idx": INTEGER}, ["question", "passage"], "label"),
    "imdb": ({"text": STRING, "label": TWO}, ["text"], "label"),
    "ag_news": ({"text": STRING, "label": ClassLabel(num_classes=4)}, ["text"], "label"),
    "tweet_eval": ({"text": STRING, "label": ClassLabel(num_classes=20)}, ["text"], "label"),
    "csv": ({"text": Value("large_string"), "label": Value("large_string"), "example_id": INTEGER}, ["text"], "label"),
    "amazon_polarity": ({"label": TWO, "title": STRING, "content": STRING}, ["content"], "label"),
    "go_emotions": ({"text": STRING, "labels": List(ClassLabel(num_classes=28)), "id": STRING}, ["text"], "labels"),
    "cased": ({"Text": STRING, "Category": STRING}, ["Text"], "Category"),
    "by type": ({"words": STRING, "is_spam": BOOLEAN}, ["words"], "is_spam"),
    "class by type": ({"words": STRING, "dialect": TWO, "number": INTEGER}, ["words"], "dialect"),
}


@pytest.mark.parametrize("name", KNOWN)
def test_known_datasets_need_no_flag(name):
    features, texts, label = KNOWN[name]
    features = Features(features)
    assert find_label_column(features, given=None) == label
    assert find_text_columns(features, given=None, exclude=[label]) == texts


def test_given_columns_are_taken():
    features = Features({"a": STRING, "b": STRING, "text": STRING, "label": TWO, "other": STRING})
    assert find_text_columns(features, given=["b", "a"], exclude=["label"]) == ["b", "a"]
    assert find_text_columns(features, given="a", exclude=["label"]) == ["a"]
    assert find_label_column(features, given="other") == "other"


def test_a_missing_column_names_those_there_and_the_nearest():
    features = Features({"text": STRING, "label": TWO})
    with pytest.raises(DataError) as error:
        find_label_column(features, given="lable")
    assert str(error.value) == (
        f"{LABEL_FLAG} lable: no such column. Did you mean 'label'? "
        "Columns there: 'text' (string), 'label' (ClassLabel of 2)."
    )
    with pytest.raises(DataError, match=rf"{TEXT_FLAG} zzz: no such column. Columns there"):
        find_text_columns(features, given=["zzz"], exclude=[])


def test_a_given_column_of_the_wrong_type_is_refused():
    features = Features({"text": STRING, "label": TWO, "picture": Image()})
    with pytest.raises(DataError, match=f"{TEXT_FLAG} label: a column of type ClassLabel of 2 cannot be the text"):
        find_text_columns(features, given=["label"], exclude=[])
    with pytest.raises(DataError, match=f"{LABEL_FLAG} picture: a column of type Image cannot be the label"):
        find_label_column(features, given="picture")


def test_a_text_column_named_twice_is_refused():
    with pytest.raises(DataError, match=f"{TEXT_FLAG} a,a names a column twice"):
        find_text_columns(["a", "b", "c"], given=["a", "a"], exclude=[])
    assert find_text_columns(["a", "b", "c"], given=["c", "a", "b"], exclude=[]) == ["c", "a", "b"]


def test_two_usual_names_are_an_error_with_the_candidates():
    features = Features({"text": STRING, "label": TWO, "score": FLOAT, "tweet": STRING})
    with pytest.raises(DataError) as error:
        find_label_column(features, given=None)
    assert str(error.value) == (
        "Several columns could be the label: 'label' (ClassLabel of 2), 'score' (float32). "
        f"Say which one with {LABEL_FLAG}."
    )
    with pytest.raises(DataError, match=r"the text: 'text' \(string\), 'tweet' \(string\)"):
        find_text_columns(features, given=None, exclude=["label"])


def test_two_classes_without_a_usual_name_are_an_error():
    features = Features({"text": STRING, "coarse_label": TWO, "fine_label": TWO})
    with pytest.raises(DataError, match=rf"'coarse_label' .* 'fine_label' .*{LABEL_FLAG}"):
        find_label_column(features, given=None)


@pytest.mark.parametrize("extra", ["text", "answer", "sentence"])
def test_a_pair_beside_another_usual_name_is_an_error(extra):
    features = Features({"question": STRING, "passage": STRING, extra: STRING})
    with pytest.raises(DataError, match=f"'question' .* 'passage' .* '{extra}' .*{TEXT_FLAG}"):
        find_text_columns(features, given=None, exclude=[])


def test_a_pair_needs_strings():
    features = Features({"question": STRING, "passage": STRING, "answer": BOOLEAN})
    assert find_text_columns(features, given=None, exclude=["answer"]) == ["question", "passage"]
    assert find_label_column(features, given=None) == "answer"


def test_no_candidate_lists_all_columns_with_types():
    features = Features({"words": STRING, "number": INTEGER, "label": Image()})
    with pytest.raises(DataError) as error:
        find_label_column(features, given=None)
    assert str(error.value) == (
        "No column looks like the label. Columns there: 'words' (string), 'number' (int64), 'label' (Image). "
        f"Say which one with {LABEL_FLAG}."
    )
    with pytest.raises(DataError, match=rf"No column looks like the text.*{TEXT_FLAG}"):
        find_text_columns(Features({"number": INTEGER}), given=None, exclude=[])
    with pytest.raises(DataError, match="Columns there: none"):
        find_text_columns(Features({}), given=None, exclude=[])


def test_a_string_without_a_usual_name_is_no_label():
    with pytest.raises(DataError, match="No column looks like the label"):
        find_label_column(Features({"text": STRING, "author": STRING}), given=None)


def test_excluded_columns_play_no_role():
    features = Features({"content": STRING, "body": STRING, "label": TWO, "class": TWO})
    assert find_text_columns(features, given=None, exclude=["content", "label"]) == ["body"]
    assert find_label_column(features, given=None, exclude=["class"]) == "label"


def test_names_without_types():
    assert find_label_column(["text", "label", "id"], given=None) == "label"
    assert find_text_columns(["text", "label", "id"], given=None, exclude=["label"]) == ["text"]
    assert find_text_columns(["premise", "hypothesis"], given=None, exclude=[]) == ["premise", "hypothesis"]


def test_another_role_by_name_then_by_type(caplog):
    features = Features({"photo": Image(), "label": TWO})
    options = {"flag": "--image_column", "given": None, "role": "image", "fits": lambda f: isinstance(f, Image)}
    with caplog.at_level(logging.INFO):
        assert find_column(features, usual_names=("photo",), **options) == "photo"
        assert not caplog.records
        assert find_column(features, usual_names=("image",), **options) == "photo"
    assert "Column 'photo' is taken as the image: the only one of a fitting type." in caplog.text


BINARY = Value("binary")
STRUCT = {"bytes": BINARY, "path": STRING}

# name -> (features, image column, mask column or None)
PICTURES = {
    "imagefolder": ({"image": Image(), "label": TWO}, "image", None),
    "cifar": ({"img": Image(), "fine_label": TWO, "coarse_label": TWO}, "img", None),
    "by type": ({"scan": Image(), "file_name": STRING, "checksum": BINARY, "label": TWO}, "scan", None),
    "bytes": ({"bytes": BINARY, "path": STRING, "label": TWO}, "bytes", None),
    "struct": ({"image": STRUCT, "file_name": STRING, "label": TWO}, "image", None),
    "paths": ({"path": STRING, "url": STRING, "label": STRING}, "path", None),
    "large": ({"Image": Value("large_binary"), "label": TWO}, "Image", None),
    "ade20k": ({"image": Image(), "annotation": Image(), "scene_category": TWO}, "image", "annotation"),
    "sidewalk": ({"pixel_values": Image(), "label": Image()}, "pixel_values", "label"),
    "mask by type": ({"image": Image(), "ground_truth": Image()}, "image", "ground_truth"),
    "image by type": ({"street": Image(), "mask": Image()}, "street", "mask"),
    "table": ({"image_path": STRING, "mask_path": STRING}, "image_path", "mask_path"),
    "metadata": ({"image_file_name": STRING, "label_file_name": STRING}, "image_file_name", "label_file_name"),
    "in memory": ({"image": BINARY, "mask": BINARY}, "image", "mask"),
}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_and_masks_need_no_flag_in_either_order(name):
    features, image, mask = PICTURES[name]
    features = Features(features)
    label = mask or ("label" if "label" in features else "fine_label")
    assert find_image_column(features, given=None, exclude=[label]) == image
    if mask:
        assert find_image_column(features, given=None) == image
        assert find_mask_column(features, given=None) == mask
        assert find_mask_column(features, given=None, exclude=[image]) == mask


def test_a_given_picture_may_be_anything_that_can_hold_one():
    features = Features({"image": Image(), "scan": BINARY, "where": STRING, "both": STRUCT, "label": TWO})
    for name in ("scan", "where", "both"):
        assert find_image_column(features, given=name) == name
    with pytest.raises(DataError, match=f"{IMAGE_FLAG} label: a column of type ClassLabel of 2 cannot be the image"):
        find_image_column(features, given="label")
    with pytest.raises(DataError, match=f"{LABEL_FLAG} label: a column of type ClassLabel of 2 cannot be the mask"):
        find_mask_column(features, given="label")
    with pytest.raises(DataError, match=f"{IMAGE_FLAG} imgae: no such column. Did you mean 'image'"):
        find_image_column(features, given="imgae")


def test_two_pictures_are_an_error_with_the_candidates():
    with pytest.raises(DataError) as error:
        find_image_column(Features({"left": Image(), "right": STRUCT, "label": TWO}), given=None)
    assert str(error.value) == (
        f"Several columns could be the image: 'left' (Image), 'right' (struct of bytes, path). Say which one with {IMAGE_FLAG}."
    )
    with pytest.raises(DataError, match=rf"could be the mask: 'mask' \(Image\), 'label' \(Image\).*{LABEL_FLAG}"):
        find_mask_column(Features({"image": Image(), "mask": Image(), "label": Image()}), given=None)


def test_strings_and_bytes_of_other_names_are_no_pictures():
    features = Features({"title": STRING, "checksum": BINARY, "label": TWO})
    message = (
        "No column looks like the image. Columns there: 'title' (string), 'checksum' (binary), "
        f"'label' (ClassLabel of 2). Say which one with {IMAGE_FLAG}."
    )
    with pytest.raises(DataError) as error:
        find_image_column(features, given=None)
    assert str(error.value) == message
    with pytest.raises(DataError, match=rf"No column looks like the mask. Columns there: 'image'.*{LABEL_FLAG}"):
        find_mask_column(Features({"image": Image(), "label": TWO}), given=None)


# name -> (features, audio column, transcript or None, label or None); what the Hub has, or a folder, or a table
CLIPS = {
    "librispeech": (
        {"file": STRING, "audio": Audio(), "text": STRING, "speaker_id": INTEGER, "id": STRING},
        "audio", "text", None,
    ),
    "common voice": (
        {"client_id": STRING, "path": STRING, "audio": Audio(), "sentence": STRING, "up_votes": INTEGER, "accent": STRING},
        "audio", "sentence", None,
    ),
    "fleurs": (
        {"path": STRING, "audio": Audio(), "transcription": STRING, "raw_transcription": STRING, "gender": TWO, "lang_id": TWO},
        "audio", "transcription", None,
    ),
    "ljspeech": ({"id": STRING, "audio": Audio(), "text": STRING, "normalized_text": STRING}, "audio", "text", None),
    "normalized": ({"audio": Audio(), "normalized_text": STRING, "speaker": STRING}, "audio", "normalized_text", None),
    "speech commands": (
        {"file": STRING, "audio": Audio(), "label": TWO, "is_unknown": BOOLEAN, "speaker_id": STRING, "utterance_id": INTEGER},
        "audio", None, "label",
    ),
    "gtzan": ({"file": STRING, "audio": Audio(), "genre": ClassLabel(num_classes=10)}, "audio", None, "genre"),
    "fsdd": ({"audio": Audio(decode=False), "label": STRING, "speaker": STRING}, "audio", None, "label"),
    "speakers that are classes": ({"audio": Audio(), "speaker_id": TWO, "label": STRING}, "audio", None, "label"),
    "an4": ({"audio": Audio(decode=False), "text": STRING, "speaker": STRING}, "audio", "text", None),
    "by type": ({"utterance_audio": Audio(), "file_name": STRING, "text": STRING}, "utterance_audio", "text", None),
    "bytes": ({"audio": BINARY, "path": STRING, "text": STRING}, "audio", "text", None),
    "struct": ({"speech": STRUCT, "file_name": STRING, "Transcript": STRING}, "speech", "Transcript", None),
    "paths": ({"wav_path": STRING, "transcript": STRING, "speaker": STRING}, "wav_path", "transcript", None),
    "nemo": ({"audio_filepath": STRING, "duration": FLOAT, "text": STRING}, "audio_filepath", "text", None),
    "with pictures": ({"image": Image(), "audio": Audio(), "label": TWO}, "audio", None, "label"),
}  # fmt: skip


@pytest.mark.parametrize("name", CLIPS)
def test_clips_transcripts_and_labels_need_no_flag(name):
    features, audio, transcript, label = CLIPS[name]
    features = Features(features)
    assert find_audio_column(features, given=None) == audio
    if transcript:
        assert find_transcript_column(features, given=None, exclude=[audio]) == transcript
    if label:
        assert find_label_column(features, given=None, exclude=[audio]) == label
        assert find_label_column(features, given=None) == label
        assert find_audio_column(features, given=None, exclude=[label]) == audio


def test_names_of_clips_and_transcripts_without_types():
    assert find_audio_column(["audio", "text", "id"], given=None) == "audio"
    assert find_transcript_column(["audio", "sentence", "id"], given=None) == "sentence"


def test_given_clips_and_transcripts():
    features = Features(
        {"audio": Audio(), "noisy": BINARY, "where": STRING, "both": STRUCT, "text": STRING, "label": TWO}
    )
    for name in ("noisy", "where", "both"):
        assert find_audio_column(features, given=name) == name
    assert find_transcript_column(features, given="where") == "where"
    with pytest.raises(DataError, match=f"{AUDIO_FLAG} label: a column of type ClassLabel of 2 cannot be the audio"):
        find_audio_column(features, given="label")
    with pytest.raises(DataError, match=f"{TRANSCRIPT_FLAG} audio: a column of type Audio cannot be the transcript"):
        find_transcript_column(features, given="audio")
    with pytest.raises(DataError, match=f"{AUDIO_FLAG} aduio: no such column. Did you mean 'audio'"):
        find_audio_column(features, given="aduio")


def test_unclear_clips_are_an_error_with_the_candidates():
    with pytest.raises(DataError) as error:
        find_audio_column(Features({"close": Audio(), "far": Audio(), "text": STRING}), given=None)
    assert str(error.value) == (
        f"Several columns could be the audio: 'close' (Audio), 'far' (Audio). Say which one with {AUDIO_FLAG}."
    )
    with pytest.raises(
        DataError, match=rf"No column looks like the audio. Columns there: 'image' \(Image\), .*{AUDIO_FLAG}"
    ):
        find_audio_column(Features({"image": Image(), "title": STRING, "checksum": BINARY}), given=None)
    with pytest.raises(DataError, match="No column looks like the image"):
        find_image_column(Features({"audio": Audio(), "label": TWO}), given=None)


def test_unclear_transcripts_are_an_error_with_the_candidates():
    """The two forms of voxpopuli, of which one is empty in some rows, and two usual names."""
    features = Features({"audio": Audio(), "raw_text": STRING, "normalized_text": STRING, "gender": STRING})
    with pytest.raises(DataError) as error:
        find_transcript_column(features, given=None, exclude=["audio"])
    assert str(error.value) == (
        "Several columns could be the transcript: 'raw_text' (string), 'normalized_text' (string). "
        f"Say which one with {TRANSCRIPT_FLAG}."
    )
    with pytest.raises(DataError, match=rf"'text' \(string\), 'sentence' \(string\).*{TRANSCRIPT_FLAG}"):
        find_transcript_column(Features({"text": STRING, "sentence": STRING}), given=None)
    assert (
        find_transcript_column(Features({"text": STRING, "sentence": STRING}), given=None, exclude=["text"])
        == "sentence"
    )


def test_the_only_string_is_no_transcript():
    """It may be the speaker, and a recogniser would learn to tell the voice by name."""
    with pytest.raises(DataError, match=r"No column looks like the transcript. Columns there: 'speaker' \(string\)"):
        find_transcript_column(Features({"audio": Audio(), "speaker": STRING}), given=None, exclude=["audio"])
    with pytest.raises(DataError, match="No column looks like the transcript"):
        find_transcript_column(Features({"audio": Audio(), "text": List(STRING)}), given=None)


def test_what_holds_clips():
    assert all(map(is_audio, [Audio(), Audio(decode=False), BINARY, Value("large_binary"), STRUCT]))
    assert not any(map(is_audio, [Image(), STRING, TWO, List(FLOAT)]))


def test_kinds_of_features():
    kinds = {
        "string": [STRING, Value("large_string"), Value("string_view")],
        "boolean": [BOOLEAN],
        "integer": [Value("int8"), Value("uint64")],
        "float": [Value("float16"), Value("float64"), Value("decimal128(5,2)")],
        "null": [Value("null")],
        "class": [TWO],
        "list": [List(STRING), LargeList(TWO), [STRING]],
        "other": [Value("date32"), Image(), {"a": STRING}],
    }
    for kind, features in kinds.items():
        assert [feature_kind(feature) for feature in features] == [kind] * len(features)
    assert is_text(Value("large_string"))
    assert not is_text(List(STRING))


def test_pitfall_5_a_list_has_no_dtype():
    feature = List(List(Value("float32")))
    assert item_feature(feature) == List(Value("float32"))
    assert describe_feature(feature) == "list of list of float32"
    assert item_feature(STRING) is None


def test_a_message_calls_every_audio_column_audio():
    """Also one that is read without torchcodec, a class of ours."""
    assert describe_feature(EncodedAudio(decode=False)) == "Audio"
