"""The rules by which a label column becomes classes or targets; each test is one rule with its message."""

import logging

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, LargeList, List, Value

from sft_hf.data.columns import LABEL_FLAG
from sft_hf.data.label_resolution import LABEL_NAMES_FLAG, resolve_labels
from sft_hf.data.labels import MULTI_LABEL, PROBLEM_TYPE_FLAG, REGRESSION, SINGLE_LABEL, encode_column
from sft_hf.errors import ArgumentError, DataError

STRING, INTEGER, FLOAT, BOOLEAN = Value("string"), Value("int64"), Value("float64"), Value("bool")
ABC = ClassLabel(names=["c", "a", "b"])
NAN = float("nan")


@pytest.fixture(autouse=True)
def _log_everything(caplog):
    caplog.set_level(logging.INFO, logger="sft_hf.data")


def resolve(train, feature, *, validation=None, test=None, **options):
    splits = {"train": train, "validation": validation, "test": test}
    columns = {split: values for split, values in splits.items() if values is not None}
    return resolve_labels(columns, feature, column_name="label", **options)


def messages(caplog, level=logging.INFO):
    return [record.getMessage() for record in caplog.records if record.levelno == level]


# Strings, integers, booleans


def test_strings_are_sorted_and_silent(caplog):
    labels = resolve(["spam", "ham", "ham"], STRING)
    assert labels.problem_type == SINGLE_LABEL
    assert labels.names == ("ham", "spam")
    assert encode_column(["spam", "ham"], labels) == [1, 0]
    assert not caplog.records


def test_pitfall_6_strings_of_digits_sort_as_numbers():
    assert resolve(["10", "2", "1", "2"], STRING).names == ("1", "2", "10")


def test_integers_in_numeric_order(caplog):
    labels = resolve([10, 2, 1, 0, 3, 4, 5, 6, 7, 8, 9], INTEGER)
    assert labels.names == (*tuple("0123456789"), "10")
    assert labels.encode(10) == 10
    assert not caplog.records


def test_gaps_between_integers_are_closed_and_said(caplog):
    labels = resolve([1, 2, 5], INTEGER)
    assert labels.names == ("1", "2", "5")
    assert encode_column([5, 1, np.int64(2)], labels) == [2, 0, 1]
    assert messages(caplog) == ["Column 'label': 3 integers became the ids 0 to 2 in the order '1', '2', '5'."]


def test_booleans_are_false_then_true():
    labels = resolve([True, False, None], BOOLEAN)
    assert labels.names == ("False", "True")
    assert encode_column([True, False, None], labels) == [1, 0, None]


def test_names_that_differ_in_case_or_white_space_are_a_warning(caplog):
    assert resolve(["Ham", "ham", "spam", "spam "], STRING).num_labels == 4
    assert messages(caplog, logging.WARNING) == [
        "Column 'label': 'Ham', 'ham', 'spam', 'spam ' differ only in case or white space and are 4 classes."
    ]


# ClassLabel


def test_a_class_label_keeps_names_and_order(caplog):
    labels = resolve([0, 1, 2], ABC)
    assert labels.names == ("c", "a", "b")
    assert encode_column([2, 0, "a"], labels) == [2, 0, 1]
    assert not caplog.records


def test_another_split_is_mapped_by_name():
    other = ClassLabel(names=["a", "b", "c"])
    labels = resolve([0, 1, 2], ABC, validation=[0, 1, 2], split_features={"train": ABC, "validation": other})
    assert labels.names == ("c", "a", "b")
    assert encode_column([0, 1, 2], labels, feature=other) == [1, 2, 0]
    assert encode_column([0, 1, 2], labels, feature=ABC) == [0, 1, 2]


def test_a_class_label_split_beside_strings_is_mapped_by_name():
    labels = resolve(["x", "y"], STRING, test=[0, 1], split_features={"test": ClassLabel(names=["y", "x"])})
    assert labels.names == ("x", "y")
    assert encode_column([0, 1, -1], labels, feature=ClassLabel(names=["y", "x"])) == [1, 0, None]


