"""What every file of the package and its documentation keeps to."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
TEXTS = sorted([*SOURCES, *(ROOT / "docs").rglob("*.md"), ROOT / "README.md"])

BOASTS = re.compile(r"\b(enhanced|advanced|ultimate)\b", re.IGNORECASE)
# pictographs, dingbats, flags, and the selector that turns a plain sign into one
EMOJI = re.compile("[\U0001f1e6-\U0001f1ff\U0001f300-\U0001faff\u2600-\u27bf\ufe0f]")


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


@pytest.mark.parametrize("path", SOURCES, ids=named)
def test_a_file_has_at_most_400_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


@pytest.mark.parametrize("path", TEXTS, ids=named)
def test_texts_hold_no_emoji_and_no_boast(path):
    text = path.read_text(encoding="utf-8")
    assert EMOJI.findall(text) == []
    assert BOASTS.findall(text) == []


@pytest.mark.parametrize("path", [*SOURCES, *sorted((ROOT / "tests").rglob("*.py"))], ids=named)
def test_nothing_imports_torchvision(path):
    assert [name for name in imports(path) if name.split(".")[0] == "torchvision"] == []


@pytest.mark.parametrize("path", [path for path in SOURCES if path.name == "__init__.py"], ids=named)
def test_every_package_says_what_it_is(path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


def test_the_package_and_its_command_import_no_torch():
    modules = [
        "latentloom",
        *(f"latentloom.cli.{path.stem}" for path in (ROOT / "src/latentloom/cli").glob("[a-z]*.py")),
    ]
    program = (
        f"import sys\nfor name in {modules!r}:\n    __import__(name)\n    assert 'torch' not in sys.modules, name\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
