"""What a label column means: the problem, the class names, their order, and the code of each raw value.

    labels = resolve_labels({"train": ["spam", "ham", "ham"]}, Value("string"), column_name="label")
    labels.names            -> ("ham", "spam")
    labels.encode("spam")   -> 1
    labels.encode(None)     -> None, unlabelled

Every raw value first becomes a name (an integer its digits, the id of a ClassLabel its class), and the name
an id. So splits whose ids differ meet by name, and "10" never sorts before "2" (pitfall 6).
"""

import logging
import math
import numbers
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import numpy as np
from datasets import ClassLabel

from sft_hf.data.columns import LABEL_FLAG, describe_feature, feature_kind, item_feature
from sft_hf.errors import ArgumentError, DataError

logger = logging.getLogger(__name__)

SINGLE_LABEL = "single_label_classification"
MULTI_LABEL = "multi_label_classification"
REGRESSION = "regression"
PROBLEM_TYPES = (SINGLE_LABEL, MULTI_LABEL, REGRESSION)

LABEL_NAMES_FLAG = "--class_names"
PROBLEM_TYPE_FLAG = "--problem_type"

BOOLEAN_NAMES = ("False", "True")
INTEGER = re.compile(r"[+-]?\d+")
HIDDEN = "-1"  # how the label of a hidden test set is commonly written


@dataclass(frozen=True)
class Labels:
    """The classes or targets of a label column, and how its raw values are encoded.

    `names` are the classes in the order of their ids; for regression the targets. `ids` maps the name of a
    raw value to its id, by default its position in `names`. `layout` is what a raw value is: a scalar, a
    list (of ids, of names, of targets), or a vector (of 0 and 1); by default what the problem and the
    number of names suggest.
    """

    problem_type: str  # single_label_classification | multi_label_classification | regression
    names: tuple[str, ...]
    column_name: str = "label"
    layout: str | None = None
    ids: Mapping[str, int] | None = field(default=None, compare=False, repr=False)
    class_names: tuple[str, ...] | None = None  # of the training split's ClassLabel, in the order of its ids
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
        if is_missing(value):
            return None
        is_list = isinstance(value, (list, tuple, np.ndarray))
        if is_list == (self.layout == "scalar"):
            raise self._refused(value, f"expected {'a single value' if is_list else 'a list'}")
        if self.problem_type == REGRESSION:
            return self._targets(list(value) if is_list else [value])
        class_names = _class_names(feature) or self.class_names
        if not is_list:
            name = self._name(value, class_names)
            return None if name is None or name in self.unlabelled else self._id(name)
        if _is_unlabelled_list(value):
            return None
        if self.layout == "vector":
            return self._active_in_vector(list(value))
        return self._active_in_list(list(value), class_names)

    def _name(self, value: Any, class_names: Sequence[str] | None) -> str | None:
        try:
            return label_name(value, class_names)
        except DataError as error:
            raise self._refused(value, str(error)) from None

    def _id(self, name: str) -> int:
        if name not in self.ids:
            raise self._refused(name, f"not one of the {len(self.ids)} classes {shown(self.ids)}")
        return self.ids[name]

    def _active_in_list(self, items: list, class_names: Sequence[str] | None) -> list[float]:
        names = [self._name(item, class_names) for item in items]
        if None in names:
            raise self._refused(items, "a label is missing inside the list")
        # This also tells a 0/1 vector of the wrong length, or one in a stream, from a list of ids.
        if len(set(names)) < len(names) and not isinstance(items[0], str):
            raise self._refused(items, "the same id twice; if these are 0/1 vectors, all rows need one length")
        active = {self._id(name) for name in names}
        return [float(index in active) for index in range(self.num_labels)]

    def _active_in_vector(self, items: list) -> list[float]:
        if len(items) != self.num_labels or not _is_binary(items):
            raise self._refused(items, f"expected {self.num_labels} values, each 0 or 1")
        return [float(item) for item in items]

    def _targets(self, items: list) -> list[float] | None:
        if len(items) != self.num_labels:
            raise self._refused(items, f"expected {self.num_labels} numbers")
        targets = [self._target(item) for item in items]
        if all(target is None for target in targets):
            return None
        if None in targets:
            raise self._refused(items, "some of its targets are missing")
        return targets

    def _target(self, item: Any) -> float | None:
        if _is_empty(item):
            return None
        try:
            target = math.nan if isinstance(item, (bool, np.bool_)) else float(item)
        except (TypeError, ValueError):
            raise self._refused(item, f"{PROBLEM_TYPE_FLAG} {REGRESSION} needs numbers") from None
        if not math.isfinite(target):
            raise self._refused(item, f"{PROBLEM_TYPE_FLAG} {REGRESSION} needs finite numbers")
        return target

    def _refused(self, value: Any, reason: str) -> DataError:
        return DataError(f"Column '{self.column_name}' has the label {value!r}: {reason}.")


