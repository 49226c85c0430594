"""The wheel carries what a run needs, and a recipe's own header installs what it needs."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RECIPES = sorted((ROOT / "recipes").glob("*.py"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """Built as `pip install` builds it."""
    pytest.importorskip("hatchling", reason="hatchling, of the extra `test`, builds the wheel")
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    [path] = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_carries_recipes_configurations_and_licence(wheel):
    names = set(wheel.namelist())
    assert {
        "sft_hf/recipes/text_cls.py",
        "sft_hf/recipes/configs/text_cls/banking77.yaml",
        "sft_hf/accelerate_configs/multi_cpu.yaml",
    } <= names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    beside = [*(ROOT / "recipes").rglob("*.py"), *(ROOT / "recipes").rglob("*.yaml")]
    beside += (ROOT / "accelerate_configs").glob("*.yaml")
    assert {f"sft_hf/{path.relative_to(ROOT)}" for path in beside} <= names
    assert {str(path.relative_to(ROOT)) for path in (ROOT / "sft_hf").rglob("*.py")} <= names


def test_the_wheel_carries_nothing_else(wheel):
    assert [name for name in wheel.namelist() if not re.match(r"sft_hf(/|-[0-9.]+\.dist-info/)", name)] == []
    assert [name for name in wheel.namelist() if "__pycache__" in name or "/test" in name] == []


def test_the_wheel_has_the_console_script(wheel):
    [name] = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
    assert "sft-hf = sft_hf.cli:main" in wheel.read(name).decode()


def header(recipe: Path) -> dict:
    """The inline metadata of a script (PEP 723), found by the regular expression of the specification."""
    pattern = r"(?m)^# /// (?P<type>[a-zA-Z0-9-]+)$\s(?P<content>(^#(| .*)$\s)+)^# ///$"
    [match] = [match for match in re.finditer(pattern, recipe.read_text()) if match["type"] == "script"]
    return tomllib.loads(
        "".join(line.removeprefix("#").removeprefix(" ") for line in match["content"].splitlines(True))
    )


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_s_header_names_what_the_project_names(recipe):
    metadata = header(recipe)
    assert metadata["requires-python"] == PROJECT["requires-python"]
    wanted = set(metadata["dependencies"])
    assert not any(re.match(r"sft[-_.]hf\b", requirement) for requirement in wanted)  # it is on no index
    assert wanted <= {*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["demo"]}
