"""Options made of a settings class: what is given on the command line, in a file, and by neither."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Annotated, Literal

import pytest
import typer
from pydantic import Field

from latentloom.cli.config_options import config_command
from latentloom.cli.main import NOUNS, Noun, run
from latentloom.runs import Config


class Settings(Config):
    """One field of every kind."""

    num_steps: Annotated[int, Field(ge=1)] = Field(3, description="Steps.")
    rate: float = Field(0.5, description="Rate.")
    is_fast: bool = Field(False, description="Speed.")
    kind: Literal["plain", "fancy"] = Field("plain", description="Kind.")
    data_root: Path | None = Field(None, description="Folder.")
    name: str | None = Field(None, description="Name.")
    seeds: tuple[int, ...] = Field((0,), min_length=1, description="Seeds.")
    shares: tuple[float, ...] = Field((), description="Shares.")


@pytest.fixture
def seen(monkeypatch):
    """What the command `latentloom probe` was called with."""
    calls = []

    def probe(settings: Settings, *, out_dir: Annotated[Path, typer.Option("--out-dir")] = Path("runs")) -> None:
        """Take the settings."""
        calls.append((settings, out_dir))

    module = ModuleType("latentloom_probe")
    vars(module)["command"] = config_command(Settings, probe)
    monkeypatch.setitem(sys.modules, "latentloom_probe", module)
    monkeypatch.setitem(NOUNS, "probe", Noun("latentloom_probe", "Only here for tests."))
    return calls


def given(seen, *arguments):
    assert run(["probe", *arguments]) == 0
    return seen[-1][0]


def test_nothing_given_is_the_defaults(seen):
    assert given(seen) == Settings.model_validate({})
    assert seen[-1][1] == Path("runs")


def test_every_kind_of_field_is_read(seen):
    arguments = ["--num-steps", "7", "--rate", "1e-3", "--is-fast", "1", "--kind", "fancy", "--data-root", "a/b"]
    arguments += ["--name", "x", "--seeds", "1,2", "--shares", "0.5, 0.25", "--out-dir", "there"]
    settings = given(seen, *arguments)
    assert settings == Settings(
        num_steps=7, rate=1e-3, is_fast=True, kind="fancy", data_root=Path("a/b"), name="x", seeds=(1, 2),
        shares=(0.5, 0.25),
    )  # fmt: skip
    assert seen[-1][1] == Path("there")


@pytest.mark.parametrize("spelling", ["--num_steps=7", "--num-steps=7"])
def test_dashes_and_underscores_are_the_same(seen, spelling):
    assert given(seen, spelling).num_steps == 7


@pytest.mark.parametrize(("text", "value"), [("0", False), ("1", True), ("true", True), ("false", False)])
def test_a_boolean_is_a_digit_or_a_word(seen, text, value):
    assert given(seen, "--is_fast", text).is_fast is value


@pytest.mark.parametrize("text", ["2026-02-09", "[1]", "1e3", "true", "a=b", "it's", '"quoted"', "C:\\new", "übung"])
def test_paths_and_texts_are_taken_as_they_are(seen, text):
    settings = given(seen, "--data-root", text, "--name", text)
    assert (settings.data_root, settings.name) == (Path(text), text)


def test_one_item_or_brackets_make_a_list_too(seen):
    assert given(seen, "--seeds", "5").seeds == (5,)
    assert given(seen, "--seeds", "[5, 6]").seeds == (5, 6)


def test_options_change_the_file_which_changes_the_defaults(seen, tmp_path):
    file = tmp_path / "settings.toml"
    file.write_text('num_steps = 8\nrate = 2.0\ndata_root = "here"\nseeds = [4]\n')
    settings = given(seen, "--config", str(file), "--rate", "3", "--data-root", "none")
    assert (settings.num_steps, settings.rate, settings.seeds) == (8, 3.0, (4,))
    assert settings.data_root is None
    assert settings.kind == "plain"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--num-steps", "0"], "num_steps = 0"),
        (["--num-steps", "many"], "num_steps = 'many'"),
        (["--kind", "odd"], "kind = 'odd'"),
        (["--is-fast", "2"], "is_fast = 2"),
        (["--seeds", ""], "seeds"),
        (["--seeds", "a,b"], "seeds"),
        (["--config", "/nowhere.toml"], "/nowhere.toml"),
        (["--num-step", "1"], "--num-steps"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_called(seen, capsys, arguments, said):
    assert run(["probe", *arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert said in lines[0]
    assert seen == []


def test_a_key_of_the_file_that_is_unknown_names_the_nearest(seen, tmp_path, capsys):
    (tmp_path / "settings.toml").write_text("num_stepps = 8\n")
    assert run(["probe", "--config", str(tmp_path / "settings.toml")]) == 2
    assert "num_steps" in capsys.readouterr().err
    assert seen == []


def test_help_states_fields_values_and_defaults(seen, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert run(["probe", "--help"]) == 0
    page = capsys.readouterr().out
    for name, field in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')}" in page
        assert field.description is not None
        assert field.description in page
    for part in ("Take the settings.", "plain|fancy", "0|1", "INTEGER,...", "(default: 0.5)", "(default: plain)"):
        assert part in page
