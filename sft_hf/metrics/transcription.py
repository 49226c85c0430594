"""Metrics of transcripts: word and character error rates, and what to look at when they are bad.

metrics = TranscriptionMetrics(load_normalizer("english"))
metrics.update(["the cat sat"], ["The cat sat down."], example_id=ids)    # (batch,) texts, (batch,)
metrics.compute()        # {"wer": 0.25, "cer": 0.31, "substitutions": 0, "deletions": 1, "insertions": 0, "wer_raw": 0.5, ...}
metrics.worst(20)        # [Utterance(example_id=0, reference="The cat sat down.", hypothesis="the cat sat", ...), ...]
"""

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Literal, NamedTuple

import numpy as np

from sft_hf.metrics.base import Metrics, refuse_examples

Kind = Literal["equal", "substitution", "deletion", "insertion"]
Unit = Literal["word", "character"]

KINDS: dict[str, Kind] = {  # by jiwer's names
    "equal": "equal",
    "substitute": "substitution",
    "delete": "deletion",
    "insert": "insertion",
}
NUM_KEPT = 100  # utterances whose texts stay in memory


@dataclass(frozen=True)
class Operation:
    """One word (or character) of an alignment; what was inserted has no reference, what was deleted no hypothesis."""

    kind: Kind
    reference: str = ""
    hypothesis: str = ""


@dataclass(frozen=True)
class Utterance:
    """An utterance as it was said and as it was recognised; `operations` align what the normaliser makes of the two."""

    example_id: int
    reference: str
    hypothesis: str
    operations: tuple[Operation, ...]

    @property
    def num_errors(self) -> int:
        return sum(operation.kind != "equal" for operation in self.operations)

    @property
    def length(self) -> int:
        """Words (or characters) in the reference."""
        return sum(operation.kind != "insertion" for operation in self.operations)

    @property
    def error_rate(self) -> float:
        """Errors over the length, which can exceed 1; infinite where all that there is was inserted."""
        return _rate(self.num_errors, self.length)