def test_a_class_without_training_rows_is_said(caplog):
    assert resolve([0, 2], ABC).num_labels == 3
    assert messages(caplog) == ["Column 'label': 1 of 3 classes have no training row: 'a'."]


def test_an_id_outside_the_class_label_is_refused():
    with pytest.raises(DataError, match=r"label 3: the ids of its 3 classes are 0 to 2 \(1 rows of test\)"):
        resolve([0, 1], ABC, test=[3])


def test_a_class_called_minus_one_is_a_class():
    labels = resolve([0, 1, 2], ClassLabel(names=["-1", "0", "1"]))
    assert encode_column([0, 1, 2, -1], labels) == [0, 1, 2, None]


# Unlabelled rows


def test_missing_values_are_unlabelled_and_counted(caplog):
    labels = resolve(["a", None, "b", "", " "], STRING, test=[None, None])
    assert labels.names == ("a", "b")
    assert encode_column(["a", None, NAN, ""], labels) == [0, None, None, None]
    assert messages(caplog) == ["Column 'label': unlabelled are 3 of 5 rows of train, 2 of 2 rows of test."]


def test_pitfall_6_minus_one_of_a_class_label_is_unlabelled(caplog):
    labels = resolve([0, 1, 2, -1], ABC, test=[-1, -1])
    assert labels.names == ("c", "a", "b")
    assert encode_column([0, -1], labels) == [0, None]
    assert messages(caplog) == ["Column 'label': unlabelled are 1 of 4 rows of train, 2 of 2 rows of test."]


def test_pitfall_6_minus_one_of_integers_hides_a_test_label(caplog):
    labels = resolve([0, 1], INTEGER, test=[-1, -1, -1])
    assert labels.names == ("0", "1")
    assert encode_column([1, -1], labels) == [1, None]
    assert messages(caplog)[0] == (
        "Column 'label': -1 means unlabelled (3 rows of test); "
        f"if it is a class, name all classes with {LABEL_NAMES_FLAG}."
    )


@pytest.mark.parametrize(("values", "feature"), [([0, 1, -1], INTEGER), (["0", "1", "-1"], STRING)])
def test_minus_one_in_train_is_a_warning_and_can_be_named(values, feature, caplog):
    labels = resolve(values, feature)
    assert encode_column(values, labels) == [0, 1, None]
    assert len(messages(caplog, logging.WARNING)) == 1
    named = resolve(values, feature, label_names=["-1", "0", "1"])
    assert encode_column(values, named) == [1, 2, 0]
    renamed = resolve(values, feature, label_names=["negative", "neutral", "positive"])
    assert encode_column(values, renamed) == [1, 2, 0]


def test_minus_one_beside_one_is_a_class():
    labels = resolve([-1, 1, 1], INTEGER, test=[-1])
    assert labels.names == ("-1", "1")
    assert encode_column([-1, 1], labels) == [0, 1]


def test_minus_one_beside_other_negative_integers_is_a_class():
    assert resolve([-2, -1, 0, 1, 2], INTEGER).names == ("-2", "-1", "0", "1", "2")


def test_no_labelled_training_row_is_an_error():
    for values, feature in (([None, None], STRING), ([None], Value("null")), ([-1, -1], ABC), ([NAN], FLOAT)):
        with pytest.raises(DataError, match=f"no training row is labelled. Choose another column with {LABEL_FLAG}"):
            resolve(values, feature)


# Floats and regression


def test_floats_are_regression(caplog):
    labels = resolve([0.5, 2.0, None], FLOAT)
    assert (labels.problem_type, labels.names) == (REGRESSION, ("value",))
    assert encode_column([0.5, 2, None, NAN], labels) == [[0.5], [2.0], None, None]
    assert messages(caplog) == ["Column 'label': unlabelled are 1 of 3 rows of train."]


def test_whole_floats_with_gaps_are_integers(caplog):
    labels = resolve([1.0, NAN, 0.0, None], FLOAT, test=[0.0, 1.0])
    assert (labels.problem_type, labels.names) == (SINGLE_LABEL, ("0", "1"))
    assert encode_column([1.0, NAN, 0, 1], labels) == [1, None, 0, 1]
    assert messages(caplog)[0] == (
        "Column 'label': 2 floats are whole, 2 are missing: read as integers that the gaps made floats. "
        f"For numbers: regression in {PROBLEM_TYPE_FLAG}."
    )
    assert resolve([1.0, NAN, 0.0], FLOAT, problem_type=REGRESSION).problem_type == REGRESSION


