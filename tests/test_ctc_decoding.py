"""Decoding: the best path as the pipeline reads it, a beam whose language model puts it right, and each error."""

import gzip
import math
import sys
from importlib.util import find_spec

import pytest
import torch
from transformers import AutoTokenizer, BertTokenizer

from sft_hf.ctc_decoding import GreedyDecoder, load_beam_decoder
from sft_hf.data.vocabulary import build_tokenizer
from sft_hf.errors import ArgumentError, ModelError

# Decimal logarithms. A day is good, and who goes, goes home.
WORDS = r"""
\data\
ngram 1=8
ngram 2=5

\1-grams:
-1.0	<unk>
0	<s>	-0.5
-0.9	</s>
-1.0	GO	-0.3
-1.2	HOME	-0.3
-1.5	GOOD	-0.3
-1.6	DAY	-0.3
-1.6	ÜBER	-0.3

\2-grams:
-0.3	<s> GO
-0.2	GO HOME
-0.1	HOME </s>
-0.2	GOOD DAY
-0.1	DAY </s>

\end\
"""

CHARACTERS = r"""
\data\
ngram 1=6
ngram 2=3

\1-grams:
-2.0	<unk>
0	<s>	-0.5
-0.9	</s>
-1.0	你	-0.3
-1.0	好	-0.3
-1.0	号	-0.3

\2-grams:
-0.2	<s> 你
-0.1	你 好
-0.1	好 </s>

\end\
"""

needs_flashlight = pytest.mark.skipif(find_spec("flashlight") is None, reason="the extra lm is not installed")


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(["GO HOME", "GOOD DAY", "MIX"])


@pytest.fixture
def arpa(tmp_path):
    (tmp_path / "words.arpa").write_text(WORDS)
    return str(tmp_path / "words.arpa")


@pytest.fixture
def character_arpa(tmp_path):
    (tmp_path / "characters.arpa").write_text(CHARACTERS)
    return str(tmp_path / "characters.arpa")


def frames(*texts, tokenizer, rivals=()):
    """Return logits of one frame a symbol, `-` being the blank, and frame counts; padding frames say M.

    A symbol has probability 0.9; `rivals` has (row, frame, symbol, probability) of a second one.
    """
    ids = [
        [tokenizer.pad_token_id if symbol == "-" else tokenizer(symbol)["input_ids"][0] for symbol in text]
        for text in texts
    ]
    probabilities = torch.full((len(ids), max(map(len, ids)), len(tokenizer)), 1e-6)
    for row, path in enumerate(ids):
        probabilities[row, range(len(path)), path] = 0.9
        probabilities[row, len(path) :, 5] = 0.9
    for row, frame, symbol, probability in rivals:
        probabilities[row, frame, tokenizer(symbol)["input_ids"][0]] = probability
    return probabilities.log(), torch.tensor([len(path) for path in ids])


# Greedy


def test_repetitions_and_blanks_go_and_the_padding_does_not_count(tokenizer):
    logits, num_frames = frames("GGO--O  DD", "-G-", "----", tokenizer=tokenizer)
    assert GreedyDecoder(tokenizer)(logits, num_frames) == ["GOO D", "G", ""]
    assert GreedyDecoder(tokenizer)(logits.bfloat16(), num_frames) == ["GOO D", "G", ""]


def test_of_no_frames_there_is_no_text(tokenizer):
    logits, _ = frames("GO", tokenizer=tokenizer)
    assert GreedyDecoder(tokenizer)(logits, torch.tensor([0])) == [""]


def test_a_doubled_letter_needs_its_blank(tokenizer):
    """Decoding without special tokens would drop the blank first."""
    logits, num_frames = frames("GO-OD", "GOOD", tokenizer=tokenizer)
    assert GreedyDecoder(tokenizer)(logits, num_frames) == ["GOOD", "GOD"]


