"""Transcripts for people: what was said above what was recognised, word by word, the worst utterances first.

    utterances = metrics.worst(50)
    write_worst_utterances("reports/worst.html", utterances, names={17: "test/17.flac"}, audio={17: "17.flac"})
    print(aligned_text(utterances[0], width=100))

    REF: the cat sat *** **** down      the page shows the same, and lets one listen
    HYP: the cut sat and then down
    OPS:     S       I   I

A page is one file: it needs no network and no script, and nothing in it depends on color alone.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from rich.cells import cell_len

from sft_hf.metrics.transcription import Operation, Utterance

MARKS = {"equal": "", "substitution": "S", "deletion": "D", "insertion": "I"}
UNITS = {"wer": "word", "cer": "character"}
NOTHING = "*"  # as wide as the word that one side lacks
PREFIXES = ("REF:", "HYP:", "OPS:")
DEFAULT_WIDTH = 100  # cells of a terminal

SPACE, BASE, UNPRINTABLE = "␣", "◌", "\ufffd"  # a space as a character; what a mark stands on; a control character

# Tints of Okabe and Ito's colors (2008, https://jfly.uni-koeln.de/color/), which are readable on white and on black.
STYLE = """
:root { color-scheme: light dark; }
body { max-width: 75rem; margin: 2rem auto; padding: 0 1rem; font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.4rem; }
article { margin: 1.5rem 0; padding-top: 0.5rem; border-top: 1px solid #8888; }
h2 { margin: 0; font-size: 1rem; overflow-wrap: anywhere; }
h2 small { margin-inline-start: 1em; font-size: 1rem; font-weight: normal; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 1em; margin: 0.5rem 0; }
dt { opacity: 0.75; }
dd { margin: 0; overflow-wrap: anywhere; white-space: pre-wrap; }
audio { width: 100%; max-width: 30rem; }
ol { display: flex; flex-wrap: wrap; gap: 0.5rem 0.25rem; margin: 0.5rem 0; padding: 0; list-style: none; }
li { display: flex; flex-direction: column; padding: 0 0.3rem; border-radius: 0.25rem; }
li > * { unicode-bidi: isolate; overflow-wrap: anywhere; }
abbr { align-self: center; font-size: 0.75rem; font-weight: bold; }
abbr, del, ins { text-decoration: none; }
.gap { opacity: 0.75; }
.substitution { background: #e69f0055; outline: 1px solid #e69f00; }
.deletion { background: #56b4e955; outline: 1px dashed #56b4e9; }
.insertion { background: #cc79a755; outline: 1px dotted #cc79a7; }
"""


def write_worst_utterances(
    path: str | Path,
    utterances: Sequence[Utterance],
    *,
    metric: Literal["wer", "cer"] = "wer",
    names: Mapping[int, str] | None = None,
    audio: Mapping[int, str] | None = None,
) -> None:
    """Write a page of utterances in their order: each one's error rate, its texts as they are, and their alignment.

    `metric` is what `operations` are of: `wer`, of words, or `cer`, of characters. By example id, `names` are those of the
    clips, and `audio` is where to hear them: a `data:` URI, or a path relative to the page. Raises ValueError for audio
    elsewhere, because a page that is opened without a network should be whole, and one with it tell nobody.
    """
    names, audio = names or {}, audio or {}
    articles = [
        _article(
            f"{number}. {_name(utterance, names)}", utterance, metric=metric, audio=audio.get(utterance.example_id)
        )
        for number, utterance in enumerate(utterances, start=1)
    ]
    title = f"Worst utterances by {metric.upper()}"
    lines = [
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>",
        *([_legend(metric), *articles] if articles else ["<p>No utterance has an error.</p>"]),
        "</body>\n</html>\n",
    ]
    _write(path, lines)


def write_worst_utterances_as_text(
    path: str | Path,
    utterances: Sequence[Utterance],
    *,
    metric: Literal["wer", "cer"] = "wer",
    names: Mapping[int, str] | None = None,
    width: int = DEFAULT_WIDTH,
) -> None:
    """Write the same as text: of each utterance a line with its name and error rate, and below it `aligned_text`."""
    blocks = [
        f"{number}. {_printable(_name(utterance, names or {}))}  {_score(utterance, metric)}\n"
        f"{aligned_text(utterance, width=width)}\n"
        for number, utterance in enumerate(utterances, start=1)
    ]
    _write(path, blocks or ["No utterance has an error.\n"])


def aligned_text(utterance: Utterance, *, width: int = DEFAULT_WIDTH) -> str:
    """Return the lines REF, HYP and OPS, in which each word has a column; after `width` cells they go on in three more.

    S is a substituted, D a deleted and I an inserted word (or character), and asterisks stand where it is missing. Widths
    are those of a terminal, where a Chinese character takes two cells and an accent none. Terminals turn right-to-left
    words around, each in its way: the page is better for those.
    """
    groups: list[list[tuple[str, ...]]] = []
    used = 0
    for column in map(_column, utterance.operations):
        size = 1 + cell_len(column[0])
        if not groups or used + size > width - len(PREFIXES[0]):
            groups.append([])
            used = 0
        groups[-1].append(column)
        used += size
    return "\n\n".join(_three_lines(columns) for columns in groups)


def _write(path: str | Path, lines: Sequence[str]) -> None:
    # A lone surrogate, which a JSON file can hold, has no UTF-8.
    Path(path).write_text("\n".join(lines), encoding="utf-8", errors="replace")


def _name(utterance: Utterance, names: Mapping[int, str]) -> str:
    return names.get(utterance.example_id, f"example {utterance.example_id}")


def _score(utterance: Utterance, metric: str) -> str:
    errors, length = _counted(utterance.num_errors, "error"), _counted(utterance.length, UNITS[metric])
    if utterance.length == 0:
        return f"{metric.upper()} undefined ({errors}, {length} in the reference)"
    return f"{metric.upper()} {100 * utterance.error_rate:.1f} % ({errors}, {length})"


def _counted(number: int, unit: str) -> str:
    return f"{number or 'no'} {unit}{'' if number == 1 else 's'}"


def _shown(token: str) -> str:
    """A word, or a character that can be seen."""
    if token == " ":
        return SPACE
    text = _printable(token)
    return BASE + text if text and unicodedata.category(text[0]).startswith("M") else text


def _printable(text: str) -> str:
    """Without what would command a terminal, such as escape."""
    return "".join(UNPRINTABLE if unicodedata.category(one) == "Cc" and one not in "\n\t" else one for one in text)


# ---- text ----


def _column(operation: Operation) -> tuple[str, ...]:
    """Reference, hypothesis and mark, equally wide."""
    reference, hypothesis = _shown(operation.reference), _shown(operation.hypothesis)
    size = max(cell_len(reference), cell_len(hypothesis), 1)
    cells = (reference or NOTHING * size, hypothesis or NOTHING * size, MARKS[operation.kind])
    return tuple(text + " " * (size - cell_len(text)) for text in cells)


def _three_lines(columns: Sequence[tuple[str, ...]]) -> str:
    rows = zip(PREFIXES, zip(*columns, strict=True), strict=True)
    return "\n".join(" ".join([prefix, *cells]).rstrip() for prefix, cells in rows)


# ---- HTML ----


def _legend(metric: str) -> str:
    unit = UNITS[metric]
    kinds = {
        "substitution": f"another {unit} was recognised",
        "deletion": f"the {unit} was missed",
        "insertion": f"the {unit} is not in the reference",
    }
    entries = [f'<li class="{kind}"><span>{MARKS[kind]}: {meaning}</span></li>' for kind, meaning in kinds.items()]
    return (
        "<p>The texts as they are, and below them what is compared: each "
        f"{unit} of the reference above that of the hypothesis.</p>\n<ol>{''.join(entries)}</ol>"
    )


def _article(heading: str, utterance: Utterance, *, metric: str, audio: str | None) -> str:
    direction = _direction(utterance.reference + utterance.hypothesis)
    aligned = "\n".join(map(_aligned, utterance.operations))
    return "\n".join(
        [
            f"<article>\n<h2><bdi>{_escaped(heading)}</bdi> <small>{_score(utterance, metric)}</small></h2>",
            *([f'<audio controls preload="none" src="{escape(_source(audio))}"></audio>'] if audio is not None else []),
            f"<dl>\n<dt>Reference</dt>{_text(utterance.reference)}",
            f"<dt>Hypothesis</dt>{_text(utterance.hypothesis)}\n</dl>",
            # The language is not known, and English would be a guess.
            f'<ol dir="{direction}" lang="">\n{aligned}\n</ol>\n</article>',
        ]
    )


def _text(text: str) -> str:
    return f'<dd dir="auto" lang="">{_escaped(text)}</dd>' if text else "<dd><i>empty</i></dd>"


def _aligned(operation: Operation) -> str:
    reference, hypothesis = _escaped(_shown(operation.reference)), _escaped(_shown(operation.hypothesis))
    if operation.kind == "equal":
        return f"<li><span>{reference}</span><span>{hypothesis}</span></li>"
    gap = f'<span class="gap">{NOTHING * 3}</span>'
    before = f"<del>{reference}</del>" if reference else gap
    after = f"<ins>{hypothesis}</ins>" if hypothesis else gap
    mark = f'<abbr title="{operation.kind}">{MARKS[operation.kind]}</abbr>'
    return f'<li class="{operation.kind}">{before}{after}{mark}</li>'


def _escaped(text: str) -> str:
    return escape(_printable(text))


def _direction(text: str) -> str:
    """As the first letter runs: `dir="auto"` would not look into the words, which are elements of their own."""
    strong = (unicodedata.bidirectional(character) for character in text)
    return "rtl" if next((kind for kind in strong if kind in ("L", "R", "AL")), "L") != "L" else "ltr"


def _source(audio: str) -> str:
    if audio.startswith("data:"):
        return audio
    if "://" in audio or audio.startswith(("/", "\\")):
        raise ValueError(f"audio is {audio}, expected a data: URI or a path relative to the page")
    return quote(audio)