def resolve_labels(
    columns: Mapping[str, Sequence[Any]],
    feature: Any,
    *,
    column_name: str,
    problem_type: str | None = None,
    label_names: Sequence[str] | None = None,
    split_features: Mapping[str, Any] | None = None,
) -> Labels:
    """Decide what a label column means, from the values of every split and the training split's feature.

    `columns` maps train, validation and test to raw values; it is empty where nothing can be read ahead (a
    stream), and then `feature` or `label_names` must say everything. `split_features` are the other splits'
    features.

    - ClassLabel: names and order of the training split; the ids of another split's ClassLabel are mapped by
      name.
    - Strings: sorted, as numbers where all look like integers. Integers: in numeric order, gaps closed.
      Booleans: False, True. `label_names` gives another order. Where it does not contain the values of an
      integer or boolean column it renames them: by id where all are in 0..n-1, else in numeric order where
      there are as many.
    - Floats: regression; but where some are missing and the others whole, integers (a table reader made
      them floats).
    - Lists of names or ids: multi-label, [] says that none applies. Lists of one length >= 2 that hold only
      0 and 1 are vectors, unless their feature is a ClassLabel. Lists of other floats: regression with
      several targets.
    - Unlabelled: None, NaN, empty strings, the id -1 of a ClassLabel, a list of -1 only, and -1 where it is
      the only negative integer beside at least two other classes in the training split and `label_names`
      has no place for it.
    - A class that only validation or test has: kept, after the others. Its rows can only be counted wrong;
      dropping them would flatter the score.

    Raises ArgumentError for an unknown problem type or a name given twice. Raises DataError for a value
    that fits no class, a problem type that the values cannot have, a single class, no labelled training
    row, and for strings or integers of which most stand in one row only.
    """
    _check_flags(problem_type, label_names)
    assert not columns or "train" in columns, "columns needs a train split"
    column = _observe(columns, feature, column_name, label_names, split_features or {})
    problem_type = problem_type or _infer_problem_type(column)
    _check_possible(column, problem_type)
    resolve = {SINGLE_LABEL: _single_label, MULTI_LABEL: _multi_label, REGRESSION: _regression}[problem_type]
    labels = resolve(column)
    _report(column, labels, _count_encoded(column, labels))
    return labels


def encode_column(values: Iterable[Any], labels: Labels, *, feature: Any = None) -> list[int | list[float] | None]:
    """Every raw value encoded; `feature` is that of its split's column. Raises DataError naming the row."""
    encoded = []
    for row, value in enumerate(values):
        try:
            encoded.append(labels.encode(value, feature))
        except DataError as error:
            raise DataError(f"Row {row}: {error}") from None
    return encoded


def unlabelled_rows(values: Iterable[Any], labels: Labels, *, feature: Any = None) -> list[int]:
    """The indices of the rows without a label."""
    return [row for row, label in enumerate(encode_column(values, labels, feature=feature)) if label is None]


