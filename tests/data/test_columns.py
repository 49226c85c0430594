"""Which column is the input and which the label, on the features of real datasets and on unclear ones."""

import logging

import pytest
from datasets import ClassLabel, Features, Image, LargeList, List, Value

from sft_hf.data.columns import (
    LABEL_FLAG,
    TEXT_FLAG,
    describe_feature,
    feature_kind,
    find_column,
    find_label_column,
    find_text_columns,
    is_text,
    item_feature,
)
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