def test_a_reloaded_tokenizer_decodes_the_same(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    logits, num_frames = frames("GO-OD DAY", tokenizer=tokenizer)
    assert GreedyDecoder(AutoTokenizer.from_pretrained(tmp_path))(logits, num_frames) == ["GOOD DAY"]


# A beam with a language model of words


@needs_flashlight
def test_the_language_model_puts_a_misheard_letter_right(tokenizer, arpa):
    """GOOD DAX is heard with a Y that is less likely; GO HOXE is no word in any reading of it."""
    rivals = [(0, 8, "Y", 0.05), (1, 5, "M", 0.01)]
    logits, num_frames = frames("GO-OD DAX", "GO HOXE", tokenizer=tokenizer, rivals=rivals)
    assert GreedyDecoder(tokenizer)(logits, num_frames) == ["GOOD DAX", "GO HOXE"]
    assert load_beam_decoder(arpa, tokenizer)(logits, num_frames) == ["GOOD DAY", "GO HOME"]


@needs_flashlight
@pytest.mark.parametrize("file", ["arpa", "gz"])
def test_the_weight_decides_between_what_is_heard_and_what_is_likely(tokenizer, arpa, file, tmp_path):
    """After GO, HOME has ln 10 * -0.2 and DAY ln 10 * (-0.3 - 1.6): 3.9 apart. DAY is heard e^5 more clearly."""
    if file == "gz":
        arpa = str(tmp_path / "words.arpa.gz")
        with gzip.open(arpa, "wt") as stream:
            stream.write(WORDS)
    logits, num_frames = frames("GO DAY-", tokenizer=tokenizer)
    for frame, symbol in enumerate("HOME", start=3):
        logits[0, frame, tokenizer(symbol)["input_ids"][0]] = math.log(0.9) - 5 / 4
    gap = math.log(10) * (0.3 + 1.6 - 0.2)
    assert gap == pytest.approx(3.9, abs=0.02)
    for weight, expected in [(0.0, "GO DAY"), (4.9 / gap, "GO DAY"), (5.1 / gap, "GO HOME")]:
        assert load_beam_decoder(arpa, tokenizer, lm_weight=weight)(logits, num_frames) == [expected]


@needs_flashlight
def test_the_bonus_is_for_each_word(tokenizer, arpa):
    """The path of GO is e^6 more probable than that of GO GO, and GO has a second one with a space: 6 + ln(1 + e^-2)."""
    assert 6 + math.log(1 + math.exp(-2)) == pytest.approx(6.13, abs=0.005)
    logits, num_frames = frames("GO---", tokenizer=tokenizer)
    for frame, symbol in enumerate(" GO", start=2):
        logits[0, frame, tokenizer(symbol)["input_ids"][0]] = math.log(0.9) - 6 / 3
    for bonus, expected in [(6.1, "GO"), (6.2, "GO GO")]:
        decode = load_beam_decoder(arpa, tokenizer, lm_weight=0.0, word_insertion_bonus=bonus)
        assert decode(logits, num_frames) == [expected]


@needs_flashlight
def test_alignments_of_one_text_are_added_up(tokenizer, tmp_path):
    """Two frames of blank 0.6, M 0.4: silence has one alignment, 0.36, and M has three, 0.64."""
    (tmp_path / "words.arpa").write_text(WORDS.replace("DAY", "M"))
    probabilities = torch.full((1, 2, len(tokenizer)), 1e-9)
    probabilities[..., tokenizer.pad_token_id], probabilities[..., tokenizer("M")["input_ids"][0]] = 0.6, 0.4
    logits, num_frames = probabilities.log(), torch.tensor([2])
    assert GreedyDecoder(tokenizer)(logits, num_frames) == [""]
    assert load_beam_decoder(str(tmp_path / "words.arpa"), tokenizer, lm_weight=0.0)(logits, num_frames) == ["M"]


@needs_flashlight
def test_a_last_letter_may_be_held_and_silence_stays_silence(tokenizer, arpa):
    """CTC puts no space behind the last word, where the beam wants one; frames of padding are not looked at."""
    logits, num_frames = frames("GO HOMEEE", "GO--", "----", "", "  GO  HOME ", tokenizer=tokenizer)
    assert load_beam_decoder(arpa, tokenizer)(logits, num_frames) == ["GO HOME", "GO", "", "", "GO HOME"]


@needs_flashlight
def test_only_words_of_the_model_that_can_be_spelled_are_in_a_text(tokenizer, arpa, caplog):
    """MIX is no word of it, and its ÜBER has a letter that the tokenizer does not have."""
    logits, num_frames = frames("MIX", tokenizer=tokenizer)
    with caplog.at_level("INFO", logger="sft_hf"):
        decode = load_beam_decoder(arpa, tokenizer)
    assert "1 of 5 words cannot be spelled with the model's tokens" in caplog.text
    assert decode.words == ["<unk>", "GO", "HOME", "GOOD", "DAY"]
    assert "MIX" not in decode(logits, num_frames)[0]


# A beam with a language model of characters


@needs_flashlight
def test_a_language_model_of_characters_for_a_script_without_spaces(character_arpa):
    """号 and 好 sound alike, and 好 follows 你. Whatever else is heard is written too."""
    tokenizer = build_tokenizer(["你好号么"])
    logits, num_frames = frames("你-号号", "么-么", tokenizer=tokenizer, rivals=[(0, 2, "好", 0.3), (0, 3, "好", 0.3)])
    assert GreedyDecoder(tokenizer)(logits, num_frames) == ["你号", "么么"]
    decode = load_beam_decoder(character_arpa, tokenizer, lm_unit="character", lm_weight=1.0)
    assert decode(logits, num_frames) == ["你好", "么么"]


# Errors


def test_a_file_that_is_not_there(tokenizer, tmp_path):
    with pytest.raises(ModelError, match=r"--lm_path .*none\.arpa: no such file"):
        load_beam_decoder(str(tmp_path / "none.arpa"), tokenizer)


def test_a_beam_of_nothing(tokenizer, arpa):
    with pytest.raises(ArgumentError, match="--beam_width 0: expected at least 1"):
        load_beam_decoder(arpa, tokenizer, beam_width=0)


def test_the_missing_package_is_named(tokenizer, arpa, monkeypatch):
    monkeypatch.setitem(sys.modules, "flashlight.lib.text.decoder.kenlm", None)
    with pytest.raises(
        ModelError, match=r"--decoder beam needs the package ufal-flashlight-text: pip install 'sft-hf\[lm\]'"
    ):
        load_beam_decoder(arpa, tokenizer)


@needs_flashlight
def test_what_is_no_language_model(tokenizer, tmp_path):
    path = tmp_path / "words.txt"
    path.write_bytes(b"GO HOME\n\xff\xfe")
    with pytest.raises(ModelError, match=r"words\.txt is neither an ARPA file nor a binary of KenLM"):
        load_beam_decoder(str(path), tokenizer)
    path.write_text(WORDS.replace("ngram 1=8", "ngram 1=80"))
    with pytest.raises(ModelError, match=r"words\.txt cannot be read: "):
        load_beam_decoder(str(path), tokenizer)


@needs_flashlight
def test_the_words_of_a_binary_cannot_be_read(tokenizer, tmp_path):
    (tmp_path / "words.bin").write_bytes(b"mmap lm http://kheafield.com/code format version 5\n\x00")
    with pytest.raises(
        ModelError, match="is a binary of KenLM, from which the words cannot be read: give the ARPA file"
    ):
        load_beam_decoder(str(tmp_path / "words.bin"), tokenizer)


@needs_flashlight
def test_words_in_another_casing(arpa):
    with pytest.raises(
        ModelError, match=r"none of its 5 words, such as \['GO', 'HOME', 'GOOD'\], can be spelled .* casing"
    ):
        load_beam_decoder(arpa, build_tokenizer(["go home"]))


@needs_flashlight
def test_the_unit_of_the_language_model_must_be_the_one_said(tokenizer, arpa, character_arpa, tmp_path):
    (tmp_path / "spaced.arpa").write_text(CHARACTERS.replace("号", "|"))
    with pytest.raises(ModelError, match='has "|", the space, among its words'):
        load_beam_decoder(str(tmp_path / "spaced.arpa"), build_tokenizer(["你 好"]))
    with pytest.raises(ModelError, match=r"none of its 5 entries, such as \['DAY', 'GO', 'GOOD'\], is a token"):
        load_beam_decoder(arpa, tokenizer, lm_unit="character")
    with pytest.raises(ArgumentError, match=r"--word_insertion_bonus 1\.0 needs a language model of words"):
        load_beam_decoder(character_arpa, tokenizer, lm_unit="character", word_insertion_bonus=1.0)


@needs_flashlight
def test_a_tokenizer_without_a_word_delimiter(arpa, tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\ngo\n")
    with pytest.raises(
        ModelError, match="needs a tokenizer of characters with a word delimiter, and BertTokenizer has none"
    ):
        load_beam_decoder(arpa, BertTokenizer(str(tmp_path / "vocab.txt")))
