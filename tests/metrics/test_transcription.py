"""Metrics of transcripts: jiwer's numbers, values by hand, silence, ranks, and the worst utterances."""

import math
import pickle
import random

import jiwer
import numpy as np
import pytest

from sft_hf.metrics import TranscriptionMetrics
from sft_hf.metrics.transcription import Operation, Utterance, align

WORDS = "the a cat dog sat on mat and it was not".split()


def lowered(text):
    """A normaliser: case and full stops do not count, nor does a cough."""
    return text.lower().replace(".", " ").replace("[cough]", "")


def unchanged(text):
    return text


def filled(predictions, labels, example_id=None, *, normalizer=lowered, **options):
    metrics = TranscriptionMetrics(normalizer, **options)
    metrics.update(predictions, labels, example_id=np.arange(len(labels)) if example_id is None else example_id)
    return metrics


def texts(count=60, *, seed=0):
    """Return hypotheses and references, some of them silent, with errors of each kind."""
    draw = random.Random(seed)
    references = [" ".join(draw.choices(WORDS, k=draw.randrange(9))).capitalize() for _ in range(count)]
    return [
        " ".join(draw.choice(WORDS) if draw.random() < 0.2 else word for word in text.split() if draw.random() < 0.9)
        + draw.choice(["", "", " and", " it was."])
        for text in references
    ], references


def ids_of(utterances):
    return [utterance.example_id for utterance in utterances]


# Numbers


def test_metrics_by_hand():
    """One word another, one missed, one too many. As they are, every word of the references differs by its T, G, N or stop."""
    metrics = filled(["the cut sat", "go", "no I"], ["The cat sat.", "Go on.", "No"])
    assert metrics.compute() == {
        "wer": (1 + 1 + 1) / (3 + 2 + 1),
        "cer": (1 + 3 + 2) / (11 + 5 + 2),
        "wer_raw": (3 + 2 + 2) / (3 + 2 + 1),
        "cer_raw": (3 + 5 + 3) / (12 + 6 + 2),
        "substitutions": 1,
        "deletions": 1,
        "insertions": 1,
    }


def test_rates_are_those_of_jiwer_over_all_utterances_and_not_means_of_their_rates():
    """evaluate's wer and cer are jiwer's."""
    hypotheses, references = texts()
    normalized = [lowered(text) for text in references], [lowered(text) for text in hypotheses]
    words = jiwer.process_words(*normalized)
    numbers = filled(hypotheses, references).compute()
    assert numbers == pytest.approx(
        {
            "wer": words.wer,
            "cer": jiwer.cer(*normalized),
            "wer_raw": jiwer.wer(references, hypotheses),
            "cer_raw": jiwer.cer(references, hypotheses),
            "substitutions": words.substitutions,
            "deletions": words.deletions,
            "insertions": words.insertions,
        }
    )
    each = [jiwer.wer(*pair) for pair in zip(*normalized, strict=True)]
    assert abs(numbers["wer"] - np.mean(each)) > 0.01


def test_pitfall_12_numbers_do_not_depend_on_the_batches():
    hypotheses, references = texts()
    in_batches = TranscriptionMetrics(lowered)
    for start in range(0, len(references), 7):
        rows = slice(start, start + 7)
        in_batches.update(hypotheses[rows], references[rows], example_id=np.arange(len(references))[rows])
    assert in_batches.compute() == filled(hypotheses, references).compute()
    assert in_batches.worst(50) == filled(hypotheses, references).worst(50)


def test_any_white_space_parts_words_and_counts_as_one_space():
    metrics = filled(["it  was\n", "a\tb"], [" it was", "a\u3000b"], normalizer=unchanged)
    assert set(metrics.compute().values()) == {0}


def test_rates_are_floats_and_counts_whole_numbers():
    """A table shows 12 rather than 12.0000, and the metadata of a card, which take floats, leave counts out."""
    numbers = filled(*texts()).compute()
    assert {name for name, value in numbers.items() if type(value) is int} == {
        "substitutions",
        "deletions",
        "insertions",
    }
    assert {name for name, value in numbers.items() if type(value) is float} == {"wer", "cer", "wer_raw", "cer_raw"}


