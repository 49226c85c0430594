"""The classes or targets of a label column, and the code of each raw value.

    labels = Labels("single_label_classification", ("ham", "spam"))
    labels.encode("spam")   -> 1
    labels.encode(None)     -> None, unlabelled

Every raw value first becomes a name (an integer its digits, the id of a ClassLabel its class), and the name
an id. So splits whose ids differ meet by name. `label_resolution` makes the Labels of a LabelColumn.
"""

import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasets import ClassLabel

from sft_hf.data.columns import describe_feature, feature_kind, item_feature
from sft_hf.errors import DataError

logger = logging.getLogger(__name__)

SINGLE_LABEL = "single_label_classification"
MULTI_LABEL = "multi_label_classification"
REGRESSION = "regression"
SEMANTIC_SEGMENTATION = "semantic_segmentation"
TRANSCRIPTION = "transcription"

PROBLEM_TYPE_FLAG = "--problem_type"
BOOLEAN_NAMES = ("False", "True")
LARGEST_TARGET = 1e18  # the squares of some of them are still less than what float32 holds, 3.4e38
INTEGER = re.compile(r"[+-]?\d+")
LISTS = (list, tuple, np.ndarray)


@dataclass(frozen=True)
class Labels:
    """The classes or targets of a label column, and how its raw values are encoded.

    `names` are the classes in the order of their ids; for regression the targets. `ids` maps the name of a
    raw value to its id, by default its position in `names`. `layout` is what a raw value is: a scalar, a
    list (of ids, of names, of targets), or a vector (of 0 and 1); by default what the problem and the
    number of names suggest.
    """

    problem_type: str  # single_label_classification | multi_label_classification | regression | semantic_segmentation | transcription
    names: tuple[str, ...]  # none of transcripts
    column_name: str = "label"
    layout: str | None = None
    ids: Mapping[str, int] | None = field(default=None, compare=False, repr=False)
    class_names: tuple[str, ...] = ()  # of the training split's ClassLabel, in the order of its ids
    unlabelled: frozenset[str] = frozenset()  # names that mean "no label"

    def __post_init__(self):
        is_scalar = self.problem_type == SINGLE_LABEL or (self.problem_type == REGRESSION and len(self.names) == 1)
        object.__setattr__(self, "layout", self.layout or ("scalar" if is_scalar else "list"))
        object.__setattr__(self, "ids", self.label2id if self.ids is None else self.ids)

    @property
    def num_labels(self) -> int:
        """The number of classes, or of regression targets."""
        return len(self.names)

    @property
    def id2label(self) -> dict[int, str]:
        """As a model's configuration wants it."""
        return dict(enumerate(self.names))

    @property
    def label2id(self) -> dict[str, int]:
        """As a model's configuration wants it."""
        return {name: index for index, name in enumerate(self.names)}

    def encode(self, value: Any, feature: Any = None) -> int | list[float] | None:
        """A raw value as a class id, a list of floats `(num_labels,)` (0 and 1, or targets), None if unlabelled.

        `feature` is that of the value's own split; it matters where it is a ClassLabel with other names or
        another order than the training split's. Raises DataError for a value that is no class, or of
        another shape.
        """
        if self.problem_type == REGRESSION or self.layout == "vector":
            return self._by_position(value)
        names = self.names_in(value, feature)
        if names is None:
            return None
        ids = {self._id(name) for name in names}
        return ids.pop() if self.layout == "scalar" else [float(index in ids) for index in range(self.num_labels)]

    def meaning(self, encoded: int | list[float] | None) -> tuple | None:
        """The names of the active classes of an encoded label, or its targets; None if unlabelled."""
        if encoded is None:
            return None
        if isinstance(encoded, int):
            return (self.names[encoded],)
        if self.problem_type == REGRESSION:
            return tuple(encoded)
        return tuple(name for name, active in zip(self.names, encoded, strict=True) if active)

    def names_in(self, value: Any, feature: Any = None) -> list[str] | None:
        """The names of the classes in a raw value, whether known or not; None if unlabelled.

        `feature` is as for `encode`. Raises DataError for a value that can be no class, or of another shape,
        and for a list with a missing label or with the same id twice.
        """
        items = self._items(value)
        if items is None:
            return None
        class_names = class_names_of(feature) or self.class_names
        names = [self._name(item, class_names) for item in items]
        if self.layout == "scalar":
            return None if names[0] is None or names[0] in self.unlabelled else names
        if None in names:
            raise self._refused(items, "a label is missing inside the list")
        # This also tells a 0/1 vector of the wrong length, or one in a stream, from a list of ids.
        if len(set(names)) < len(names) and not isinstance(items[0], str):
            raise self._refused(items, "the same id twice; if these are 0/1 vectors, all rows need one length")
        return names

    def _items(self, value: Any) -> list | None:
        """The labels in a list, or the one of a scalar; None if unlabelled."""
        if is_missing(value):
            return None
        is_list = isinstance(value, LISTS)
        if is_list == (self.layout == "scalar"):
            raise self._refused(value, f"expected {'a single value' if is_list else 'a list'}")
        if not is_list:
            return [value]
        return None if self.problem_type != REGRESSION and is_hidden(value) else list(value)

    def _name(self, item: Any, class_names: Sequence[str]) -> str | None:
        if is_missing(item):
            return None
        if isinstance(item, (str, bool, np.bool_)):
            return str(item)
        number = self._whole_number(item)
        if not class_names:
            return str(number)
        if not -1 <= number < len(class_names):
            raise self._refused(item, f"the ids of its {len(class_names)} classes are 0 to {len(class_names) - 1}")
        return None if number == -1 else class_names[number]

    def _whole_number(self, item: Any) -> int:
        try:
            number = int(item)
        except (TypeError, ValueError, OverflowError):
            number = None
        if number is None or number != item:
            raise self._refused(item, f"classes need whole numbers; for others give {PROBLEM_TYPE_FLAG} {REGRESSION}")
        return number

    def _id(self, name: str) -> int:
        if name not in self.ids:
            raise self._refused(name, f"not one of the {len(self.ids)} classes {shown(self.ids)}")
        return self.ids[name]

    def _by_position(self, value: Any) -> list[float] | None:
        """A 0/1 vector or regression targets, one for each name."""
        items = self._items(value)
        if items is None:
            return None
        if self.layout == "vector":
            if len(items) != self.num_labels or not is_binary(items):
                raise self._refused(items, f"expected {self.num_labels} values, each 0 or 1")
        elif len(items) != self.num_labels:
            raise self._refused(items, f"expected {self.num_labels} numbers")
        elif any(map(is_missing, items)):
            raise self._refused(items, "some of its targets are missing")
        return [self._number(item) for item in items]

    def _number(self, item: Any) -> float:
        try:
            number = float(item)
        except (TypeError, ValueError):
            raise self._refused(item, f"{PROBLEM_TYPE_FLAG} {REGRESSION} needs numbers") from None
        if not math.isfinite(number):
            raise self._refused(item, f"{PROBLEM_TYPE_FLAG} {REGRESSION} needs finite numbers")
        if abs(number) > LARGEST_TARGET:
            raise self._refused(
                item, f"a squared error of it is more than float32 holds; scale the targets below {LARGEST_TARGET:g}"
            )
        return number

    def _refused(self, value: Any, reason: str) -> DataError:
        return DataError(f"Column '{self.column_name}' has the label {value!r}: {reason}.")


