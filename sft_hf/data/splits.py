"""A hold-out that is the same in every run and every process, and rows that two splits share.

    hold_out(num_rows=100, fraction=0.1, seed=42, stratify=labels)
    -> HoldOut(train=[0, 1, 2, 4, ...], validation=[3, 17, ...])     90 and 10 row numbers, sorted

An unseeded hold-out would let every rank and every run evaluate on something else (pitfall 15).
"""

import hashlib
import logging
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sft_hf.errors import DataError

logger = logging.getLogger(__name__)

FRACTION_FLAG = "--validation_fraction"
GROUP_FLAG = "--validation_group_column"
NUM_TRIES = 32  # random choices of groups, of which the best is taken
MISSING = 0  # stands for the key None


@dataclass(frozen=True)
class HoldOut:
    """Row numbers of the two sides, sorted; together every row once."""

    train: np.ndarray
    validation: np.ndarray


def hold_out(
    *,
    num_rows: int,
    fraction: float,
    seed: int,
    stratify: Sequence[Any] | None = None,
    groups: Sequence[Hashable] | None = None,
) -> HoldOut:
    """Split row numbers at random into train and validation, `fraction` of the rows in validation.

    `stratify` holds each row's encoded label, `(num_rows,)`: a class id, or a list of 0.0 and 1.0 (label sets, the
    rare ones pooled), None where unlabelled. Each class keeps its share as near as whole rows allow, and a row or
    group of every class stays in train. `groups` holds a value for each row; rows of one group stay on one side (a
    missing value is a group of its own), and the fraction is met as near as the groups allow. Equal arguments give
    equal results in any process.

    Raises DataError for a fraction outside (0, 1), and where there are too few rows or groups to hold any out.
    """
    for values in (stratify, groups):
        assert values is None or len(values) == num_rows, f"{len(values)} values for {num_rows} rows"
    if not 0 < fraction < 1:
        raise DataError(f"{FRACTION_FLAG} {fraction}: expected a share between 0 and 1, such as 0.1.")
    if num_rows < 2:
        raise DataError(f"{num_rows} training rows are too few to hold any out. Give a validation split, or more rows.")
    generator = np.random.default_rng(seed)
    number = min(max(round(num_rows * fraction), 1), num_rows - 1)
    classes = _classes_of_rows(stratify, num_rows)
    if groups is None:
        validation = _draw_rows(_strata(stratify, num_rows, fraction), classes, number, generator)
    else:
        validation = _draw_groups(_numbered(groups), classes, number, generator)
    chosen = np.zeros(num_rows, dtype=bool)
    chosen[validation] = True
    return HoldOut(train=np.flatnonzero(~chosen), validation=np.flatnonzero(chosen))


def overlapping_rows(train_keys: Iterable[Hashable], other_keys: Iterable[Hashable]) -> list[int]:
    """The indices of the training rows whose key also stands in the other split; keys are texts or tuples of them.

    Eight bytes are kept of a key. Missing keys (None) equal nothing.
    """
    others = np.unique(_digests(other_keys))
    train = _digests(train_keys)
    return np.flatnonzero(np.isin(train, others) & (train != MISSING)).tolist()


def _digests(keys: Iterable[Hashable]) -> np.ndarray:
    return np.fromiter((MISSING if key is None else _digest(key) for key in keys), dtype=np.uint64)