@pytest.mark.parametrize("main", ["wer", "cer"])
def test_the_main_metric_comes_first_and_all_improve_by_falling(main):
    metrics = filled(*texts(), main=main)
    numbers = metrics.compute()
    assert next(iter(numbers)) == metrics.main == main
    assert set(numbers) == metrics.keys
    assert metrics.names == metrics.keys | {"loss"}
    assert metrics.names <= metrics.lower_is_better


def test_no_utterance_stands_in_the_results():
    assert filled(*texts()).details() == {}


# Silence


@pytest.mark.parametrize("silence", ["", " ", "[cough]", "..."])
def test_what_is_heard_in_silence_counts_as_inserted(silence):
    """Two words too many, over the two words of the other utterance."""
    numbers = filled(["it was", "the cat"], ["It was.", silence]).compute()
    assert (numbers["wer"], numbers["insertions"]) == (2 / 2, 2)
    assert numbers["cer"] == 7 / 6


@pytest.mark.parametrize("hypothesis", ["", "[cough]"])
def test_nothing_recognised_is_all_words_deleted(hypothesis):
    numbers = filled([hypothesis], ["The cat sat."]).compute()
    assert (numbers["wer"], numbers["cer"], numbers["deletions"]) == (1, 1, 3)


def test_silence_that_is_recognised_as_such_is_right():
    metrics = filled(["it was", "..."], ["It was.", "[cough]"])
    assert metrics.compute()["wer"] == 0
    assert metrics.worst(5) == []


def test_without_any_word_in_the_references_rates_are_left_out_and_counts_stand():
    metrics = filled(["the cat", ""], ["", "[cough]"])
    counts = {"substitutions": 0, "deletions": 0, "insertions": 2}
    assert metrics.compute() == counts | {"wer_raw": 3 / 1, "cer_raw": (7 + 7) / 7}
    assert filled(["the cat"], [""]).compute() == counts


def test_nothing_added_gives_nothing():
    empty = TranscriptionMetrics(lowered)
    empty.update([], [], example_id=np.arange(0))
    assert empty.compute() == {}
    assert empty.worst(5) == []


# Accumulation


def test_ranks_and_repeats_do_not_change_the_numbers():
    hypotheses, references = texts(12)
    ranks = [TranscriptionMetrics(lowered, num_kept=5), TranscriptionMetrics(lowered, num_kept=5)]
    batches = ((0, [0, 2, 4]), (1, [1, 3, 5]), (0, [6, 6, 8, 10]), (1, [7, 9, 11]), (1, [0, 3]))
    for rank, rows in batches:
        batch = [hypotheses[row] for row in rows], [references[row] for row in rows]
        ranks[rank].update(*batch, example_id=np.array(rows))
    merged, other = pickle.loads(pickle.dumps(ranks))
    merged.merge(other)
    alone = filled(hypotheses, references, num_kept=5)
    assert merged.compute() == alone.compute()
    assert merged.worst(5) == alone.worst(5)
    assert len(alone.worst(5)) == 5


def test_a_repeated_utterance_counts_as_it_was_first_recognised():
    metrics = filled(["the"], ["The cat"], [8])
    metrics.update(["a dog", "a dog"], ["The cat", "The cat"], example_id=np.array([8, 8]))
    assert metrics.compute()["wer"] == 1 / 2
    assert [one.hypothesis for one in metrics.worst(5)] == ["the"]


def test_an_utterance_that_two_ranks_recognised_differently_counts_as_the_first_has_it():
    """Also among the worst, or the list would contradict the numbers."""
    first, second = filled(["it was", "the"], ["It was", "The cat"], [7, 8]), filled(["no"], ["It was"], [7])
    first.merge(second)
    assert first.compute()["wer"] == 1 / 4
    assert ids_of(first.worst(5)) == [8]


def test_memory_holds_numbers_of_every_utterance_and_texts_of_few():
    """What is kept, as it would be sent to another rank: 1,000 more utterances of 2,000 characters, under 60 bytes each."""

    def size(count):
        metrics = TranscriptionMetrics(lowered, num_kept=20)
        for start in range(0, count, 50):
            ids = np.arange(start, start + 50)
            metrics.update([f"{key} {'was ' * 500}" for key in ids], ["it " * 3] * 50, example_id=ids)
        return len(pickle.dumps(metrics))

    assert size(1100) - size(100) < 1000 * 60


# The worst


