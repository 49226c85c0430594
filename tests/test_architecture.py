"""House rules that one file cannot show: imports go one way, tests mirror files, nothing of one machine is in it."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "sft_hf"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")

# Interfaces without a line of their own to run: every task's and method's test runs them.
TESTED_ELSEWHERE = {"method.py": "test_contract.py", "task.py": "test_contract.py"}


def layers() -> dict[str, int]:
    """Module or folder of sft_hf -> its line in the list of docs/architecture.md; a line imports from none below it."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    section = text.split("## Imports go one way")[1].split("\n## ")[0]
    lines = [line.strip().split(", ") for line in section.splitlines() if line.startswith("    ")]
    return {name: number for number, line in enumerate(lines) for name in line}


def name_of(path: Path) -> str:
    """sft_hf/data/labels.py -> data.labels; sft_hf/data/__init__.py -> data."""
    return ".".join(part for part in path.relative_to(PACKAGE).with_suffix("").parts if part != "__init__")


def imported(path: Path) -> Iterator[str]:
    """What a file imports of sft_hf, at its top or inside of a function: data.labels.Labels."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name.removeprefix("sft_hf.") for name in names if name.startswith("sft_hf."))


def test_the_list_names_what_there_is():
    there = {name_of(path).split(".")[0] for path in MODULES}
    assert set(layers()) == there
    assert len(layers()) > 15


def test_imports_go_one_way():
    layer = layers()
    upwards = [
        f"{name_of(path)} imports {name}"
        for path in MODULES
        for name in imported(path)
        # a name that is no module is of the package's contract, on top of it all
        if layer.get(name.split(".")[0], len(layer)) > layer[name_of(path).split(".")[0]]
    ]
    assert upwards == []


def test_tasks_and_methods_know_none_of_each_other_and_are_known_to_none():
    """The import in a recipe is the dispatch."""
    known = [
        f"{name_of(path)} imports {name}"
        for path in MODULES
        for name in imported(path)
        if name.startswith(("tasks.", "methods."))
    ]
    assert known == []


def test_models_import_no_processor_with_themselves():
    """transformers imports its Auto classes, at which our models register, in the middle of importing these.

    The registration would fail inside of transformers, which goes on without a word, and a saved model of ours could not be loaded.
    """
    registering = [path for path in (PACKAGE / "models").glob("*.py") if "\nregister()\n" in path.read_text()]
    assert len(registering) == 4
    for path in registering:
        names = [
            alias.name
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.ImportFrom) and node.module == "transformers"
            for alias in node.names
        ]
        assert not [name for name in names if re.search("Processor|Tokenizer|FeatureExtractor", name)], path.name


def test_every_module_has_a_test_file_that_mirrors_it():
    missing = []
    for path in MODULES:
        relative = path.relative_to(PACKAGE)
        mirror = TESTED_ELSEWHERE.get(str(relative), relative.with_name(f"test_{relative.name}"))
        if path.name != "__init__.py" and not (ROOT / "tests" / mirror).is_file():
            missing.append(str(mirror))
    assert missing == []


# Each pattern is written so that it does not match itself.
LOCAL = {
    "a folder of one machine": r"(?<![\w.])/(wor[k]|op[t]|roo[t]|Users|mn[t])/\w",
    "a home": r"/hom[e]/(?!me\b)\w",
    "a package index": r"(extra-)?inde[x]-url|trusted-hos[t]",
    "an address": r"(?<![\w.])(10|172|192)\.\d{1,3}\.\d{1,3}\.\d{1,3}(?![\w.])",
    "a token": r"\bhf_[A-Za-z0-9]{30,}|\bgh[a-z]_[A-Za-z0-9]{30,}|\bpypi-[A-Za-z0-9_-]{30,}",
}


def test_no_path_index_or_token_of_a_machine_is_in_the_repository():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = []
    for name in listed.stdout.splitlines():
        if not (ROOT / name).is_file():
            continue
        text = (ROOT / name).read_text(encoding="utf-8", errors="replace")
        found += [
            f"{name}: {what}: {match[0]}" for what, pattern in LOCAL.items() for match in re.finditer(pattern, text)
        ]
    assert found == []
