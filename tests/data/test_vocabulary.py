"""Transcripts to characters and back: every script, no space, what looks like a special token, and what has no token."""

import json
from collections import Counter

import pytest
from transformers import AutoTokenizer, Wav2Vec2CTCTokenizer

from sft_hf.data.vocabulary import build_tokenizer, covers, normalize_transcript, uncovered
from sft_hf.errors import DataError
from sft_hf.models.lstm import train_tokenizer

SCRIPTS = {
    "capitals": ["RUBOUT G M E F THREE NINE", "HELLO"],
    "mixed": ["Don't tell Anna: 20% off!", "A book, too", "é è ê \u2013 “quoted”"],
    "accents apart": ["cafe\u0301 too\u0308"],
    "hindi": ["नमस्ते दुनिया", "हिन्दी"],
    "chinese": ["你好你好", "好好学习"],
    "thai": ["สวัสดีครับ"],
    "arabic": ["مرحبا بالعالم"],
    "emoji": ["👍🏽 ok 👩‍👩‍👧"],
    "special tokens": ["[PAD] is a token, [UNK] is one", "<s> </s> <pad>"],
}


def round_trip(text, tokenizer):
    return tokenizer.decode(tokenizer(text)["input_ids"], group_tokens=False)


# Normalising


@pytest.mark.parametrize(
    ("text", "form", "casing", "expected"),
    [
        ("  two\twords \n", "none", "keep", "two words"),
        ("no\u00a0break\u3000ideographic", "none", "keep", "no break ideographic"),
        ("Don't SHOUT", "NFC", "keep", "Don't SHOUT"),
        ("Don't SHOUT", "NFC", "lower", "don't shout"),
        ("Don't SHOUT", "NFC", "upper", "DON'T SHOUT"),
        ("cafe\u0301", "NFC", "keep", "caf\u00e9"),
        ("caf\u00e9", "NFD", "keep", "cafe\u0301"),
        ("cafe\u0301", "none", "keep", "cafe\u0301"),
        ("\ufb01ne \uff21", "NFKC", "keep", "fine A"),
        ("\u2460", "NFKD", "keep", "1"),
        ("straße", "NFC", "upper", "STRASSE"),
        ("\u2121", "NFKC", "lower", "tel"),  # the sign ℡ hides its capitals from lower()
        ("J\u030c", "NFC", "lower", "\u01f0"),  # ǰ is one character, its capital two
        ("你好", "NFC", "upper", "你好"),
        (" \n ", "NFC", "lower", ""),
    ],
)  # fmt: skip
def test_normalising(text, form, casing, expected):
    result = normalize_transcript(text, unicode_normal_form=form, casing=casing)
    assert result == expected
    assert normalize_transcript(result, unicode_normal_form=form, casing=casing) == expected


# Building


def test_the_vocabulary_is_the_characters_in_order():
    tokenizer = build_tokenizer(iter(["GOOD DAY", "HELLO"]))
    assert tokenizer.get_vocab() == {token: index for index, token in enumerate(["[PAD]", "[UNK]", "|", *"ADEGHLOY"])}
    assert len(tokenizer) == 11
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.word_delimiter_token_id) == (0, 1, 2)
    assert tokenizer("GOOD DAY")["input_ids"] == [6, 9, 9, 4, 2, 4, 3, 10]
    assert build_tokenizer(["HELLO", "GOOD DAY"]).get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("reloaded", [False, True])
def test_pitfall_16_every_script_comes_back_as_it_was(script, reloaded, tmp_path):
    """With and without spaces, doubled letters, capitals and quotes at the start, and what looks like a special token."""
    texts = SCRIPTS[script]
    tokenizer = build_tokenizer(texts)
    if reloaded:
        tokenizer.save_pretrained(tmp_path)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert [round_trip(text, tokenizer) for text in texts] == texts
    assert len(tokenizer) == 3 + len(set("".join(texts)) - {" "})
    assert tokenizer.unk_token_id not in tokenizer(" ".join(texts))["input_ids"]
    assert covers(tokenizer, texts)


def test_a_character_is_a_code_point():
    """An accent apart, each mark of a syllable, the skin colour of an emoji."""
    assert len(build_tokenizer(["cafe\u0301"])) == 3 + 5
    assert len(build_tokenizer(["हि"])) == 3 + 2
    assert len(build_tokenizer(["👍🏽"])) == 3 + 2


