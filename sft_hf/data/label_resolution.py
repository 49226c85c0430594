"""What a label column means: the problem, the class names and their order, from its type and its values.

    labels = resolve_labels({"train": ["spam", "ham", "ham"]}, Value("string"), column_name="label")
    labels.names            -> ("ham", "spam")

Names that look like integers are ordered as numbers, so "10" never sorts before "2" (pitfall 6).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sft_hf.data.columns import LABEL_FLAG, is_label
from sft_hf.data.labels import (
    BOOLEAN_NAMES,
    INTEGER,
    MULTI_LABEL,
    PROBLEM_TYPE_FLAG,
    REGRESSION,
    SINGLE_LABEL,
    LabelColumn,
    Labels,
    class_names_of,
    countable,
    is_hidden,
    shown,
    sorted_names,
)
from sft_hf.errors import ArgumentError

LABEL_NAMES_FLAG = "--class_names"
PROBLEM_TYPES = (SINGLE_LABEL, MULTI_LABEL, REGRESSION)
HIDDEN = "-1"  # how the label of a hidden test set is commonly written

NO_LABELS = f"no training row is labelled. Choose another column with {LABEL_FLAG}"
NOT_SAID = f"a stream cannot be read ahead and its type names no labels; name them in order with {LABEL_NAMES_FLAG}"

CountsBySplit = Mapping[str, Counter]  # split -> class name, or labels of a row -> rows; {} of a stream


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
    stream), and then `feature` or `label_names` must say everything. `feature` is one that
    `find_label_column` accepts; `split_features` are the other splits' features.

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
    - Unlabelled: None, NaN, blank strings, lists of only these or only -1, the id -1 of a ClassLabel, and -1
      where it is the only negative integer beside at least two other classes in the training split and
      `label_names` has no place for it.
    - A class that only validation or test has: kept, after the others. Its rows can only be counted wrong;
      dropping them would flatter the score.

    Raises ArgumentError for an unknown problem type or a name given twice. Raises DataError for a value
    that fits no class, a problem type that the values cannot have, a single class, no labelled training
    row, and for strings or integers of which most stand in one row only.
    """
    assert is_label(feature), feature
    assert not columns or "train" in columns, "columns needs a train split"
    _check_flags(problem_type, label_names)
    column = LabelColumn(
        column_name,
        feature,
        {split: Counter(map(countable, values)) for split, values in columns.items()},
        {**dict.fromkeys(columns, feature), **(split_features or {}), "train": feature},
        tuple(label_names or ()),
    )
    problem_type = problem_type or _infer_problem_type(column)
    _check_possible(column, problem_type)
    if problem_type == REGRESSION:
        labels = _regression(column)
    elif column.are_vectors:
        labels = _vectors(column)
    else:
        labels = _classes(column, problem_type)
    _report(column, labels)
    return labels


def _check_flags(problem_type: str | None, label_names: Sequence[str] | None) -> None:
    if problem_type not in (None, *PROBLEM_TYPES):
        raise ArgumentError(f"{PROBLEM_TYPE_FLAG} {problem_type}: expected one of {', '.join(PROBLEM_TYPES)}.")
    twice = [name for name, times in Counter(label_names or ()).items() if times > 1]
    if twice:
        raise ArgumentError(f"{LABEL_NAMES_FLAG} has {shown(twice)} more than once.")


def _infer_problem_type(column: LabelColumn) -> str:
    if column.kind != "float":
        return MULTI_LABEL if column.is_list else SINGLE_LABEL
    if not column.is_list:
        return SINGLE_LABEL if _are_integers_with_gaps(column) else REGRESSION
    if not column.values:
        raise column.error(
            f"a stream cannot be read ahead; say with {PROBLEM_TYPE_FLAG} whether it is {MULTI_LABEL} or {REGRESSION}"
        )
    return MULTI_LABEL if column.are_vectors else REGRESSION


def _are_integers_with_gaps(column: LabelColumn) -> bool:
    train = column.values.get("train", Counter())
    missing, whole = train[None], train.total() - train[None]
    if not whole or not all(float(value).is_integer() for value in train if value is not None):
        return False
    if missing:
        read = f"{missing} are missing: read as integers that the gaps made floats. For numbers: {REGRESSION}"
    else:
        read = f"none is missing: read as numbers. For classes: {SINGLE_LABEL}"
    column.info(f"{whole} floats are whole, {read} in {PROBLEM_TYPE_FLAG}")
    return missing > 0


