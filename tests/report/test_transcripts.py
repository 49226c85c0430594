"""Pages of the worst utterances: what stands in which column, whole without a network, safe whatever a model wrote."""

from html.parser import HTMLParser

import pytest
from rich.cells import cell_len

from sft_hf.metrics.transcription import Utterance, align
from sft_hf.report.transcripts import aligned_text, write_worst_utterances, write_worst_utterances_as_text

VOID = {"meta"}  # elements without an end


def utterance(reference, hypothesis, *, example_id=7, unit="word"):
    return Utterance(example_id, reference, hypothesis, tuple(align(reference, hypothesis, unit=unit)))


CATS = utterance("the cat sat down", "the cut sat and then down")
FOREST = utterance("we go now", "we now")


class Page(HTMLParser):
    """A page taken apart: `elements` are tag, attributes and own text; each element must be closed in its turn."""

    def __init__(self, path):
        super().__init__()
        self.elements, self._open = [], []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes), []))
        if tag not in VOID:
            self._open.append(self.elements[-1])

    def handle_endtag(self, tag):
        assert self._open.pop()[0] == tag

    def handle_data(self, data):
        if self._open:
            self._open[-1][2].append(data)

    def texts(self, tag):
        return ["".join(texts) for name, _, texts in self.elements if name == tag]

    def attributes(self, tag):
        return [attributes for name, attributes, _ in self.elements if name == tag]


def page(tmp_path, *utterances, **options):
    path = tmp_path / "worst.html"
    write_worst_utterances(path, utterances, **options)
    return Page(path)


# Text


def test_each_operation_has_a_column():
    assert aligned_text(CATS) == (
        "REF: the cat sat *** **** down\n"
        "HYP: the cut sat and then down\n"
        "OPS:     S       I   I"
    )  # fmt: skip
    assert aligned_text(FOREST) == (
        "REF: we go now\n"
        "HYP: we ** now\n"
        "OPS:    D"
    )  # fmt: skip


def test_columns_are_as_wide_as_a_terminal_shows_them():
    """A Chinese character takes two cells, an accent none: by the number of characters the marks would be misplaced."""
    text = aligned_text(utterance("世界 e\u0301te\u0301 a", "世 e\u0301te b"))
    assert text == "REF: 世界 e\u0301te\u0301 a\nHYP: 世   e\u0301te b\nOPS: S    S   S"
    columns = [cell_len(line[: line.index(end)]) for line, end in zip(text.splitlines(), ("a", "b"), strict=False)]
    assert columns == [cell_len(text.splitlines()[2][:-1])] * 2


def test_a_missing_word_is_as_wide_as_a_terminal_shows_it():
    assert aligned_text(utterance("世界 a", "a")).splitlines()[1] == "HYP: **** a"


def test_long_lines_go_on_below():
    text = aligned_text(CATS, width=20)
    assert text == (
        "REF: the cat sat ***\n"
        "HYP: the cut sat and\n"
        "OPS:     S       I\n"
        "\n"
        "REF: **** down\n"
        "HYP: then down\n"
        "OPS: I"
    )  # fmt: skip
    assert max(map(len, text.splitlines())) == 20
    assert aligned_text(CATS, width=19).splitlines()[0] == "REF: the cat sat"


def test_a_word_longer_than_the_line_stands_alone():
    assert aligned_text(utterance("a straßenbahn b", "a b"), width=12).split("\n\n") == [
        "REF: a\nHYP: a\nOPS:",
        "REF: straßenbahn\nHYP: ***********\nOPS: D",
        "REF: b\nHYP: b\nOPS:",
    ]


def test_characters_that_cannot_be_seen_alone_are_shown():
    """A space, and a vowel sign that would stand on the column before."""
    assert aligned_text(utterance("a िb", "ab", unit="character")) == (
        "REF: a ␣ ◌ि b\n"
        "HYP: a * * b\n"
        "OPS:   D D"
    )  # fmt: skip


def test_a_text_file_names_each_utterance_and_its_rate(tmp_path):
    path = tmp_path / "worst.txt"
    write_worst_utterances_as_text(path, [CATS, FOREST, utterance("", "you", example_id=8)], names={8: "clips/8.wav"})
    assert path.read_text(encoding="utf-8") == (
        "1. example 7  WER 75.0 % (3 errors, 4 words)\n"
        f"{aligned_text(CATS)}\n"
        "\n"
        "2. example 7  WER 33.3 % (1 error, 3 words)\n"
        f"{aligned_text(FOREST)}\n"
        "\n"
        "3. clips/8.wav  WER undefined (1 error, no words in the reference)\n"
        "REF: ***\nHYP: you\nOPS: I\n"
    )


def test_a_text_file_commands_no_terminal(tmp_path):
    path = tmp_path / "worst.txt"
    write_worst_utterances_as_text(path, [utterance("a", "\x1b[2Jb\x07")], names={7: "\x1b]0;x"})
    assert path.read_text(encoding="utf-8").count("\ufffd") == 3
    assert not any(ord(character) < 32 and character != "\n" for character in path.read_text(encoding="utf-8"))


# The page


