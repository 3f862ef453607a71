"""The layers of ARCHITECTURE hold, and a folder that nobody placed in them fails."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def copy(tmp_path) -> Path:
    """The package's modules and settings, to break in a test."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    source = ROOT / "src" / "latentloom"
    for module in source.rglob("*.py"):
        place = tmp_path / "latentloom" / module.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(module, place)
    return tmp_path


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--no-logo"]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_tree_as_it_is_keeps_the_layers(copy):
    done = lint_imports(copy)
    assert done.returncode == 0, done.stdout
    assert "1 kept, 0 broken" in done.stdout


def test_an_undeclared_folder_fails(copy):
    (copy / "latentloom" / "helpers").mkdir()
    (copy / "latentloom" / "helpers" / "__init__.py").write_text('"""Nobody placed this in a row."""\n')
    done = lint_imports(copy)
    assert done.returncode == 1
    assert "latentloom.helpers" in done.stdout


def test_an_import_of_a_higher_row_fails(copy):
    errors = copy / "latentloom" / "errors.py"
    errors.write_text("import latentloom.cli\n" + errors.read_text())
    done = lint_imports(copy)
    assert done.returncode == 1
    assert "latentloom.errors -> latentloom.cli" in done.stdout