def _check_possible(column: LabelColumn, problem_type: str) -> None:
    is_number = column.kind in ("integer", "float", "null") or (column.kind == "string" and not column.is_list)
    needed, is_possible = {
        SINGLE_LABEL: ("one class in each row", not column.is_list),
        MULTI_LABEL: ("a list in each row: of names, of ids, or of 0 and 1", column.is_list),
        REGRESSION: ("numbers, or strings that hold them", is_number),
    }[problem_type]
    if not is_possible:
        raise column.error(f"{PROBLEM_TYPE_FLAG} {problem_type} needs {needed}. Leave it out, or change {LABEL_FLAG}")


def _vectors(column: LabelColumn) -> Labels:
    width = _width(column)
    names = _names_by_position(column, [str(index) for index in range(width)], f"the vectors have {width} values")
    if width == 2:
        number = len(column.lists())
        column.info(f"the {number} different lists are read as vectors over two labels, not as lists of ids")
    return Labels(MULTI_LABEL, names, column.name, "vector")


def _regression(column: LabelColumn) -> Labels:
    width = _width(column) if column.is_list else 1
    default = ["value"] if width == 1 else [f"target_{index}" for index in range(width)]
    names = _names_by_position(column, default, f"{REGRESSION} has {width} targets here")
    return Labels(REGRESSION, names, column.name, "list" if column.is_list else "scalar")


def _width(column: LabelColumn) -> int:
    """How many values each list has."""
    widths = {len(value) for value in column.lists() if value}
    if not column.values:
        widths = {column.fixed_length if column.fixed_length > 0 else len(column.label_names)} - {0}
    if not widths:
        raise column.error(NO_LABELS if column.values else NOT_SAID)
    if len(widths) > 1:
        raise column.error(f"{REGRESSION} needs as many numbers in every row; there are {shown(sorted(widths))}")
    return widths.pop()


def _names_by_position(column: LabelColumn, default: Sequence[str], there: str) -> tuple[str, ...]:
    names = column.label_names or tuple(default)
    if len(names) != len(default):
        raise column.error(f"{there}, {LABEL_NAMES_FLAG} has {len(names)} names")
    return names


def _classes(column: LabelColumn, problem_type: str) -> Labels:
    if column.is_list and column.kind == "boolean" and column.lists():
        raise column.error("lists of booleans need two or more values, as many in every row")
    labels = Labels(problem_type, (), column.name, class_names=tuple(class_names_of(column.feature)))
    counts = column.count(lambda value, feature: labels.names_in(value, feature) or ())
    if not column.is_list and _is_minus_one_hidden(column, counts):
        labels = replace(labels, unlabelled=frozenset({HIDDEN}))
        for counter in counts.values():
            del counter[HIDDEN]
    if problem_type == SINGLE_LABEL:
        _check_is_label(column, counts)
    names, ids = _names_and_ids(column, counts)
    return replace(labels, names=names, ids=ids)


def _is_minus_one_hidden(column: LabelColumn, counts: CountsBySplit) -> bool:
    """Whether -1 says "no label"; `resolve_labels` states when."""
    # The id -1 of a ClassLabel has no name; a class that is called "-1" is a class.
    if column.kind == "class" or HIDDEN in column.label_names:
        return False
    if not counts:
        return True
    train = counts["train"]
    negative = [name for name in _total(counts) if INTEGER.fullmatch(name) and int(name) < 0]
    is_renamed = HIDDEN in train and len(train) == len(column.label_names)
    if negative != [HIDDEN] or len(train.keys() - {HIDDEN}) < 2 or is_renamed:
        return False
    rows = ", ".join(f"{counter[HIDDEN]} rows of {split}" for split, counter in counts.items() if counter[HIDDEN])
    log = column.warn if HIDDEN in train else column.info
    log(f"-1 means unlabelled ({rows}); if it is a class, name all classes with {LABEL_NAMES_FLAG}")
    return True


def _check_is_label(column: LabelColumn, counts: CountsBySplit) -> None:
    if column.label_names or column.kind == "class" or not counts:
        return
    rows = counts["train"].total()
    once = sum(number == 1 for number in counts["train"].values())
    if rows > 50 and once > rows / 2:
        raise column.error(
            f"{once} of {rows} training rows have a label that no other row has, such as "
            f"{shown(sorted_names(counts['train']), 3)}. Is that really the label column? Choose with {LABEL_FLAG}, "
            f"give {PROBLEM_TYPE_FLAG} {REGRESSION} for numbers, or name the classes with {LABEL_NAMES_FLAG}"
        )


def _names_and_ids(column: LabelColumn, counts: CountsBySplit) -> tuple[tuple[str, ...], dict[str, int]]:
    """The class names in the order of their ids, and the id of each raw name."""
    if column.label_names:
        return column.label_names, _match_label_names(column, counts)
    if not column.declared_names and not counts:
        raise column.error(NOT_SAID)
    known = column.declared_names or sorted_names(counts["train"])
    names = (*known, *sorted_names(_total(counts).keys() - set(known)))
    ids = {name: index for index, name in enumerate(names)}
    if column.kind in ("integer", "float") and any(name != str(index) for name, index in ids.items()):
        column.info(f"{len(names)} integers became the ids 0 to {len(names) - 1} in the order {shown(names)}")
    _warn_of_near_twins(column, names)
    return names, ids