def test_rare_characters_become_unknown():
    tokenizer = build_tokenizer(["aab", "a b c"], min_count=2)
    assert tokenizer.get_vocab() == {"[PAD]": 0, "[UNK]": 1, "|": 2, "a": 3, "b": 4}
    assert tokenizer("a c")["input_ids"] == [3, 2, 1]
    assert uncovered(["aab", "a b c"], tokenizer) == {"c": 1}


@pytest.mark.parametrize(("texts", "min_count"), [([], 1), (["", " "], 1), (["abc"], 2)])
def test_a_vocabulary_of_nothing_is_refused(texts, min_count):
    with pytest.raises(DataError, match=f"in the training transcripts is there {min_count} times or more"):
        build_tokenizer(texts, min_count=min_count)


@pytest.mark.parametrize("min_count", [1, 5])
def test_the_delimiter_in_a_transcript_is_refused(min_count):
    """It would be read as a space, in training and from the model."""
    with pytest.raises(DataError, match=r'have the character "\|" 3 times, .* spells the space: replace it'):
        build_tokenizer(["left | right", "a||b"], min_count=min_count)


# Saving and decoding


def test_auto_tokenizer_reloads_the_saved_one(tmp_path):
    """The same ids, no token more, and nothing lower-cased."""
    tokenizer = build_tokenizer(["It's John's", "good"])
    tokenizer.save_pretrained(tmp_path)
    reloaded = AutoTokenizer.from_pretrained(tmp_path)
    assert type(reloaded) is Wav2Vec2CTCTokenizer
    assert reloaded.get_vocab() == tokenizer.get_vocab() == json.loads((tmp_path / "vocab.json").read_text())
    assert len(reloaded) == len(tokenizer)
    assert (reloaded.bos_token, reloaded.eos_token, reloaded.do_lower_case) == (None, None, False)
    assert (reloaded.pad_token_id, reloaded.unk_token_id, reloaded.word_delimiter_token) == (0, 1, "|")
    reloaded.save_pretrained(tmp_path / "again")
    again = AutoTokenizer.from_pretrained(tmp_path / "again")
    assert (again.get_vocab(), again.bos_token) == (tokenizer.get_vocab(), None)


def test_frames_are_grouped_and_blanks_dropped():
    """As transformers' pipeline decodes. skip_special_tokens would drop the blanks before grouping: GOD DAY."""
    tokenizer = build_tokenizer(["GOOD DAY"])
    pad, space = tokenizer.pad_token_id, tokenizer.word_delimiter_token_id
    g, o, d, a, y = tokenizer("GODAY")["input_ids"]
    frames = [pad, g, g, o, pad, o, o, d, pad, space, space, d, a, a, y, pad, pad]
    assert tokenizer.decode(frames, skip_special_tokens=False) == "GOOD DAY"


def test_no_clean_up_moves_punctuation():
    assert round_trip("well , it 's", build_tokenizer(["well , it 's"])) == "well , it 's"


# Covering


def test_uncovered_characters_are_counted():
    tokenizer = build_tokenizer(["hello world"])
    assert uncovered(["Hello, world", "HELLO"], tokenizer) == Counter({"H": 2, "E": 1, "L": 2, "O": 1, ",": 1})
    assert not covers(tokenizer, ["Hello"])
    assert covers(tokenizer, ["low", "", "whole world"])
    assert covers(tokenizer, [])


def test_the_delimiter_of_a_checkpoint_covers_the_space_and_not_itself():
    """A "|" in a transcript would be read as a space."""
    tokenizer = build_tokenizer(["a b"])
    assert tokenizer("a|b")["input_ids"] == tokenizer("a b")["input_ids"]
    assert uncovered(["a b", "a|b"], tokenizer) == {"|": 1}


def test_a_checkpoint_without_a_delimiter_or_an_unknown_token(tmp_path):
    """facebook/wav2vec2-base-960h has both; others have neither, and id None for what they do not know."""
    (tmp_path / "vocab.json").write_text(json.dumps({"<pad>": 0, "A": 1, "B": 2}))
    tokenizer = Wav2Vec2CTCTokenizer(
        str(tmp_path / "vocab.json"), unk_token=None, bos_token=None, eos_token=None, word_delimiter_token=None
    )
    assert uncovered(["AB", "ABC"], tokenizer) == {"C": 1}
    assert uncovered(["A B"], tokenizer) == {" ": 1}


def test_a_tokenizer_of_bytes_covers_everything():
    assert covers(train_tokenizer(["hello"], vocab_size=300), ["你好 👍"])