def _digest(key: Hashable) -> int:
    # Python's own hash of a string differs from process to process.
    data = key if isinstance(key, str) else repr(key)
    return int.from_bytes(hashlib.blake2b(data.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def _numbered(values: Iterable[Hashable]) -> np.ndarray:
    """Values as numbers in the order of their first appearance; every missing value has its own."""
    numbers: dict[Hashable, int] = {}
    keys = (
        ("missing", row) if value is None or value != value else ("value", value) for row, value in enumerate(values)
    )
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


def _classes_of_rows(stratify: Sequence[Any] | None, num_rows: int) -> list[tuple[int, ...]]:
    """The classes that each row counts for."""
    if stratify is None:
        return [()] * num_rows
    return [_active(label) for label in stratify]


def _active(label: Any) -> tuple[int, ...]:
    if label is None:
        return ()
    if isinstance(label, (list, tuple, np.ndarray)):
        return tuple(index for index, active in enumerate(label) if active)
    return (int(label),)


def _strata(stratify: Sequence[Any] | None, num_rows: int, fraction: float) -> np.ndarray:
    """The number of each row's stratum: its class, or its set of labels."""
    if stratify is None:
        return np.zeros(num_rows, dtype=np.int64)
    is_multi_label = any(isinstance(label, (list, tuple, np.ndarray)) for label in stratify)
    strata = _numbered("unlabelled" if label is None else _active(label) for label in stratify)
    if is_multi_label:
        # A set too rare for one expected row would get none or far too many; together the rare ones get their share.
        is_rare = np.bincount(strata)[strata] * fraction < 1
        strata[is_rare] = strata.max() + 1
    return np.unique(strata, return_inverse=True)[1]


def _draw_rows(
    strata: np.ndarray, classes: list[tuple[int, ...]], number: int, generator: np.random.Generator
) -> np.ndarray:
    free = np.ones(len(strata), dtype=bool)
    free[_kept_in_train(classes, _units_of_classes(classes), generator)] = False
    if not free.any():
        raise DataError(
            f"{len(strata)} training rows are too few to hold any out: each is the only one of a class. Give a "
            f"validation split, or more rows ({FRACTION_FLAG} only changes the share)."
        )
    limits = np.bincount(strata[free], minlength=strata.max() + 1)
    quotas = _quotas(np.bincount(strata), limits, number, generator)
    order = generator.permutation(np.flatnonzero(free))
    order = order[np.argsort(strata[order], kind="stable")]
    rank = np.arange(len(order)) - (np.cumsum(limits) - limits)[strata[order]]  # within the stratum
    _warn_if_far(int(quotas.sum()), number, len(strata), "each class keeps a row in train")
    return order[rank < quotas[strata[order]]]


def _units_of_classes(classes: Sequence[tuple[int, ...]]) -> dict[int, list[int]]:
    """The units (rows or groups) in which each class stands, the rarest class first."""
    units: dict[int, list[int]] = {}
    for unit, members in enumerate(classes):
        for member in members:
            units.setdefault(member, []).append(unit)
    return dict(sorted(units.items(), key=lambda item: (len(item[1]), item[0])))


def _kept_in_train(
    classes: Sequence[tuple[int, ...]], units: dict[int, list[int]], generator: np.random.Generator
) -> list[int]:
    """A few random units that together hold every class."""
    kept: list[int] = []
    covered: set[int] = set()
    for member, candidates in units.items():
        if member not in covered:
            kept.append(candidates[generator.integers(len(candidates))])
            covered.update(classes[kept[-1]])
    return kept


def _quotas(sizes: np.ndarray, limits: np.ndarray, number: int, generator: np.random.Generator) -> np.ndarray:
    """How many rows of each stratum are held out, `number` in all: largest remainders, at most `limits` of each."""
    shares = sizes * (number / sizes.sum())
    quotas = np.minimum(np.floor(shares).astype(np.int64), limits)
    ties = generator.permutation(len(sizes))
    while (left := min(number, limits.sum()) - quotas.sum()) > 0:
        open_strata = np.flatnonzero(quotas < limits)
        order = np.lexsort((ties[open_strata], (quotas - shares)[open_strata]))
        quotas[open_strata[order[:left]]] += 1
    return quotas


def _draw_groups(
    groups: np.ndarray, classes: list[tuple[int, ...]], number: int, generator: np.random.Generator
) -> np.ndarray:
    sizes = np.bincount(groups)
    if len(sizes) < 2:
        raise DataError(
            f"{GROUP_FLAG}: all {len(groups)} training rows are of one group, so none can be held out. Name a column "
            f"with several values, or give a validation split."
        )
    profiles, members = _group_profiles(groups, classes)
    units = _units_of_classes(members)
    tries = []
    for _ in range(NUM_TRIES):
        # Without classes any group will do: train must not be left empty.
        kept = _kept_in_train(members, units, generator) or [generator.integers(len(sizes))]
        free = np.setdiff1d(np.arange(len(sizes)), kept)
        if len(free):
            chosen = _fill(generator.permutation(free), sizes, number)
            tries.append((abs(int(sizes[chosen].sum()) - number), _imbalance(profiles, chosen), chosen))
    if not tries:
        raise DataError(
            f"{GROUP_FLAG}: each of the {len(sizes)} groups is the only one of some class, so none can be held out. "
            f"Name another column, or give a validation split."
        )
    chosen = min(tries, key=lambda attempt: attempt[:2])[2]
    _warn_if_far(int(sizes[chosen].sum()), number, len(groups), f"{GROUP_FLAG} keeps {len(sizes)} groups whole")
    return np.flatnonzero(np.isin(groups, chosen))


def _warn_if_far(held_out: int, number: int, num_rows: int, reason: str) -> None:
    if abs(held_out - number) > max(1, 0.2 * number):
        logger.warning("Validation has %d of %d rows instead of %d: %s.", held_out, num_rows, number, reason)


def _group_profiles(groups: np.ndarray, classes: list[tuple[int, ...]]) -> tuple[np.ndarray, list[tuple[int, ...]]]:
    """How many rows of each class each group has, `(groups, classes)`, and the classes in each group."""
    num_classes = max((max(members) for members in classes if members), default=0) + 1
    profiles = np.zeros((groups.max() + 1, num_classes), dtype=np.int64)
    for group, members in zip(groups, classes, strict=True):
        profiles[group, list(members)] += 1
    return profiles, [tuple(np.flatnonzero(profile).tolist()) for profile in profiles]


def _fill(order: np.ndarray, sizes: np.ndarray, number: int) -> np.ndarray:
    """Groups in their order as long as they fit, then the smallest further one if that comes nearer."""
    chosen, left = [], number
    for group in order:
        if sizes[group] <= left:
            chosen.append(group)
            left -= sizes[group]
    rest = np.setdiff1d(order, chosen)
    if left and len(rest):
        smallest = rest[np.argmin(sizes[rest])]
        if not chosen or sizes[smallest] - left < left:
            chosen.append(smallest)
    return np.array(chosen, dtype=np.int64)


def _imbalance(profiles: np.ndarray, chosen: np.ndarray) -> float:
    """How far the shares of the classes among the chosen groups are from those among all."""
    all_rows, some_rows = profiles.sum(axis=0), profiles[chosen].sum(axis=0)
    return float(np.abs(some_rows / max(some_rows.sum(), 1) - all_rows / max(all_rows.sum(), 1)).sum())
