"""Transcripts before they are compared: what a recogniser is not to be blamed for is taken out of both sides.

    normalize = load_normalizer("english")
    normalize("Mr. Smith's colour -- um, it's twenty-one!")      # "mister smith is color it is 21"
    load_normalizer("basic")("¿Qué? El 50 %, [ruido] señor.")     # "qué el 50 señor"

The rules are Whisper's (Radford et al. 2022, appendix C, https://arxiv.org/abs/2212.04356), but for two of the basic
ones, which would make scores of other scripts than the Latin one meaningless: `remove_symbols` and `join_unspaced` say how.
"""

import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import regex

from sft_hf.errors import ArgumentError

NORMALIZERS = ("none", "basic", "english")
NORMALIZER_FLAG = "--normalizer"

SYMBOLS = regex.compile(r"[\p{S}\p{P}]|(?<![\p{L}\p{M}\p{Cf}])\p{M}+")

# Python refuses to read a number of more than 4,300 digits, and a recogniser that repeats itself writes one.
LONG_NUMBER = regex.compile(r"(?:\d,?){1000}(?=\d)")

# Those of the languages whose letters Whisper splits, among them Chinese, Japanese, Thai, Lao and Burmese.
UNSPACED = "[" + "".join(rf"\p{{scx={script}}}" for script in ("Han", "Hira", "Kana", "Thai", "Lao", "Mymr")) + "]"
SPACE_OF_UNSPACED = regex.compile(rf"(?<={UNSPACED})\s+|\s+(?={UNSPACED})")


def load_normalizer(name: str, *, tokenizer: Any = None) -> Callable[[str], str]:
    """Return what makes a transcript comparable: by the rules `none`, `basic` (any language) or `english`.

    `basic` takes out case, punctuation, symbols and what stands in brackets or parentheses, and unifies Unicode's
    compatibility forms (NFKC). `english` also takes out hesitations, writes contractions and titles in full ("it's", "it
    is"), numbers and amounts in digits ("twenty-one", "21"; "one" stays a word) and British words as Americans do, and
    drops diacritics. It is Whisper's to the letter, so that scores can be set beside published ones: "well..." keeps a
    full stop as a word of its own. A text of nothing else becomes "". `none` changes nothing. What is returned can be
    pickled.

    The British words are Whisper's list of 1,739: that of `tokenizer` where it is a Whisper one, or else the same list from
    the package whisper-normalizer. Raises `ArgumentError` for another name, and for `english` where neither has the list.
    """
    if name == "none":
        return _unchanged
    if name == "basic":
        return Normalizer((_basic_rules(), join_unspaced))
    if name == "english":
        return Normalizer((_break_long_numbers, _english_rules(tokenizer)))
    raise ArgumentError(f"{NORMALIZER_FLAG} {name}: expected {', '.join(NORMALIZERS)}.")


@dataclass(frozen=True)
class Normalizer:
    """Rules applied one after another; the result has single spaces between words and none around them."""

    rules: tuple[Callable[[str], str], ...]

    def __call__(self, text: str) -> str:
        for rule in self.rules:
            text = rule(text)
        return " ".join(text.split())


def remove_symbols(text: str) -> str:
    """Replace symbols and punctuation by spaces, and marks that stand on no letter, in the normal form NFKC.

    Whisper's function of this name replaces every mark. In Hindi, Tamil or Thai that takes the vowels out of the words and
    leaves single consonants, so that there are more words to get right, and WER falls; Arabic with its short vowels, Hebrew
    and Yoruba break apart in the same way (Manohar et al. 2024, https://arxiv.org/abs/2409.02449).
    """
    return SYMBOLS.sub(" ", unicodedata.normalize("NFKC", text))


def join_unspaced(text: str) -> str:
    """Remove the spaces beside letters of scripts that do not write any between words.

    Whisper splits such texts into letters and calls the error rate of the letters WER. With the spaces gone, among them
    those that were punctuation, CER is this number, and no space counts as a letter. Korean has spaces and keeps them.
    """
    return SPACE_OF_UNSPACED.sub("", text)


def _unchanged(text: str) -> str:
    return text


def _break_long_numbers(text: str) -> str:
    return LONG_NUMBER.sub(r"\g<0> ", text)


def _basic_rules() -> Callable[[str], str]:
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer

    rules = BasicTextNormalizer()
    rules.clean = remove_symbols
    return rules


def _english_rules(tokenizer: Any) -> Callable[[str], str]:
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    spellings = getattr(tokenizer, "english_spelling_normalizer", None)
    return EnglishTextNormalizer(_american_spellings() if spellings is None else spellings)


def _american_spellings() -> Mapping[str, str]:
    """British words and how Americans write them."""
    try:
        from whisper_normalizer.english import EnglishSpellingNormalizer
    except ImportError as error:
        raise ArgumentError(
            f"{NORMALIZER_FLAG} english: Whisper's list of British and American spellings comes with the tokenizer of a "
            "Whisper model or with the package whisper-normalizer, and neither is here. Install it (pip install "
            f"whisper-normalizer) or take {NORMALIZER_FLAG} basic."
        ) from error
    return EnglishSpellingNormalizer().mapping