def test_what_a_table_reader_makes_of_integers_with_gaps(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text("text,label\na,1\nb,\nc,2\nd,10\n")
    dataset = Dataset.from_csv(str(path), cache_dir=str(tmp_path))
    labels = resolve(dataset["label"], dataset.features["label"])
    assert encode_column(dataset["label"], labels) == [0, None, 1, 2]
    assert labels.names == ("1", "2", "10")


def test_whole_floats_without_gaps_are_regression_and_said(caplog):
    assert resolve([1.0, 3.0], FLOAT).problem_type == REGRESSION
    assert f"For classes: single_label_classification in {PROBLEM_TYPE_FLAG}" in messages(caplog)[0]
    labels = resolve([1.0, 3.0], FLOAT, problem_type=SINGLE_LABEL)
    assert (labels.names, labels.encode(3.0)) == (("1", "3"), 1)


def test_regression_on_integers_and_on_strings():
    assert resolve([1, 2, 3], INTEGER, problem_type=REGRESSION).encode(2) == [2.0]
    labels = resolve(["1.5", " 2", None], STRING, problem_type=REGRESSION)
    assert encode_column(["1.5", " 2", ""], labels) == [[1.5], [2.0], None]


def test_lists_of_floats_are_several_targets():
    labels = resolve([[0.5, 1.0], [2.0, 3.0], None], List(FLOAT))
    assert (labels.problem_type, labels.names) == (REGRESSION, ("target_0", "target_1"))
    assert encode_column([[0.5, 1.0], None, [NAN, None]], labels) == [[0.5, 1.0], None, None]
    assert resolve([[0.5, 1.0]], List(FLOAT), label_names=["x", "y"]).names == ("x", "y")
    assert resolve([[0, 1], [1, 1]], List(INTEGER), problem_type=REGRESSION).num_labels == 2
    assert resolve([[0.5]], List(FLOAT)).names == ("value",)


def test_minus_one_in_every_row_of_a_regression_test_is_a_warning(caplog):
    assert resolve([0.5, 2.5], FLOAT, test=[-1.0, -1.0]).encode(-1.0) == [-1.0]
    assert "all 2 rows of test are -1" in messages(caplog, logging.WARNING)[0]


@pytest.mark.parametrize(
    ("train", "feature", "options", "message"),
    [
        (["1", "x"], STRING, {}, rf"the label 'x': {PROBLEM_TYPE_FLAG} regression needs numbers \(1 rows of train\)"),
        ([1.0, float("inf")], FLOAT, {}, "the label inf: .* needs finite numbers"),
        ([1.0, 1e39], FLOAT, {}, r"the label 1e\+39: a squared error of it is more than float32 holds"),
        ([[1.0, None], [0.5, 1.0]], List(FLOAT), {}, "some of its targets are missing"),
        ([[1.0], [0.5, 1.0]], List(FLOAT), {}, "needs as many numbers in every row; there are 1, 2"),
        ([[0.1, 0.2]], List(FLOAT), {"label_names": ["x"]}, "has 2 targets here, .* has 1 names"),
        ([0, 1], ABC, {}, "regression needs numbers, or strings that hold them"),
        ([True, False], BOOLEAN, {}, "regression needs numbers"),
        ([["a"]], List(STRING), {}, "regression needs numbers"),
    ],
)
def test_what_regression_refuses(train, feature, options, message):
    with pytest.raises(DataError, match=message):
        resolve(train, feature, problem_type=REGRESSION, **options)


# Multi-label


def test_lists_of_strings_are_multi_label(caplog):
    labels = resolve([["joy"], [], ["joy", "anger"], None], List(STRING))
    assert (labels.problem_type, labels.names) == (MULTI_LABEL, ("anger", "joy"))
    assert encode_column([["joy"], [], ["anger", "joy"], None], labels) == [[0.0, 1.0], [0.0, 0.0], [1.0, 1.0], None]
    assert messages(caplog) == ["Column 'label': unlabelled are 1 of 4 rows of train."]
    assert labels.encode(["joy", "joy"]) == [0.0, 1.0]


def test_pitfall_6_lists_of_integers_in_numeric_order(caplog):
    labels = resolve([[10], [2, 1], []], LargeList(INTEGER))
    assert labels.names == ("1", "2", "10")
    assert labels.encode([10, 1]) == [1.0, 0.0, 1.0]
    assert "3 integers became the ids 0 to 2 in the order '1', '2', '10'" in caplog.text


def test_lists_of_class_label_ids_are_never_vectors():
    feature = List(ClassLabel(names=["b", "a"]))
    labels = resolve([[0, 1], [1, 0], []], feature, validation=[[0]], test=[[-1]])
    assert labels.names == ("b", "a")
    assert encode_column([[0], [1], [-1]], labels) == [[1.0, 0.0], [0.0, 1.0], None]
    other = List(ClassLabel(names=["a", "b"]))
    assert encode_column([[0]], labels, feature=other) == [[0.0, 1.0]]


@pytest.mark.parametrize(
    ("train", "item"),
    [
        ([[0, 1, 1], [0, 0, 0]], Value("int8")),
        ([[0.0, 1.0, 1.0], [0.0, 0.0, 0.0]], Value("float32")),
        ([[False, True, True], [False, False, False]], BOOLEAN),
    ],
)
def test_pitfall_5_lists_of_zeros_and_ones_are_vectors(train, item):
    dataset = Dataset.from_dict({"label": train}, features=Features({"label": List(item)}))
    labels = resolve(dataset["label"], dataset.features["label"])
    assert (labels.problem_type, labels.names, labels.layout) == (MULTI_LABEL, ("0", "1", "2"), "vector")
    assert encode_column(dataset["label"], labels) == [[0.0, 1.0, 1.0], [0.0, 0.0, 0.0]]
    assert all(isinstance(value, float) for value in labels.encode(train[0]))
    assert resolve(train, List(item), label_names=["x", "y", "z"]).names == ("x", "y", "z")


def test_lists_of_two_are_vectors_and_said(caplog):
    labels = resolve([[0, 1], [1, 1]], List(INTEGER))
    assert labels.encode([0, 1]) == [0.0, 1.0]
    assert "the 2 different lists are read as vectors over two labels, not as lists of ids" in messages(caplog)[0]
    assert resolve([[0, 1], [1, 0], [1]], List(INTEGER)).encode([0, 1]) == [1.0, 1.0]


def test_vectors_of_minus_one_are_hidden_labels():
    labels = resolve([[0, 1, 1], [1, 0, 0]], List(INTEGER), test=[[-1, -1, -1]])
    assert encode_column([[0, 1, 1], [-1, -1, -1]], labels) == [[0.0, 1.0, 1.0], None]


@pytest.mark.parametrize(
    ("train", "feature", "options", "message"),
    [
        (
            [[0, 1, 1], [1, 0]],
            List(INTEGER),
            {},
            "the same id twice; if these are 0/1 vectors, all rows need one length",
        ),
        ([[True], [True, False]], List(BOOLEAN), {}, "lists of booleans need two or more values"),
        ([[0.2, 0.8], [1.0, 0.0]], List(FLOAT), {"problem_type": MULTI_LABEL}, "classes need whole numbers"),
        ([[0, 1], [1, 1]], List(INTEGER), {"label_names": ["a"]}, f"have 2 values, {LABEL_NAMES_FLAG} has 1 names"),
        ([["a", None], ["b"]], List(STRING), {}, "a label is missing inside the list"),
        ([["a"], ["a"]], List(STRING), {}, "a single class cannot be learned; its 2 labelled rows all have 'a'"),
        ([[], []], List(STRING), {}, "its 2 labelled rows all have no label"),
    ],
)
def test_what_multi_label_refuses(train, feature, options, message):
    with pytest.raises(DataError, match=message):
        resolve(train, feature, **options)


# Classes of other splits, names given by the user


def test_a_class_only_in_another_split_is_kept_and_warned_of(caplog):
    labels = resolve([0, 1, 3], INTEGER, validation=[2, 2, 0], test=[5])
    assert labels.names == ("0", "1", "3", "2", "5")
    assert encode_column([2, 5], labels) == [3, 4]
    assert messages(caplog, logging.WARNING) == [
        "Column 'label': 1 classes of validation have no training row and can only be counted wrong: '2' (2 rows).",
        "Column 'label': 1 classes of test have no training row and can only be counted wrong: '5' (1 rows).",
    ]


def test_a_class_label_that_only_validation_names(caplog):
    other = ClassLabel(names=["a", "new", "never"])
    labels = resolve([0, 1], ABC, validation=[0, 1], split_features={"validation": other})
    assert labels.names == ("c", "a", "b", "new")
    assert "'new' (1 rows)" in messages(caplog, logging.WARNING)[0]
    assert messages(caplog) == ["Column 'label': 1 of 4 classes have no training row: 'b'."]


def test_multi_label_classes_only_in_another_split(caplog):
    assert resolve([["x"], ["y"]], List(STRING), test=[["a", "x"]]).names == ("x", "y", "a")
    assert "'a' (1 rows)" in messages(caplog, logging.WARNING)[0]


def test_given_names_give_the_order(caplog):
    labels = resolve(["b", "a"], STRING, label_names=["b", "unused", "a"])
    assert encode_column(["b", "a"], labels) == [0, 2]
    assert messages(caplog) == ["Column 'label': 1 of 3 classes have no training row: 'unused'."]
    assert encode_column([0, 1, 2], resolve([0, 1, 2], ABC, label_names=["a", "b", "c"])) == [2, 0, 1]
    assert resolve([["x"], ["y"]], List(STRING), label_names=["y", "x"]).encode(["y"]) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("train", "feature", "given", "encoded"),
    [
        ([0, 1], INTEGER, ["neg", "pos"], [0, 1]),  # by id
        ([0, 2], INTEGER, ["a", "b", "c"], [0, 2]),  # by id, one without a row
        ([1, 5], INTEGER, ["low", "high"], [0, 1]),  # in numeric order
        (["1", "10", "2"], STRING, ["one", "two", "ten"], [0, 2, 1]),
        ([-1, 1], INTEGER, ["neg", "pos"], [0, 1]),
        ([1, 0], INTEGER, ["1", "0"], [0, 1]),  # by name: the values are among the names
        ([True, False], BOOLEAN, ["no", "yes"], [1, 0]),
        ([0, 1], ClassLabel(num_classes=2), ["neg", "pos"], [0, 1]),
    ],
)
def test_given_names_rename_integers_and_booleans(train, feature, given, encoded):
    labels = resolve(train, feature, label_names=given)
    assert labels.names == tuple(given)
    assert encode_column(train, labels) == encoded