def encode_column(values: Iterable[Any], labels: Labels, *, feature: Any = None) -> list[int | list[float] | None]:
    """Every raw value encoded; `feature` is that of its split's column. Raises DataError naming the row."""
    encoded = []
    for row, value in enumerate(values):
        try:
            encoded.append(labels.encode(value, feature))
        except DataError as error:
            raise DataError(f"Row {row}: {error}") from None
    return encoded


@dataclass(frozen=True)
class LabelColumn:
    """What is known of the label column: its type, and how often each raw value stands in each split."""

    name: str
    feature: Any  # of the training split
    values: dict[str, Counter]  # split -> raw value (`countable`) -> rows; {} where nothing can be read ahead
    features: dict[str, Any]  # split -> its own feature
    label_names: tuple[str, ...]  # given by the user; () where none are

    @property
    def is_list(self) -> bool:
        """Whether each value is a list."""
        return item_feature(self.feature) is not None

    @property
    def kind(self) -> str:
        """Of a value, or of a list's items: class, string, boolean, integer, float or null."""
        return feature_kind(item_feature(self.feature) if self.is_list else self.feature)

    @property
    def fixed_length(self) -> int:
        """Of the lists, by their feature; -1 where it says none."""
        return getattr(self.feature, "length", -1)

    @property
    def declared_names(self) -> tuple[str, ...]:
        """The names that the type alone gives, in the order of their ids."""
        return BOOLEAN_NAMES if self.kind == "boolean" else tuple(class_names_of(self.feature))

    def lists(self) -> list[tuple]:
        """The different lists that carry a label, of all splits."""
        return [value for rows in self.values.values() for value in rows if value is not None and not is_hidden(value)]

    @property
    def are_vectors(self) -> bool:
        """Whether the values are lists of one length of 0 and 1, by position, rather than lists of ids."""
        if not self.is_list or self.kind in ("class", "string", "null"):
            return False
        lists = self.lists()
        if lists:
            length = len(lists[0])
            return length >= 2 and all(len(value) == length and is_binary(value) for value in lists)
        if self.values or not self.label_names:
            return False
        return self.kind in ("boolean", "float") or 2 <= self.fixed_length == len(self.label_names)

    def count(self, read: Callable[[Any, Any], Iterable[Any]]) -> dict[str, Counter]:
        """How often each thing that `read` finds in a raw value stands in each split.

        `read` is given the raw value and its split's feature; its DataErrors are raised with split and rows.
        """
        counts = {split: Counter() for split in self.values}
        for split, values in self.values.items():
            for value, rows in values.items():
                try:
                    found = read(value, self.features[split])
                except DataError as error:
                    raise DataError(f"{str(error).removesuffix('.')} ({rows} rows of {split}).") from None
                for thing in found:
                    counts[split][thing] += rows
        return counts

    def info(self, text: str) -> None:
        """Say something that may be as it should."""
        logger.info("Column '%s': %s.", self.name, text)

    def warn(self, text: str) -> None:
        """Say something that is likely wrong."""
        logger.warning("Column '%s': %s.", self.name, text)

    def error(self, text: str) -> DataError:
        """An error that names the column and its type."""
        return DataError(f"Column '{self.name}' ({describe_feature(self.feature)}): {text}.")