def label_name(value: Any, class_names: Sequence[str] | None = None) -> str | None:
    """The name of one raw label, None where it is missing. Raises DataError where it is no label."""
    if _is_empty(value):
        return None
    if isinstance(value, (bool, np.bool_)):
        return str(bool(value))
    if isinstance(value, str):
        return value
    number = _whole_number(value)
    if class_names is None:
        return str(number)
    if not -1 <= number < len(class_names):
        raise DataError(f"the ids of its {len(class_names)} classes are 0 to {len(class_names) - 1}")
    return None if number == -1 else class_names[number]


def sorted_names(names: Iterable[str]) -> list[str]:
    """Names in their order: as numbers where all look like integers, else as strings."""
    names = list(names)
    if all(INTEGER.fullmatch(name) for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def is_missing(value: Any) -> bool:
    """Whether a value is None or NaN."""
    return value is None or (isinstance(value, (float, np.floating, Decimal)) and bool(value != value))


def shown(names: Iterable[Any], limit: int = 10) -> str:
    """The first names, quoted, and how many more there are."""
    names = list(names)
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(repr(name) for name in names[:limit]) + rest


def shown_counts(rows: Mapping[str, int], limit: int = 10) -> str:
    """The first names with their numbers of rows, and how many more there are."""
    rest = f" and {len(rows) - limit} more" if len(rows) > limit else ""
    return ", ".join(f"{name!r} ({number} rows)" for name, number in list(rows.items())[:limit]) + rest


@dataclass(frozen=True)
class _Column:
    """What is known of the label column: its type, and how often each raw value stands in each split."""

    name: str
    kind: str  # of a value, or of a list's items: class | string | boolean | integer | float | null
    type_text: str
    is_list: bool
    fixed_length: int  # of the lists, by their feature; -1 where it says none
    counts: dict[str, Counter]  # split -> raw value (lists as tuples) -> rows; {} where nothing can be read ahead
    class_names: dict[str, tuple[str, ...] | None]  # split -> names of its ClassLabel
    label_names: tuple[str, ...] | None

    @property
    def declared_names(self) -> tuple[str, ...]:
        """The names that the type alone gives, in the order of their ids."""
        return self.class_names["train"] or (BOOLEAN_NAMES if self.kind == "boolean" else ())

    def lists(self) -> list[tuple]:
        """The different lists that carry a label, of all splits."""
        return [value for counter in self.counts.values() for value in counter if _is_labelled_list(value)]

    def info(self, text: str) -> None:
        logger.info("Column '%s': %s.", self.name, text)

    def warn(self, text: str) -> None:
        logger.warning("Column '%s': %s.", self.name, text)

    def error(self, text: str) -> DataError:
        return DataError(f"Column '{self.name}' ({self.type_text}): {text}.")

    def refused(self, split: str, value: Any, rows: int, error: DataError) -> DataError:
        text = str(error).removesuffix(".")
        text = text if text.startswith("Column ") else f"Column '{self.name}' has the label {value!r}: {text}"
        return DataError(f"{text} ({rows} rows of {split}).")


def _check_flags(problem_type: str | None, label_names: Sequence[str] | None) -> None:
    if problem_type not in (None, *PROBLEM_TYPES):
        raise ArgumentError(f"{PROBLEM_TYPE_FLAG} {problem_type}: expected one of {', '.join(PROBLEM_TYPES)}.")
    twice = [name for name, times in Counter(label_names or ()).items() if times > 1]
    if twice:
        raise ArgumentError(f"{LABEL_NAMES_FLAG} has {shown(twice)} more than once.")


def _observe(
    columns: Mapping[str, Sequence[Any]],
    feature: Any,
    column_name: str,
    label_names: Sequence[str] | None,
    split_features: Mapping[str, Any],
) -> _Column:
    item = item_feature(feature)
    kind = feature_kind(feature if item is None else item)
    if kind in ("list", "other"):
        raise DataError(
            f"Column '{column_name}' of type {describe_feature(feature)} holds no labels: expected classes, "
            f"strings, numbers, booleans, or lists of one of them. Choose another one with {LABEL_FLAG}."
        )
    features = {**dict.fromkeys(columns, feature), **split_features, "train": feature}
    return _Column(
        name=column_name,
        kind=kind,
        type_text=describe_feature(feature),
        is_list=item is not None,
        fixed_length=getattr(feature, "length", -1),
        counts={split: Counter(map(_hashable, values)) for split, values in columns.items()},
        class_names={split: _class_names(feature) for split, feature in features.items()},
        label_names=tuple(label_names) if label_names else None,
    )


def _infer_problem_type(column: _Column) -> str:
    if column.kind != "float":
        return MULTI_LABEL if column.is_list else SINGLE_LABEL
    if not column.is_list:
        return SINGLE_LABEL if _are_integers_with_gaps(column) else REGRESSION
    if not column.counts:
        raise column.error(
            f"a stream cannot be read ahead; say with {PROBLEM_TYPE_FLAG} whether it is {MULTI_LABEL} or {REGRESSION}"
        )
    return MULTI_LABEL if _are_vectors(column) else REGRESSION


def _are_integers_with_gaps(column: _Column) -> bool:
    train = column.counts.get("train", Counter())
    present = {value: rows for value, rows in train.items() if not is_missing(value)}
    if not present or not all(float(value).is_integer() for value in present):
        return False
    number = sum(present.values())
    missing = sum(train.values()) - number
    if missing:
        read = f"{missing} are missing: read as integers that the gaps made floats. For numbers: {REGRESSION}"
    else:
        read = f"none is missing: read as numbers. For classes: {SINGLE_LABEL}"
    column.info(f"{number} floats are whole, {read} in {PROBLEM_TYPE_FLAG}")
    return missing > 0


def _check_possible(column: _Column, problem_type: str) -> None:
    if column.kind == "null" and column.counts:
        raise _no_labels(column)
    is_number = column.kind in ("integer", "float", "null") or (column.kind == "string" and not column.is_list)
    needed, is_possible = {
        SINGLE_LABEL: ("one class in each row", not column.is_list),
        MULTI_LABEL: ("a list in each row: of names, of ids, or of 0 and 1", column.is_list),
        REGRESSION: ("numbers, or strings that hold them", is_number),
    }[problem_type]
    if not is_possible:
        raise column.error(
            f"{PROBLEM_TYPE_FLAG} {problem_type} needs {needed}. Leave the flag out, or choose another column with "
            f"{LABEL_FLAG}"
        )


def _single_label(column: _Column) -> Labels:
    counts = _count_names(column, lambda value: [value])
    unlabelled = _hidden_names(column, counts)
    for counter in counts.values():
        for name in unlabelled:
            counter.pop(name, None)
    _check_is_label(column, counts)
    names, ids = _classes(column, counts)
    class_names = column.class_names["train"]
    return Labels(SINGLE_LABEL, names, column.name, "scalar", ids, class_names, unlabelled)


def _multi_label(column: _Column) -> Labels:
    if _are_vectors(column):
        return _multi_label_vectors(column)
    if column.kind == "boolean" and column.lists():
        raise column.error("lists of booleans need two or more values, as many in every row")
    counts = _count_names(column, lambda value: value if _is_labelled_list(value) else ())
    names, ids = _classes(column, counts)
    return Labels(MULTI_LABEL, names, column.name, "list", ids, column.class_names["train"])


def _multi_label_vectors(column: _Column) -> Labels:
    lists = column.lists()
    length = len(lists[0]) if lists else len(column.label_names)
    names = column.label_names or tuple(str(index) for index in range(length))
    if len(names) != length:
        raise column.error(f"the vectors have {length} values, {LABEL_NAMES_FLAG} has {len(names)} names")
    if length == 2:
        column.info(f"the {len(lists)} different lists are read as vectors over two labels, not as lists of ids")
    return Labels(MULTI_LABEL, names, column.name, "vector")


def _regression(column: _Column) -> Labels:
    width = _number_of_targets(column)
    names = column.label_names or (("value",) if width == 1 else tuple(f"target_{i}" for i in range(width)))
    if len(names) != width:
        raise column.error(f"{REGRESSION} has {width} targets here, {LABEL_NAMES_FLAG} has {len(names)} names")
    if column.kind == "string":
        rows = sum(sum(counter.values()) for counter in column.counts.values())
        column.info(f"the strings of {rows} rows are read as numbers")
    return Labels(REGRESSION, names, column.name, "list" if column.is_list else "scalar")


def _number_of_targets(column: _Column) -> int:
    if not column.is_list:
        return 1
    widths = {len(value) for value in column.lists() if value}
    if not widths and column.counts:
        raise _no_labels(column)
    if not widths:
        widths = {column.fixed_length if column.fixed_length > 0 else len(column.label_names or ())}
    if widths == {0}:
        raise _not_said(column)
    if len(widths) > 1:
        raise column.error(f"{REGRESSION} needs as many numbers in every row; there are {shown(sorted(widths))}")
    return widths.pop()


def _are_vectors(column: _Column) -> bool:
    if column.kind in ("class", "string", "null"):
        return False
    lists = column.lists()
    if lists:
        length = len(lists[0])
        return length >= 2 and all(len(value) == length and _is_binary(value) for value in lists)
    if column.counts or not column.label_names:
        return False
    return column.kind in ("boolean", "float") or 2 <= column.fixed_length == len(column.label_names)


def _count_names(column: _Column, items: Callable[[Any], Iterable[Any]]) -> dict[str, Counter]:
    """How often each name stands in each split; `items` gives the labels in one raw value."""
    counts = {split: Counter() for split in column.counts}
    for split, values in column.counts.items():
        class_names = column.class_names[split] or column.class_names["train"]
        for value, rows in values.items():
            try:
                names = [label_name(item, class_names) for item in items(value)]
            except DataError as error:
                raise column.refused(split, value, rows, error) from None
            for name in names:
                counts[split][name] += rows
        counts[split].pop(None, None)
    return counts


def _hidden_names(column: _Column, counts: Mapping[str, Counter]) -> frozenset[str]:
    """The name -1 where it says "no label"; `resolve_labels` states when."""
    # The id -1 of a ClassLabel has no name; a class that is called "-1" is a class.
    if column.kind in ("class", "boolean") or HIDDEN in (column.label_names or ()):
        return frozenset()
    if not counts:
        return frozenset({HIDDEN})
    rows = {split: counter[HIDDEN] for split, counter in counts.items() if counter[HIDDEN]}
    others = set(counts["train"]) - {HIDDEN}
    used = set().union(*counts.values()) - {HIDDEN}
    is_only_negative = not any(INTEGER.fullmatch(name) and int(name) < 0 for name in used)
    is_renamed = "train" in rows and len(others) + 1 == len(column.label_names or ())
    if not rows or len(others) < 2 or not is_only_negative or is_renamed:
        return frozenset()
    log = column.warn if "train" in rows else column.info
    text = ", ".join(f"{number} rows of {split}" for split, number in rows.items())
    log(f"-1 means unlabelled ({text}); if it is a class, name all classes with {LABEL_NAMES_FLAG}")
    return frozenset({HIDDEN})


def _check_is_label(column: _Column, counts: Mapping[str, Counter]) -> None:
    if column.label_names or column.kind == "class" or not counts:
        return
    rows = sum(counts["train"].values())
    once = sum(number == 1 for number in counts["train"].values())
    if rows > 50 and once > rows / 2:
        raise column.error(
            f"{once} of {rows} training rows have a label that no other row has, such as "
            f"{shown(sorted_names(counts['train']), 3)}. Is that really the label column? Choose with {LABEL_FLAG}, "
            f"give {PROBLEM_TYPE_FLAG} {REGRESSION} for numbers, or name the classes with {LABEL_NAMES_FLAG}"
        )


def _classes(column: _Column, counts: Mapping[str, Counter]) -> tuple[tuple[str, ...], dict[str, int]]:
    """The class names in the order of their ids, and the id of each raw name."""
    if column.label_names:
        return column.label_names, _match_label_names(column, counts)
    if not column.declared_names and not counts:
        raise _not_said(column)
    known = column.declared_names or sorted_names(counts["train"])
    elsewhere = set().union(*counts.values()) - set(known)
    names = (*known, *sorted_names(elsewhere))
    if column.kind in ("integer", "float") and names != tuple(str(index) for index in range(len(names))):
        column.info(f"{len(names)} integers became the ids 0 to {len(names) - 1} in the order {shown(names)}")
    _warn_of_near_twins(column, names)
    return names, {name: index for index, name in enumerate(names)}


def _match_label_names(column: _Column, counts: Mapping[str, Counter]) -> dict[str, int]:
    """The id of each raw name under the user's names: by name, else by id, else in order."""
    by_name = {name: index for index, name in enumerate(column.label_names)}
    used = set().union(*counts.values()) if counts else set(column.declared_names)
    # In a stream of integers nothing is seen; names that are no integers can only be meant by id.
    is_open = not counts and column.kind in ("integer", "float")
    if used <= by_name.keys() and not (is_open and not all(map(INTEGER.fullmatch, by_name))):
        return by_name
    ids = _renamed(column, used)
    if ids is None:
        missing = sorted_names(used - by_name.keys())
        rows = {name: sum(counter[name] for counter in counts.values()) for name in missing}
        raise column.error(
            f"{LABEL_NAMES_FLAG} lacks {len(missing)} of its {len(used)} labels: {shown_counts(rows)}. It has "
            f"{shown(by_name)}"
        )
    arrows = [f"{name} -> {column.label_names[index]}" for name, index in ids.items()]
    column.info(f"{len(ids)} labels are renamed by {LABEL_NAMES_FLAG}: {', '.join(arrows[:10])}")
    return ids


def _renamed(column: _Column, used: set[str]) -> dict[str, int] | None:
    number = len(column.label_names)
    if column.kind == "boolean":
        return {name: index for index, name in enumerate(BOOLEAN_NAMES)} if number == 2 else None
    if not all(map(INTEGER.fullmatch, used)):
        return None
    ids = {str(index): index for index in range(number)}
    if used <= ids.keys():
        return ids
    return {name: index for index, name in enumerate(sorted_names(used))} if len(used) == number else None


def _warn_of_near_twins(column: _Column, names: Sequence[str]) -> None:
    folded = [" ".join(name.split()).casefold() for name in names]
    times = Counter(folded)
    twins = [name for name, plain in zip(names, folded, strict=True) if times[plain] > 1]
    if twins:
        column.warn(f"{shown(twins)} differ only in case or white space and are {len(twins)} classes")


def _count_encoded(column: _Column, labels: Labels) -> dict[str, Counter]:
    """How often each encoded value (lists as tuples) stands in each split; every raw value is tried."""
    counts = {split: Counter() for split in column.counts}
    for split, values in column.counts.items():
        names = column.class_names[split]
        feature = ClassLabel(names=list(names)) if names else None
        for value, rows in values.items():
            try:
                encoded = labels.encode(value, feature)
            except DataError as error:
                raise column.refused(split, value, rows, error) from None
            counts[split][_hashable(encoded)] += rows
    return counts


def _report(column: _Column, labels: Labels, encoded: Mapping[str, Counter]) -> None:
    if not encoded:
        return
    rows = {split: (counter[None], sum(counter.values())) for split, counter in encoded.items() if counter[None]}
    if rows:
        text = ", ".join(f"{number} of {total} rows of {split}" for split, (number, total) in rows.items())
        column.info(f"unlabelled are {text}")
    if not any(value is not None for value in encoded["train"]):
        raise _no_labels(column)
    if labels.problem_type == REGRESSION:
        _report_hidden_targets(column, encoded)
    else:
        _check_more_than_one_class(column, labels, encoded["train"])
        _report_untrained_classes(column, labels, encoded)


def _report_hidden_targets(column: _Column, encoded: Mapping[str, Counter]) -> None:
    for split, counter in encoded.items():
        targets = {target for value in counter if value is not None for target in value}
        if split != "train" and targets == {-1.0}:
            rows = sum(counter.values())
            column.warn(f"all {rows} rows of {split} are -1, as hidden labels are written; scores would mean nothing")


def _check_more_than_one_class(column: _Column, labels: Labels, train: Counter) -> None:
    different = [value for value in train if value is not None]
    if len(different) == 1:
        names = shown(_active_names(different[0], labels)) or "no label"
        raise column.error(
            f"a training set with a single class cannot be learned; its {train[different[0]]} labelled rows all have "
            f"{names}. Choose another column with {LABEL_FLAG}"
        )


def _report_untrained_classes(column: _Column, labels: Labels, encoded: Mapping[str, Counter]) -> None:
    rows_of = {split: _rows_of_classes(counter, labels) for split, counter in encoded.items()}
    absent = [name for name in labels.names if not rows_of["train"][name]]
    for split, rows in rows_of.items():
        unseen = {name: rows[name] for name in absent if rows[name]}
        if unseen:
            column.warn(
                f"{len(unseen)} classes of {split} have no training row and can only be counted wrong: "
                f"{shown_counts(unseen)}"
            )
    nowhere = [name for name in absent if not any(rows[name] for rows in rows_of.values())]
    if nowhere:
        column.info(f"{len(nowhere)} of {labels.num_labels} classes have no training row: {shown(nowhere)}")


def _rows_of_classes(encoded: Counter, labels: Labels) -> Counter:
    rows = Counter()
    for value, number in encoded.items():
        for name in () if value is None else _active_names(value, labels):
            rows[name] += number
    return rows


def _active_names(encoded: int | Sequence[float], labels: Labels) -> list[str]:
    if isinstance(encoded, int):
        return [labels.names[encoded]]
    return [name for name, active in zip(labels.names, encoded, strict=True) if active]


def _class_names(feature: Any) -> tuple[str, ...] | None:
    item = item_feature(feature)
    feature = feature if item is None else item
    return tuple(feature.names) if isinstance(feature, ClassLabel) else None


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, (list, np.ndarray)) else value