def test_renaming_is_said(caplog):
    resolve([1, 5], INTEGER, label_names=["low", "high"])
    assert messages(caplog) == [
        f"Column 'label': 2 labels are renamed by {LABEL_NAMES_FLAG}: 1 -> low, 5 -> high.",
    ]


@pytest.mark.parametrize(
    ("train", "feature", "given"),
    [(["b", "a"], STRING, ["a"]), ([0, 1, 2], INTEGER, ["x", "y"]), ([0, 1], ABC, ["x", "y", "z"])],
)
def test_names_that_lack_a_class_are_refused(train, feature, given):
    with pytest.raises(DataError, match=rf"{LABEL_NAMES_FLAG} lacks \d of its \d labels: '\w' \(1 rows\)"):
        resolve(train, feature, label_names=given)


def test_flags_that_say_nothing_sensible():
    with pytest.raises(ArgumentError, match=f"{PROBLEM_TYPE_FLAG} multi: expected one of single_label"):
        resolve(["a", "b"], STRING, problem_type="multi")
    with pytest.raises(ArgumentError, match=f"{LABEL_NAMES_FLAG} has 'a' more than once"):
        resolve(["a", "b"], STRING, label_names=["a", "b", "a"])


# Columns that cannot be learned


def test_a_single_class_is_an_error():
    with pytest.raises(DataError) as error:
        resolve(["x", "x", None], STRING, validation=["y"])
    assert str(error.value) == (
        "Column 'label' (string): a training set with a single class cannot be learned; its 2 labelled rows all have "
        f"'x'. Choose another column with {LABEL_FLAG}."
    )


