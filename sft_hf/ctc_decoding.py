"""From the logits of a CTC model to texts: the best path, or a beam with an n-gram language model.

decode = GreedyDecoder(tokenizer)
decode = load_beam_decoder("words.arpa", tokenizer, lm_weight=0.5, word_insertion_bonus=1.0)
decode(logits, num_frames)      # (batch, frames, vocab), (batch,) -> ["GO HOME", "RUBOUT THREE"]

The beam search and the language models in it (KenLM) are those of flashlight-text, extra `lm`.
"""

import gzip
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sft_hf.errors import ArgumentError, ModelError

logger = logging.getLogger(__name__)

LmUnit = Literal["word", "character"]

SENTENCE_MARKS = {"<s>", "</s>", "<unk>", "<UNK>"}  # of a language model, no words
KENLM_BINARY = b"mmap lm "  # how such a file begins
BEAM_THRESHOLD = 50.0  # hypotheses this far below the best one are dropped, in natural logarithms
IMPOSSIBLE = -1e9  # the logarithm of a probability of 0 that can still be added


@dataclass(frozen=True)
class GreedyDecoder:
    """The most probable token of each frame, without repetitions and blanks: what transformers' pipeline gives."""

    tokenizer: PreTrainedTokenizerBase

    def __call__(self, logits: Tensor, num_frames: Tensor) -> list[str]:
        """Return a text for each utterance; of the logits `(batch, frames, vocab)` the first `num_frames` `(batch,)` count."""
        paths, lengths = logits.argmax(dim=-1).tolist(), num_frames.tolist()
        return [_text(path[:length], self.tokenizer) for path, length in zip(paths, lengths, strict=True)]


@dataclass(frozen=True)
class WordBeamDecoder:
    """The most probable words of a language model, made by `load_beam_decoder`; there are no others in a text."""

    beam: Any  # flashlight's LexiconDecoder
    words: list[str]  # by their numbers in it
    delimiter_id: int

    def __call__(self, logits: Tensor, num_frames: Tensor) -> list[str]:
        """Return a text for each utterance, as `GreedyDecoder` does."""
        return [self._decode(emissions) for emissions in _emissions(logits, num_frames)]

    def _decode(self, emissions: np.ndarray) -> str:
        # To the beam a word ends with the space, which CTC does not put behind the last one.
        end = np.full((1, emissions.shape[1]), IMPOSSIBLE, dtype=np.float32)
        end[0, self.delimiter_id] = 0
        numbers = _best(self.beam, np.concatenate([emissions, end])).words
        return " ".join(self.words[number] for number in numbers if number >= 0)


@dataclass(frozen=True)
class CharacterBeamDecoder:
    """The text that is most probable together with a language model of characters, made by `load_beam_decoder`."""

    beam: Any  # flashlight's LexiconFreeDecoder
    tokenizer: PreTrainedTokenizerBase

    def __call__(self, logits: Tensor, num_frames: Tensor) -> list[str]:
        """Return a text for each utterance, as `GreedyDecoder` does."""
        paths = [_best(self.beam, emissions).tokens for emissions in _emissions(logits, num_frames)]
        return [_text(path, self.tokenizer) for path in paths]


def load_beam_decoder(
    lm_path: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    lm_unit: LmUnit = "word",
    beam_width: int = 64,
    lm_weight: float = 0.5,
    word_insertion_bonus: float = 0.0,
) -> WordBeamDecoder | CharacterBeamDecoder:
    """Return a decoder that maximises ln p(text | frames) + lm_weight * ln p(text) + word_insertion_bonus * words.

    `lm_path` is an n-gram model: an ARPA file, gzipped or not, or a binary of KenLM. With `lm_unit` "word" it is over the
    words of the transcripts, and only its words are recognised; they are read from the file, which must be an ARPA file
    then. With "character" it is over the tokens of the tokenizer, the space being its word delimiter, and whatever the
    tokenizer can spell is recognised; that is for scripts without spaces too, and has no word_insertion_bonus. The search
    is that of Wav2Letter++ (Pratap et al. 2018, https://arxiv.org/abs/1812.07625); alignments of one text are added up.

    Raises `ArgumentError` for options that do not go together, and `ModelError` where the package is missing, and for a
    file that is missing, cannot be read, is of the other unit or has no word that the tokenizer can spell.
    """
    if beam_width < 1:
        raise ArgumentError(f"--beam_width {beam_width}: expected at least 1.")
    if not Path(lm_path).is_file():
        raise ModelError(f"--lm_path {lm_path}: no such file.")
    _import_flashlight()
    options = {"beam_size": beam_width, "beam_threshold": BEAM_THRESHOLD, "lm_weight": lm_weight}
    if lm_unit == "character":
        if word_insertion_bonus:
            raise ArgumentError(
                f"--word_insertion_bonus {word_insertion_bonus} needs a language model of words: with --lm_unit "
                "character leave it out."
            )
        return _load_character_decoder(lm_path, tokenizer, options)
    return _load_word_decoder(lm_path, tokenizer, options | {"word_score": word_insertion_bonus})