def test_a_page_shows_texts_rates_and_alignments(tmp_path):
    found = page(tmp_path, CATS, FOREST, names={7: "an4/7.flac"})
    assert found.texts("h1") == ["Worst utterances by WER"]
    assert found.texts("bdi") == ["1. an4/7.flac", "2. an4/7.flac"]
    assert found.texts("small") == ["WER 75.0 % (3 errors, 4 words)", "WER 33.3 % (1 error, 3 words)"]
    assert found.texts("dd") == ["the cat sat down", "the cut sat and then down", "we go now", "we now"]
    assert found.texts("del") == ["cat", "go"]
    assert found.texts("ins") == ["cut", "and", "then"]


def test_no_edit_is_told_by_its_color_alone(tmp_path):
    """Each has its letter, what the letter means stands above and at it, and asterisks stand for what is not there."""
    found = page(tmp_path, CATS, FOREST)
    assert found.texts("abbr") == ["S", "I", "I", "D"]
    assert [attributes["title"] for attributes in found.attributes("abbr")] == [
        "substitution",
        "insertion",
        "insertion",
        "deletion",
    ]
    assert found.texts("span")[:3] == [
        "S: another word was recognised",
        "D: the word was missed",
        "I: the word is not in the reference",
    ]
    assert found.texts("span").count("***") == 3


def test_a_page_by_characters_says_so(tmp_path):
    found = page(tmp_path, utterance("世 界", "世介", unit="character"), metric="cer")
    assert found.texts("h1") == ["Worst utterances by CER"]
    assert found.texts("small") == ["CER 66.7 % (2 errors, 3 characters)"]
    assert found.texts("del") == ["␣", "界"]


def test_an_empty_text_is_called_so(tmp_path):
    assert page(tmp_path, utterance("", "you")).texts("i") == ["empty"]


def test_without_errors_a_page_says_so(tmp_path):
    assert page(tmp_path).texts("p") == ["No utterance has an error."]
    write_worst_utterances_as_text(tmp_path / "worst.txt", [])
    assert (tmp_path / "worst.txt").read_text() == "No utterance has an error.\n"


@pytest.mark.parametrize(
    "hostile", ["<script>alert(1)</script>", "</ol></article>", '"><img src=x>', "&lt;b&gt; & 'x'"]
)
def test_what_a_model_or_a_file_name_says_is_text(tmp_path, hostile):
    twice = [utterance(hostile, f"{hostile} x", example_id=example_id) for example_id in (7, 8)]
    found = page(tmp_path, *twice, names={7: hostile, 8: "8"}, audio={7: f"{hostile}.wav", 8: f"data:{hostile}"})
    assert found.texts("dd") == [hostile, f"{hostile} x"] * 2
    assert found.texts("bdi") == [f"1. {hostile}", "2. 8"]
    assert not {"script", "img", "b"} & {tag for tag, _, _ in found.elements}
    assert all(set(attributes) == {"controls", "preload", "src"} for attributes in found.attributes("audio"))
    assert found.attributes("audio")[1]["src"] == f"data:{hostile}"


def test_a_page_is_whole_without_network_and_scripts(tmp_path):
    """No element loads anything, and the style names no address."""
    found = page(tmp_path, CATS, FOREST)
    assert not any({"src", "href", "onclick"} & set(attributes) for _, attributes, _ in found.elements)
    assert not {"script", "link", "iframe"} & {tag for tag, _, _ in found.elements}
    [style] = found.texts("style")
    assert "url(" not in style
    assert "@import" not in style
    assert "color-scheme: light dark" in style


def test_texts_run_in_their_own_direction_and_are_no_english(tmp_path):
    """The words too: in a row from left to right the first word of a Hebrew sentence would be its last."""
    found = page(
        tmp_path, utterance("שלום לכולם", "שלום"), utterance("123 مرحبا", "123"), utterance("12 cats", "12 cat")
    )
    legend, *rows = found.attributes("ol")
    assert legend == {}
    assert rows == [{"dir": "rtl", "lang": ""}, {"dir": "rtl", "lang": ""}, {"dir": "ltr", "lang": ""}]
    assert found.attributes("dd") == [{"dir": "auto", "lang": ""}] * 6
    assert found.attributes("html") == [{"lang": "en"}]


def test_a_lone_surrogate_and_control_characters_are_replaced(tmp_path):
    found = page(tmp_path, utterance("a \ud800b", "a c\x00d"))
    assert found.texts("dd") == ["a ?b", "a c\ufffdd"]


# Audio


def test_a_clip_is_played_from_beside_the_page_or_from_inside(tmp_path):
    second, third = utterance("a", "b", example_id=8), utterance("a", "b", example_id=9)
    inside = "data:audio/wav;base64,UklGRg=="
    found = page(tmp_path, CATS, second, third, audio={7: "clips/a b#1 50%.flac", 8: inside})
    assert [attributes["src"] for attributes in found.attributes("audio")] == ["clips/a%20b%231%2050%25.flac", inside]


@pytest.mark.parametrize("audio", ["https://example.org/a.wav", "//example.org/a.wav", "/clips/a.wav", "file:///a.wav"])
def test_audio_from_elsewhere_is_refused(tmp_path, audio):
    with pytest.raises(ValueError, match=f"^audio is {audio}, expected a data: URI or a path relative to the page$"):
        page(tmp_path, CATS, audio={7: audio})