def _match_label_names(column: LabelColumn, counts: CountsBySplit) -> dict[str, int]:
    """The id of each raw name under the user's names."""
    rows = _total(counts)
    used = set(rows) if counts else set(column.declared_names)
    order = _raw_names_in_given_order(column, used)
    if order is None:
        missing = sorted_names(used - set(column.label_names))
        raise column.error(
            f"{LABEL_NAMES_FLAG} lacks {len(missing)} of its {len(used)} labels: {shown(missing, rows=rows)}. It has "
            f"{shown(column.label_names)}"
        )
    if order is not column.label_names:
        arrows = [f"{name} -> {given}" for name, given in zip(order, column.label_names, strict=True)]
        column.info(f"{len(arrows)} labels are renamed by {LABEL_NAMES_FLAG}: {', '.join(arrows[:10])}")
    return {name: index for index, name in enumerate(order)}


def _raw_names_in_given_order(column: LabelColumn, used: set[str]) -> Sequence[str] | None:
    """The raw names that the user's names stand for: the same, else the ids, else the sorted ones; None if unclear."""
    given = column.label_names
    # In a stream of integers nothing is seen; names that are no integers can only be meant by id.
    is_by_id = not column.values and column.kind in ("integer", "float") and not all(map(INTEGER.fullmatch, given))
    if used <= set(given) and not is_by_id:
        return given
    by_id = BOOLEAN_NAMES if column.kind == "boolean" else [str(index) for index in range(len(given))]
    if used <= set(by_id) and len(by_id) == len(given):
        return by_id
    return sorted_names(used) if len(used) == len(given) and all(map(INTEGER.fullmatch, used)) else None


def _warn_of_near_twins(column: LabelColumn, names: Sequence[str]) -> None:
    folded = {name: " ".join(name.split()).casefold() for name in names}
    times = Counter(folded.values())
    twins = [name for name in names if times[folded[name]] > 1]
    if twins:
        column.warn(f"{shown(twins)} differ only in case or white space and are {len(twins)} classes")


def _report(column: LabelColumn, labels: Labels) -> None:
    """Try every raw value; say what is unlabelled, hidden or untrained; refuse what cannot be learned."""
    counts = column.count(lambda value, feature: [labels.meaning(labels.encode(value, feature))])
    if not counts:
        return
    unlabelled = [f"{rows[None]} of {rows.total()} rows of {split}" for split, rows in counts.items() if rows[None]]
    if unlabelled:
        column.info(f"unlabelled are {', '.join(unlabelled)}")
    for rows in counts.values():
        del rows[None]
    if not counts["train"]:
        raise column.error(NO_LABELS)
    if labels.problem_type == REGRESSION:
        _report_hidden_targets(column, counts)
    else:
        _check_more_than_one_class(column, counts["train"])
        _report_untrained_classes(column, labels, counts)


def _report_hidden_targets(column: LabelColumn, counts: CountsBySplit) -> None:
    for split, rows in counts.items():
        if split != "train" and rows and all(map(is_hidden, rows)):
            column.warn(f"all {rows.total()} rows of {split} are -1, as hidden labels are; scores would mean nothing")


def _check_more_than_one_class(column: LabelColumn, train: Counter) -> None:
    if len(train) == 1:
        [(names, rows)] = train.items()
        raise column.error(
            f"a training set with a single class cannot be learned; its {rows} labelled rows all have "
            f"{shown(names) or 'no label'}. Choose another column with {LABEL_FLAG}"
        )


def _report_untrained_classes(column: LabelColumn, labels: Labels, counts: CountsBySplit) -> None:
    trained = set().union(*counts["train"])
    nowhere = [name for name in labels.names if name not in trained]
    for split, counter in counts.items():
        rows = Counter()
        for names, number in counter.items():
            rows.update(dict.fromkeys(set(names) - trained, number))
        if rows:
            column.warn(
                f"{len(rows)} classes of {split} have no training row and can only be counted wrong: "
                f"{shown(sorted_names(rows), rows=rows)}"
            )
        nowhere = [name for name in nowhere if name not in rows]
    if nowhere:
        column.info(f"{len(nowhere)} of {labels.num_labels} classes have no training row: {shown(nowhere)}")


def _total(counts: Mapping[str, Counter]) -> Counter:
    return sum(counts.values(), Counter())
