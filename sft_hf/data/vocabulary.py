"""The characters of training transcripts as the vocabulary of a CTC model.

tokenizer = build_tokenizer(["HELLO", "GOOD DAY"])          # ids: [PAD] 0, [UNK] 1, then " ADEGHLOY"
tokenizer("GOOD DAY")["input_ids"]                          # [6, 9, 9, 4, 2, 4, 3, 10], the space being 2
tokenizer.decode([6, 9, 9, 4], group_tokens=False)          # "GOOD"; grouped, as frames are, "GOD"
uncovered(["HELLO JIM"], tokenizer)                         # Counter({"J": 1, "I": 1, "M": 1})

A character is a code point of Unicode: an emoji is one, an accent that stands for itself (normal form NFD) is one, and so
is each mark of a Devanagari or Thai syllable.
"""

import json
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from transformers import PreTrainedTokenizerBase, Wav2Vec2CTCTokenizer

from sft_hf.errors import DataError

UnicodeNormalForm = Literal["NFC", "NFD", "NFKC", "NFKD", "none"]
Casing = Literal["keep", "lower", "upper"]

PAD_TOKEN, UNK_TOKEN = "[PAD]", "[UNK]"  # the blank of CTC, and what has no token
WORD_DELIMITER = "|"  # how the vocabularies of wav2vec2 spell the space


def normalize_transcript(text: str, *, unicode_normal_form: UnicodeNormalForm, casing: Casing) -> str:
    """Return a transcript in one normal form and casing, its white space folded into single spaces and stripped.

    Nothing else changes: punctuation, digits and marks stay. Casing is Unicode's default, in no language: `lower` makes
    an i of the Turkish I, `upper` makes SS of ß. Normalising the result again changes nothing.
    """
    # Casing undoes normal forms and compatibility forms hide capitals, so the form is taken before and after.
    text = _in_form(_cased(_in_form(text, unicode_normal_form), casing), unicode_normal_form)
    return " ".join(text.split())


def build_tokenizer(texts: Iterable[str], *, min_count: int = 1) -> Wav2Vec2CTCTokenizer:
    """Return a tokenizer with one token for each character that the normalised texts have at least `min_count` times.

    Ids are [PAD], which is the blank of CTC, [UNK], "|", which is the space, and the characters in the order of their
    code points; equal texts give equal ids. Rarer characters become [UNK]. Raises `DataError` if no character is left, and
    if a text has a "|" of its own.
    """
    counts = _count_characters(texts)
    if counts[WORD_DELIMITER]:
        raise DataError(
            f'The training transcripts have the character "{WORD_DELIMITER}" {counts[WORD_DELIMITER]} times, which is how '
            "the vocabulary of a CTC model spells the space: replace it in the text column."
        )
    characters = sorted(character for character, count in counts.items() if count >= min_count and character != " ")
    if not characters:
        raise DataError(
            f"None of the {len(counts)} different characters in the training transcripts is there {min_count} times or "
            "more: nothing to build a vocabulary from. Is it the right text column?"
        )
    # Scripts without a space have the delimiter too: transformers adds one it does not find behind the last token, and
    # without one it replaces a space by the four letters of None. No other delimiter is kept by from_pretrained.
    tokens = [PAD_TOKEN, UNK_TOKEN, WORD_DELIMITER, *characters]
    with tempfile.TemporaryDirectory() as folder:
        vocab_file = Path(folder) / "vocab.json"
        vocab_file.write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
        return Wav2Vec2CTCTokenizer(
            str(vocab_file),
            pad_token=PAD_TOKEN,
            unk_token=UNK_TOKEN,
            # They would be added to the vocabulary, as two classes that no label has.
            bos_token=None,
            eos_token=None,
            word_delimiter_token=WORD_DELIMITER,
            # A transcript that says "[PAD]" is five characters.
            split_special_tokens=True,
        )


def uncovered(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> Counter[str]:
    """Return how often the texts have each character for which the tokenizer has no token but the unknown one."""
    counts = _count_characters(texts)
    return Counter({character: count for character, count in counts.items() if not _is_covered(character, tokenizer)})


def covers(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> bool:
    """Return whether the tokenizer has a token for every character of the texts."""
    return not uncovered(texts, tokenizer)


def _in_form(text: str, form: UnicodeNormalForm) -> str:
    return text if form == "none" else unicodedata.normalize(form, text)


def _cased(text: str, casing: Casing) -> str:
    return {"keep": text, "lower": text.lower(), "upper": text.upper()}[casing]


def _count_characters(texts: Iterable[str]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    return counts


def _is_covered(character: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    # The token is there, but reads as a space.
    if character != " " and character == getattr(tokenizer, "word_delimiter_token", None):
        return False
    # A tokenizer without an unknown token has None in place of an id, as its own unk_token_id then is.
    return tokenizer.unk_token_id not in tokenizer.convert_tokens_to_ids(tokenizer.tokenize(character))