class _Edits(NamedTuple):
    """How many edits of each kind turn a reference into a hypothesis, and the words or characters of the reference."""

    substitutions: int
    deletions: int
    insertions: int
    length: int

    @property
    def errors(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        return _rate(self.errors, self.length)


class _Erroneous(NamedTuple):
    """An utterance that may be among the worst; sorted, the worst comes first."""

    negative_rate: float
    negative_errors: int
    example_id: int
    reference: str
    hypothesis: str


class TranscriptionMetrics(Metrics):
    """Error rates of recognised texts (hypotheses) against transcripts (references).

    `wer` is the least number of substituted, deleted and inserted words, over the words of the references, each summed
    over all utterances; `cer` is the same of characters (code points; a space between words is one). Both compare what
    `normalizer` makes of the texts, `wer_raw` and `cer_raw` the texts as they are, with any run of white space as a single
    space. All four are those of jiwer, and of evaluate's wer and cer. `substitutions`, `deletions` and `insertions` are how
    many of the words counted in `wer` there are of each: whole numbers, so that tables show them so and a model card does
    not list them as scores.

    `main` is what the best model is chosen and the worst utterances are ranked by: `wer`, or `cer` for languages that are
    written without spaces.

    A reference without words (silence, or nothing but what the normaliser takes out) adds nothing to the words, and what was
    recognised in it counts as inserted, as in jiwer from version 4. Evaluations that leave such utterances out do not
    see what a model hears in silence. A rate without any words to divide by is left out, and the counts stand.

    What is kept is sixteen numbers for each utterance, by its id, and the texts of the `num_kept` worst.
    """

    keys = frozenset({"wer", "cer", "wer_raw", "cer_raw", "substitutions", "deletions", "insertions"})
    lower_is_better = Metrics.lower_is_better | keys

    def __init__(
        self, normalizer: Callable[[str], str], *, main: Literal["wer", "cer"] = "wer", num_kept: int = NUM_KEPT
    ):
        assert main in ("wer", "cer"), main
        self.normalizer, self.main, self.num_kept = normalizer, main, num_kept
        self._edits: dict[int, tuple[int, ...]] = {}  # of words, characters, raw words and raw characters
        self._worst: list[_Erroneous] = []

    def update(self, predictions: Sequence[str], labels: Sequence[str], *, example_id: np.ndarray) -> None:
        """Add a batch of hypotheses, their references and example ids, `(batch,)` each.

        Raises `ValueError` for unequal numbers of them and, with up to five example ids, for what is no text, None among
        it: the transcript of silence is "".
        """
        ids = np.asarray(example_id)
        if not len(predictions) == len(labels) == len(ids):
            raise ValueError(f"{len(predictions)} hypotheses, {len(labels)} references and {len(ids)} example ids")
        for texts, problem in ((predictions, "Hypotheses"), (labels, "References")):
            is_no_text = np.array([not isinstance(text, str) for text in texts], dtype=bool)
            refuse_examples(is_no_text, ids, problem=f"{problem} that are no text")
        for key, hypothesis, reference in zip(ids.tolist(), predictions, labels, strict=True):
            if key not in self._edits:
                self._add(key, reference, hypothesis)
        self._forget_all_but_the_worst()

    def merge(self, other: "TranscriptionMetrics") -> None:
        """Take over the utterances of another rank; one that both have seen counts once, as it was recognised here."""
        self._worst += [utterance for utterance in other._worst if utterance.example_id not in self._edits]
        self._edits = other._edits | self._edits
        self._forget_all_but_the_worst()

    def compute(self) -> dict[str, float]:
        """Return the rates and, as whole numbers, the counts; nothing if nothing was added."""
        if not self._edits:
            return {}
        sums = np.sum([*self._edits.values()], axis=0).reshape(4, 4).tolist()
        words, characters, raw_words, raw_characters = (_Edits(*edits) for edits in sums)
        rates = {"wer": words, "cer": characters, "wer_raw": raw_words, "cer_raw": raw_characters}
        numbers = {name: edits.rate for name, edits in rates.items() if edits.length}
        numbers |= {name: getattr(words, name) for name in ("substitutions", "deletions", "insertions")}
        first = [self.main] if self.main in numbers else []
        return {name: numbers[name] for name in dict.fromkeys([*first, *numbers])}

    def worst(self, number: int) -> list[Utterance]:
        """Return the utterances of the highest rate of errors that have any, up to `number`, the worst first.

        Of equal rates the one of more errors is worse, and of those the one of the lower id.
        """
        assert number <= self.num_kept, f"{number} utterances asked for, {self.num_kept} kept"
        return [
            Utterance(key, reference, hypothesis, tuple(self.alignment(reference, hypothesis)))
            for _, _, key, reference, hypothesis in self._worst[:number]
        ]

    def alignment(self, reference: str, hypothesis: str) -> list[Operation]:
        """Return what turns the one, normalised, into the other, word by word; by characters where `main` is `cer`."""
        texts = self.normalizer(reference), self.normalizer(hypothesis)
        return align(*texts, unit="word" if self.main == "wer" else "character")

    def _add(self, key: int, reference: str, hypothesis: str) -> None:
        normalized = self.normalizer(reference), self.normalizer(hypothesis)
        words, characters = _edits(*normalized, unit="word"), _edits(*normalized, unit="character")
        raw = _edits(reference, hypothesis, unit="word"), _edits(reference, hypothesis, unit="character")
        self._edits[key] = words + characters + raw[0] + raw[1]
        edits = words if self.main == "wer" else characters
        if edits.errors:
            self._worst.append(_Erroneous(-edits.rate, -edits.errors, key, reference, hypothesis))

    def _forget_all_but_the_worst(self) -> None:
        self._worst = heapq.nsmallest(self.num_kept, self._worst)


def align(reference: str, hypothesis: str, *, unit: Unit) -> list[Operation]:
    """Return the fewest operations that turn a reference into a hypothesis, in order, one for each word (or character)."""
    output = _processed(reference, hypothesis, unit=unit)
    [references], [hypotheses], [chunks] = output.references, output.hypotheses, output.alignments
    operations = []
    for chunk in chunks:
        before = references[chunk.ref_start_idx : chunk.ref_end_idx]
        after = hypotheses[chunk.hyp_start_idx : chunk.hyp_end_idx]
        operations += [Operation(KINDS[chunk.type], *pair) for pair in zip_longest(before, after, fillvalue="")]
    return operations


def _edits(reference: str, hypothesis: str, *, unit: Unit) -> _Edits:
    output = _processed(reference, hypothesis, unit=unit)
    return _Edits(output.substitutions, output.deletions, output.insertions, len(output.references[0]))


def _processed(reference: str, hypothesis: str, *, unit: Unit) -> Any:
    """jiwer's output for one pair; by itself it would leave a tab or a line break inside of a word."""
    import jiwer

    process = jiwer.process_words if unit == "word" else jiwer.process_characters
    return process(" ".join(reference.split()), " ".join(hypothesis.split()))


def _rate(errors: int, length: int) -> float:
    if length:
        return errors / length
    return math.inf if errors else 0.0
