"""Normalisers: Whisper's rules, and the two basic ones that are not; what they leave of other scripts."""

# ruff: noqa: RUF001 - letters of other scripts are meant

import pickle
import sys

import pytest
from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

from sft_hf.data.transcripts import NORMALIZERS, load_normalizer
from sft_hf.errors import ArgumentError

basic, english = load_normalizer("basic"), load_normalizer("english")


class WhisperTokenizer:
    def __init__(self, spellings):
        self.english_spelling_normalizer = spellings


# English


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Mr. Smith's colour -- um, it's twenty-one!", "mister smith is color it is 21"),
        ("twenty-one", "21"),
        ("TWENTY SIX", "26"),
        ("one oh one", "101"),
        ("the thirty first", "the 31st"),
        ("it's", "it is"),
        ("we can't, they won't", "we can not they will not"),
        ("The grey theatre's programme", "the gray theater is program"),
        ("a café [laughs] (door) in town", "a cafe in town"),
        ("$1,200.50 or five per cent", "$1200.50 or 5%"),
        ("one", "one"),
        ("A L L E N", "a l l e n"),
    ],
)
def test_english_by_hand(text, expected):
    assert english(text) == expected


TEXTS = [
    "I'd been to St. Paul's; they'll've gone by the 1960s, won't they?",
    "Nine thousand, two hundred and two dollars and fifty cents!",
    "Dr. Jones organised the aluminium; ma'am, y'all wanna colour the grey centre?",
    "three point one four, double seven, minus twenty degrees",
    "hmm well... uh-huh...",
]


@pytest.mark.parametrize("text", TEXTS)
def test_english_is_whispers_but_for_spaces_around(text):
    whisper = EnglishTextNormalizer(english.rules[-1].standardize_spellings.mapping)
    assert english(text) == whisper(text).strip()


def test_british_words_are_whispers_1739():
    mapping = english.rules[-1].standardize_spellings.mapping
    assert len(mapping) == 1739
    assert (mapping["accessorise"], mapping["yoghurts"]) == ("accessorize", "yogurts")


def test_the_list_of_a_whisper_tokenizer_is_taken_where_it_has_one(monkeypatch):
    monkeypatch.setitem(sys.modules, "whisper_normalizer.english", None)
    normalize = load_normalizer("english", tokenizer=WhisperTokenizer({"lorry": "truck"}))
    assert normalize("A grey lorry") == "a grey truck"


@pytest.mark.parametrize("tokenizer", [WhisperTokenizer(None), object(), None])
def test_any_other_tokenizer_gets_the_list_of_the_package(tokenizer):
    assert load_normalizer("english", tokenizer=tokenizer)("colour") == "color"


@pytest.mark.parametrize("tokenizer", [WhisperTokenizer(None), None])
def test_without_a_list_english_is_refused_rather_than_scored_by_other_rules(monkeypatch, tokenizer):
    monkeypatch.setitem(sys.modules, "whisper_normalizer.english", None)
    with pytest.raises(
        ArgumentError, match=r"--normalizer english: .* package whisper-normalizer.* --normalizer basic"
    ):
        load_normalizer("english", tokenizer=tokenizer)


@pytest.mark.parametrize("digits", ["9" * 9000, "999," * 3000 + "9"])
def test_a_number_of_any_length_is_no_error(digits):
    """Python reads up to 4,300 digits, and a recogniser that is caught in a loop writes more."""
    assert english(digits).replace(" ", "") == digits.replace(",", "")


# Any language


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("¿Qué? El 50 %, [ruido] señor.", "qué el 50 señor"),
        ("L'homme -- (rire) DIT: <unk> «oui»!", "l homme dit oui"),
        ("Ｆｕｌｌ ｗｉｄｔｈ, ﬁne", "full width fine"),
        ("re\u0301sume\u0301", "r\u00e9sum\u00e9"),
        ("it's twenty-one", "it s twenty one"),
        ("\u2764\ufe0f 1\ufe0f\u20e3 ok", "1 ok"),
    ],
)
def test_basic_by_hand(text, expected):
    assert basic(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *TEXTS,
        "Größe, ÆRØ und Straße?",
        "Что это -- «ёлка»?",
        "Τι είναι αυτό;",
        "Ngày 20 tháng 11, tiếng Việt.",
        "안녕하세요, 세계!",
        "שלום, עולם!",
        "مرحبا، بالعالم؟",
    ],
)
def test_basic_is_whispers_where_no_mark_stands_by_itself_and_words_are_spaced(text):
    assert basic(text) == BasicTextNormalizer()(text).strip()


@pytest.mark.parametrize(
    ("text", "whispers"),
    [
        ("हिन्दी में प्राचीन", "ह न द म प र च न"),
        ("எனக்கு", "எனக க"),
        ("বাংলা", "ব ল"),
        ("മലയാളം", "മലയ ള"),
        ("كَتَبَ", "ك ت ب"),
        ("שָׁלוֹם", "ש לו ם"),
        ("ẹ̀kọ́", "ẹ kọ"),
    ],
)
def test_vowel_signs_and_other_marks_stay_on_their_letters(text, whispers):
    """Whisper's rules leave consonants, each a word, of which many are right by themselves."""
    assert BasicTextNormalizer()(text).strip() == whispers
    assert basic(f"{text}!") == text


def test_a_mark_behind_a_joiner_stays():
    """Bengali writes ya-phala after ra with a zero-width joiner between the letter and its sign."""
    assert basic("র\u200d্যাব") == "র\u200d্যাব"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("你好，世界。", "你好世界"),
        ("我 爱 Python 编程", "我爱python编程"),
        ("コーヒー、 10 杯 です", "コーヒー10杯です"),
        ("สวัสดี ครับ", "สวัสดีครับ"),
        ("안녕 하세요", "안녕 하세요"),
        ("two words", "two words"),
    ],
)
def test_scripts_without_spaces_have_none(text, expected):
    assert basic(text) == expected


def test_without_spaces_cer_is_what_whisper_calls_wer_of_split_letters():
    """Three of six letters differ, whether a comma is heard or not."""
    import jiwer

    reference, hypothesis = "你好，世界 再见", "你号世界，在建"
    split = BasicTextNormalizer(split_letters=True)
    assert jiwer.cer(basic(reference), basic(hypothesis)) == 3 / 6
    assert jiwer.wer(split(reference).strip(), split(hypothesis).strip()) == 3 / 6


# All


@pytest.mark.parametrize("text", ["", "  ", "[noise]", "(laughs)", "?!", "um, uh", "\n"])
def test_nothing_left_is_an_empty_text(text):
    assert english(text) == ""
    assert basic(text) == ("um uh" if "um" in text else "")


def test_none_changes_nothing():
    text = " Twenty-one,\tit's [noise]  "
    assert load_normalizer("none")(text) == text


@pytest.mark.parametrize("name", NORMALIZERS)
def test_a_normalizer_goes_to_another_process(name):
    normalize = load_normalizer(name)
    assert pickle.loads(pickle.dumps(normalize))("It's  GREY.") == normalize("It's  GREY.")


def test_another_name_is_refused():
    with pytest.raises(ArgumentError, match=r"^--normalizer whisper: expected none, basic, english\.$"):
        load_normalizer("whisper")