def _import_flashlight() -> None:
    try:
        import flashlight.lib.text.decoder.kenlm  # noqa: F401
    except ImportError as error:
        raise ModelError(
            f"--decoder beam needs the package ufal-flashlight-text: pip install 'sft-hf[lm]' ({error})."
        ) from None


def _load_word_decoder(lm_path: str, tokenizer: PreTrainedTokenizerBase, options: dict[str, float]) -> WordBeamDecoder:
    from flashlight.lib.text.decoder import LexiconDecoder, LexiconDecoderOptions

    spellings = _spell_words(lm_path, tokenizer)
    words = ["<unk>", *spellings]
    lm = _load_lm(lm_path, words)
    trie = _build_trie(lm, list(spellings.values()), vocab_size=len(tokenizer), root=tokenizer.word_delimiter_token_id)
    beam = LexiconDecoder(
        LexiconDecoderOptions(**_flashlight_options(options, tokenizer), unk_score=-math.inf),
        trie,
        lm,
        tokenizer.word_delimiter_token_id,
        tokenizer.pad_token_id,
        0,  # the number of <unk>
        [],
        False,
    )
    return WordBeamDecoder(beam, words, tokenizer.word_delimiter_token_id)


def _load_character_decoder(
    lm_path: str, tokenizer: PreTrainedTokenizerBase, options: dict[str, float]
) -> CharacterBeamDecoder:
    from flashlight.lib.text.decoder import LexiconFreeDecoder, LexiconFreeDecoderOptions

    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    if not _is_binary(lm_path):
        _check_characters(lm_path, tokens)
    beam = LexiconFreeDecoder(
        LexiconFreeDecoderOptions(**_flashlight_options(options, tokenizer)),
        _load_lm(lm_path, tokens),
        _delimiter_id(tokenizer),
        tokenizer.pad_token_id,
        [],
    )
    return CharacterBeamDecoder(beam, tokenizer)


