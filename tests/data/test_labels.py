"""How raw values are encoded once it is known what the column means, and what is refused."""

import pickle

import numpy as np
import pytest
from datasets import ClassLabel, List

from sft_hf.data.labels import (
    MULTI_LABEL,
    PROBLEM_TYPE_FLAG,
    REGRESSION,
    SINGLE_LABEL,
    Labels,
    encode_column,
    is_missing,
    shown,
    sorted_names,
)
from sft_hf.errors import DataError

NAN = float("nan")


def test_the_mappings_of_a_configuration():
    labels = Labels(SINGLE_LABEL, ("ham", "spam"))
    assert labels.num_labels == 2
    assert labels.id2label == {0: "ham", 1: "spam"}
    assert labels.label2id == {"ham": 0, "spam": 1}
    assert labels.encode("spam") == 1
    assert Labels(MULTI_LABEL, ("a", "b")).encode(["b"]) == [0.0, 1.0]
    assert Labels(REGRESSION, ("value",)).encode(2) == [2.0]
    assert Labels(REGRESSION, ("x", "y")).encode([2, 3]) == [2.0, 3.0]


def test_labels_survive_pickling_and_can_be_keys():
    labels = Labels(SINGLE_LABEL, ("1", "2", "5"))
    copy = pickle.loads(pickle.dumps(labels))
    assert copy == labels
    assert copy.encode(5) == 2
    assert {labels: 1}[copy] == 1


def test_names_are_found_whatever_the_type_of_the_value():
    labels = Labels(SINGLE_LABEL, ("0", "1", "False", "True"))
    values = [1, 1.0, np.int64(1), "1", True, np.bool_(False)]
    assert encode_column(values, labels) == [1, 1, 1, 1, 3, 2]


def test_ids_of_another_split_s_class_label_meet_by_name():
    labels = Labels(MULTI_LABEL, ("c", "a"), class_names=("c", "a"))
    assert labels.encode([0]) == [1.0, 0.0]
    assert labels.encode([0], List(ClassLabel(names=["a", "c"]))) == [0.0, 1.0]
    assert labels.names_in([1], List(ClassLabel(names=["a", "new"]))) == ["new"]


def test_missing_values_are_unlabelled_and_an_empty_list_is_not():
    assert [is_missing(value) for value in (None, NAN, " ", [None, NAN], np.array([NAN]))] == [True] * 5
    assert [is_missing(value) for value in (0, "0", False, [], [None, 1])] == [False] * 5
    assert encode_column([None, NAN, "", [None]], Labels(SINGLE_LABEL, ("a", "b"))) == [None] * 4
    assert encode_column([[], [None], [-1, -1]], Labels(MULTI_LABEL, ("a", "b"))) == [[0.0, 0.0], None, None]
    assert Labels(REGRESSION, ("x", "y")).encode([-1, -1]) == [-1.0, -1.0]


def test_what_an_encoded_label_means():
    assert Labels(SINGLE_LABEL, ("a", "b")).meaning(1) == ("b",)
    assert Labels(MULTI_LABEL, ("a", "b", "c")).meaning([1.0, 0.0, 1.0]) == ("a", "c")
    assert Labels(REGRESSION, ("value",)).meaning([2.5]) == (2.5,)
    assert Labels(REGRESSION, ("value",)).meaning(None) is None


def test_a_vector_of_another_shape_is_refused():
    labels = Labels(MULTI_LABEL, ("0", "1", "2"), layout="vector")
    for value in ([0, 1], [0, 1, 2], [-1, 0, 1]):
        with pytest.raises(DataError, match="expected 3 values, each 0 or 1"):
            labels.encode(value)


def test_values_that_cannot_be_encoded():
    labels = Labels(SINGLE_LABEL, ("a", "b"))
    with pytest.raises(DataError, match=r"Column 'label' has the label 'c': not one of the 2 classes 'a', 'b'\."):
        labels.encode("c")
    with pytest.raises(DataError, match="expected a single value"):
        labels.encode(["a"])
    with pytest.raises(DataError, match="expected a list"):
        Labels(MULTI_LABEL, ("a", "b")).encode("a")
    with pytest.raises(DataError, match="Row 1: Column 'label' has the label 'c'"):
        encode_column(["a", "c"], labels)
    with pytest.raises(DataError, match=r"the ids of its 2 classes are 0 to 1"):
        labels.encode(2, ClassLabel(names=["a", "b"]))


@pytest.mark.parametrize("value", [0.5, float("inf"), b"1", {"id": 1}])
def test_classes_need_whole_numbers(value):
    with pytest.raises(
        DataError, match=f"classes need whole numbers; for others give {PROBLEM_TYPE_FLAG} {REGRESSION}"
    ):
        Labels(SINGLE_LABEL, ("0", "1")).encode(value)


def test_names_in_order_and_in_a_message():
    assert sorted_names(["10", "2", "x"]) == ["10", "2", "x"]
    assert sorted_names(["01", "1", "-3"]) == ["-3", "01", "1"]
    assert shown("abc", limit=2) == "'a', 'b' and 1 more"
    assert shown(["a"], rows={"a": 3}) == "'a' (3 rows)"