def _whole_number(value: Any) -> int:
    if not isinstance(value, (numbers.Real, Decimal)):
        raise DataError(f"a {type(value).__name__} is no label")
    if not math.isfinite(value) or value != int(value):
        raise DataError(f"classes need whole numbers; for others give {PROBLEM_TYPE_FLAG} {REGRESSION}")
    return int(value)


def _is_binary(items: Iterable[Any]) -> bool:
    return all(isinstance(item, (bool, np.bool_, numbers.Real, Decimal)) and item in (0, 1) for item in items)


def _is_empty(item: Any) -> bool:
    return is_missing(item) or (isinstance(item, str) and not item.strip())


def _is_unlabelled_list(items: Sequence[Any]) -> bool:
    return len(items) > 0 and (all(map(_is_empty, items)) or all(_is_minus_one(item) for item in items))


def _is_labelled_list(value: Any) -> bool:
    return not is_missing(value) and not _is_unlabelled_list(value)


def _is_minus_one(item: Any) -> bool:
    return not isinstance(item, str) and item == -1


def _no_labels(column: _Column) -> DataError:
    return column.error(f"no training row is labelled. Choose another column with {LABEL_FLAG}")


def _not_said(column: _Column) -> DataError:
    return column.error(
        f"a stream cannot be read ahead and the type does not name the labels; name them in order with "
        f"{LABEL_NAMES_FLAG}"
    )