def class_names_of(feature: Any) -> Sequence[str]:
    """The names of a ClassLabel, or of a list of them, in the order of their ids; empty for other features."""
    item = item_feature(feature)
    feature = feature if item is None else item
    return feature.names if isinstance(feature, ClassLabel) else ()


def is_missing(value: Any) -> bool:
    """Whether a value is None, NaN or a blank string, or a list of nothing else; an empty list is a value."""
    if isinstance(value, LISTS):
        return len(value) > 0 and all(map(is_missing, value))
    if isinstance(value, str):
        return not value.strip()
    return value is None or bool(value != value)


def countable(value: Any) -> Any:
    """A raw value that can be counted: lists as tuples, None for all that are missing, since NaN equals nothing."""
    if is_missing(value):
        return None
    return tuple(value) if isinstance(value, LISTS) else value


def is_hidden(items: Sequence[Any]) -> bool:
    """Whether a list holds only -1, as the labels of a hidden test set are written."""
    return len(items) > 0 and all(item == -1 for item in items)


def is_binary(items: Iterable[Any]) -> bool:
    """Whether each item is 0 or 1, whatever its type."""
    return all(item in (0, 1) for item in items)


def sorted_names(names: Iterable[str]) -> list[str]:
    """Names in their order: as numbers where all look like integers, else as strings."""
    names = list(names)
    if all(map(INTEGER.fullmatch, names)):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def shown(names: Iterable[Any], limit: int = 10, *, rows: Mapping[Any, int] | None = None) -> str:
    """The first names, quoted, with their numbers of rows if given, and how many more there are."""
    names = list(names)
    texts = [repr(name) if rows is None else f"{name!r} ({rows[name]} rows)" for name in names[:limit]]
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(texts) + rest