def test_the_worst_are_those_of_the_highest_rate_then_of_the_most_errors():
    hypotheses = ["it was not", "cat", "a b", "noise", "the", "the cat was", "noise in it"]
    references = ["It was not", "dog", "c d", "", "the cat", "the cat sat", "[cough]"]
    worst = filled(hypotheses, references, np.arange(10, 17)).worst(7)
    assert ids_of(worst) == [16, 13, 12, 11, 14, 15]
    assert [utterance.error_rate for utterance in worst] == [math.inf, math.inf, 1, 1, 1 / 2, 1 / 3]
    assert ids_of(filled(hypotheses, references, np.arange(10, 17)).worst(2)) == [16, 13]


def test_an_utterance_keeps_its_texts_and_aligns_what_is_compared():
    [utterance] = filled(["The cut"], ["the cat [cough] sat."]).worst(1)
    assert utterance == Utterance(
        example_id=0,
        reference="the cat [cough] sat.",
        hypothesis="The cut",
        operations=(
            Operation("equal", "the", "the"),
            Operation("substitution", "cat", "cut"),
            Operation("deletion", "sat"),
        ),
    )
    assert (utterance.num_errors, utterance.length, utterance.error_rate) == (2, 3, 2 / 3)


def test_by_characters_the_worst_are_those_of_the_highest_cer():
    """By words both are wrong; by characters the first has one error in four, the second two."""
    batch = ["你好世介", "在建你好"], ["你好世界", "再见你好"]
    assert ids_of(filled(*batch, main="cer").worst(2)) == [1, 0]
    assert ids_of(filled(*batch, main="wer").worst(2)) == [0, 1]
    [_, utterance] = filled(*batch, main="cer").worst(2)
    assert utterance.error_rate == 1 / 4
    assert utterance.operations[-1] == Operation("substitution", "界", "介")


def test_more_than_is_kept_cannot_be_asked_for():
    with pytest.raises(AssertionError, match="6 utterances asked for, 5 kept"):
        filled(*texts(), num_kept=5).worst(6)


# Alignments


def test_alignment_of_what_the_normaliser_makes_of_two_texts():
    metrics = TranscriptionMetrics(lowered)
    assert metrics.alignment("A cat sat [cough].", "the a cat") == [
        Operation("insertion", hypothesis="the"),
        Operation("equal", "a", "a"),
        Operation("equal", "cat", "cat"),
        Operation("deletion", reference="sat"),
    ]


def test_alignment_by_characters():
    assert TranscriptionMetrics(lowered, main="cer").alignment("A b.", "ab") == [
        Operation("equal", "a", "a"),
        Operation("deletion", reference=" "),
        Operation("equal", "b", "b"),
    ]


@pytest.mark.parametrize("unit", ["word", "character"])
def test_an_alignment_spells_both_texts_with_as_few_edits_as_jiwer_counts(unit):
    for hypothesis, reference in zip(*texts(), strict=True):
        operations = align(reference, hypothesis, unit=unit)
        space = " " if unit == "word" else ""
        for text, tokens in (
            (reference, [operation.reference for operation in operations if operation.kind != "insertion"]),
            (hypothesis, [operation.hypothesis for operation in operations if operation.kind != "deletion"]),
        ):
            assert space.join(tokens) == " ".join(text.split())
        processed = (jiwer.process_words if unit == "word" else jiwer.process_characters)(reference, hypothesis)
        kinds = [operation.kind for operation in operations]
        assert kinds.count("substitution") == processed.substitutions
        assert kinds.count("deletion") == processed.deletions
        assert kinds.count("insertion") == processed.insertions


# What is refused


def test_a_missing_transcript_is_refused_with_its_ids():
    message = r"^References that are no text in 2 of 3 examples, with the example ids 5, 9\.$"
    with pytest.raises(ValueError, match=message):
        filled(["a", "b", "c"], [None, "b", float("nan")], np.array([5, 7, 9]))


def test_a_missing_hypothesis_is_refused_with_its_ids():
    message = r"^Hypotheses that are no text in 1 of 2 examples, with the example ids 1\.$"
    with pytest.raises(ValueError, match=message):
        filled(["a", None], ["a", "b"])


def test_unequal_numbers_are_refused():
    with pytest.raises(ValueError, match="^1 hypotheses, 2 references and 2 example ids$"):
        filled(["a"], ["a", "b"])


def test_another_main_metric_is_a_mistake_of_ours():
    with pytest.raises(AssertionError, match="wer_raw"):
        TranscriptionMetrics(lowered, main="wer_raw")