def _flashlight_options(options: dict[str, float], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    from flashlight.lib.text.decoder import CriterionType

    return {
        **options,
        # KenLM's logarithms are decimal.
        "lm_weight": options["lm_weight"] * math.log(10),
        "beam_size_token": len(tokenizer),
        "sil_score": 0.0,
        "log_add": True,
        "criterion_type": CriterionType.CTC,
    }


def _load_lm(lm_path: str, entries: list[str]) -> Any:
    """Return KenLM's model, in which the entries are numbered in their order."""
    from flashlight.lib.text.decoder.kenlm import KenLM
    from flashlight.lib.text.dictionary import Dictionary

    dictionary = Dictionary()
    for entry in entries:
        dictionary.add_entry(entry)
    try:
        return KenLM(lm_path, dictionary)
    except RuntimeError as error:
        raise ModelError(f"--lm_path {lm_path} cannot be read: {str(error).splitlines()[-1]}") from None


def _build_trie(lm: Any, spellings: list[list[int]], *, vocab_size: int, root: int) -> Any:
    from flashlight.lib.text.decoder import SmearingMode, Trie

    trie, start = Trie(vocab_size, root), lm.start(False)
    for number, spelling in enumerate(spellings, start=1):
        trie.insert(spelling, number, lm.score(start, number)[1])
    # So that a word that has only begun already carries the score of the best one it can become.
    trie.smear(SmearingMode.MAX)
    return trie


def _spell_words(lm_path: str, tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    """Return the token ids of each word of an ARPA file, with the space behind it."""
    delimiter_id = _delimiter_id(tokenizer)
    if _is_binary(lm_path):
        raise ModelError(
            f"--lm_path {lm_path} is a binary of KenLM, from which the words cannot be read: give the ARPA file it was made "
            "from, or a language model of characters with --lm_unit character."
        )
    words = list(_read_words(lm_path))
    if tokenizer.word_delimiter_token in words:
        raise ModelError(
            f'--lm_path {lm_path} has "{tokenizer.word_delimiter_token}", the space, among its words: it looks like a '
            "language model of characters, for --lm_unit character."
        )
    ids = {word: tokenizer.convert_tokens_to_ids(tokenizer.tokenize(word)) for word in words}
    spellings = {word: [*spelling, delimiter_id] for word, spelling in ids.items() if _is_spelled(spelling, tokenizer)}
    if not spellings:
        raise ModelError(
            f"--lm_path {lm_path}: none of its {len(words)} words, such as {words[:3]}, can be spelled with the model's "
            "tokens. Is its casing that of the transcripts?"
        )
    if len(spellings) < len(words):
        logger.info(
            "%s: %d of %d words cannot be spelled with the model's tokens and are left out.",
            lm_path, len(words) - len(spellings), len(words),
        )  # fmt: skip
    return spellings


def _is_spelled(spelling: list[int], tokenizer: PreTrainedTokenizerBase) -> bool:
    return tokenizer.unk_token_id not in spelling and tokenizer.word_delimiter_token_id not in spelling


def _check_characters(lm_path: str, tokens: list[str]) -> None:
    words = set(_read_words(lm_path))
    if not words & set(tokens):
        raise ModelError(
            f"--lm_path {lm_path}: none of its {len(words)} entries, such as {sorted(words)[:3]}, is a token of the model. "
            "With --lm_unit character it has to be over the model's tokens; for words it is --lm_unit word."
        )


def _delimiter_id(tokenizer: PreTrainedTokenizerBase) -> int:
    delimiter_id = getattr(tokenizer, "word_delimiter_token_id", None)
    if delimiter_id is None:
        raise ModelError(
            f"--decoder beam needs a tokenizer of characters with a word delimiter, and {type(tokenizer).__name__} has "
            "none: use --decoder greedy."
        )
    return delimiter_id


def _is_binary(lm_path: str) -> bool:
    with open(lm_path, "rb") as file:
        return file.read(len(KENLM_BINARY)) == KENLM_BINARY


def _read_words(lm_path: str) -> Iterator[str]:
    r"""Yield the entries of the section \1-grams: of an ARPA file."""
    is_gzipped = lm_path.endswith(".gz")
    with gzip.open(lm_path, "rt", errors="replace") if is_gzipped else open(lm_path, errors="replace") as file:
        lines = (line.strip() for line in file)
        if "\\1-grams:" not in lines:  # consumes them up to there
            raise ModelError(f"--lm_path {lm_path} is neither an ARPA file nor a binary of KenLM: no \\1-grams: in it.")
        for line in lines:
            if line.startswith("\\"):
                return
            if line and (word := line.split()[1]) not in SENTENCE_MARKS:
                yield word


def _emissions(logits: Tensor, num_frames: Tensor) -> Iterator[np.ndarray]:
    """Yield the logarithms of the probabilities of each utterance, `(frames, vocab)` without the padding."""
    log_probabilities = logits.detach().float().log_softmax(dim=-1).cpu().numpy()
    for utterance, length in zip(log_probabilities, num_frames.tolist(), strict=True):
        yield np.ascontiguousarray(utterance[:length])


def _best(beam: Any, emissions: np.ndarray) -> Any:
    return beam.decode(emissions.ctypes.data, *emissions.shape)[0]


def _text(path: list[int], tokenizer: PreTrainedTokenizerBase) -> str:
    # Not skip_special_tokens: it drops the blanks before repetitions are grouped, and GOOD becomes GOD.
    return tokenizer.decode(path, skip_special_tokens=False)