def test_strings_that_stand_once_are_hardly_labels():
    texts = [f"text {index}" for index in range(51)]
    with pytest.raises(DataError, match=r"51 of 51 training rows .* 'text 0', .* Is that really the label column\?"):
        resolve(texts, STRING)
    with pytest.raises(DataError, match=f"give {PROBLEM_TYPE_FLAG} regression for numbers"):
        resolve(list(range(51)), INTEGER)
    assert resolve(texts[:50], STRING).num_labels == 50
    assert resolve(texts + texts[:26], STRING).num_labels == 51  # 25 of 77 stand once
    assert resolve(texts, STRING, label_names=texts).num_labels == 51


@pytest.mark.parametrize(
    ("train", "feature", "problem_type", "message"),
    [
        (["a", "b"], STRING, MULTI_LABEL, "needs a list in each row"),
        ([["a"], ["b"]], List(STRING), SINGLE_LABEL, "needs one class in each row"),
        ([0.5, 1.0], FLOAT, SINGLE_LABEL, "the label 0.5: classes need whole numbers; .* regression"),
    ],
)
def test_impossible_problem_types(train, feature, problem_type, message):
    with pytest.raises(DataError, match=message):
        resolve(train, feature, problem_type=problem_type)


# Streams, of which nothing can be read ahead


@pytest.mark.parametrize(
    ("feature", "options", "value", "encoded"),
    [
        (ABC, {}, 2, 2),
        (ABC, {"label_names": ["a", "b", "c"]}, 0, 2),
        (BOOLEAN, {}, True, 1),
        (FLOAT, {}, 1.5, [1.5]),
        (INTEGER, {"problem_type": REGRESSION}, 3, [3.0]),
        (STRING, {"label_names": ["spam", "ham"]}, "ham", 1),
        (INTEGER, {"label_names": ["neg", "pos"]}, 1, 1),
        (INTEGER, {"label_names": ["neg", "pos"]}, -1, None),
        (INTEGER, {"label_names": ["3", "7"]}, 7, 1),
        (List(ABC), {}, [0, 2], [1.0, 0.0, 1.0]),
        (List(STRING), {"label_names": ["x", "y"]}, ["y"], [0.0, 1.0]),
        (List(INTEGER, length=2), {"label_names": ["x", "y"]}, [0, 1], [0.0, 1.0]),
        (List(INTEGER), {"label_names": ["x", "y"]}, [0, 1], [1.0, 1.0]),
        (List(BOOLEAN), {"label_names": ["x", "y"]}, [False, True], [0.0, 1.0]),
        (List(FLOAT, length=2), {"problem_type": REGRESSION}, [0.5, 1.0], [0.5, 1.0]),
        (List(FLOAT), {"problem_type": REGRESSION, "label_names": ["x", "y"]}, [0.5, 1.0], [0.5, 1.0]),
    ],
)
def test_a_stream_says_everything_by_its_feature_or_by_names(feature, options, value, encoded):
    assert resolve_labels({}, feature, column_name="label", **options).encode(value) == encoded


@pytest.mark.parametrize("feature", [STRING, INTEGER, List(STRING), List(INTEGER)])
def test_a_stream_without_names_is_an_error(feature):
    with pytest.raises(DataError, match=f"cannot be read ahead .* name them in order with {LABEL_NAMES_FLAG}"):
        resolve_labels({}, feature, column_name="label")


def test_a_stream_of_float_lists_needs_the_problem_type():
    with pytest.raises(DataError, match=f"say with {PROBLEM_TYPE_FLAG} whether it is multi_label"):
        resolve_labels({}, List(FLOAT), column_name="label")
    with pytest.raises(DataError, match=f"name them in order with {LABEL_NAMES_FLAG}"):
        resolve_labels({}, List(FLOAT), column_name="label", problem_type=REGRESSION)
