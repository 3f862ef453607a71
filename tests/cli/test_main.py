"""The command's doors: help without torch, option spelling, one-line mistakes, exit codes, JSON."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Annotated

import pytest
import typer

from latentloom.cli import main as cli
from latentloom.cli.main import NOUNS, Noun, load_noun, run
from latentloom.cli.options import JsonOption, emit_json
from latentloom.errors import CheckpointError

COMMAND = Path(sys.executable).with_name("latentloom")


@pytest.fixture
def probe(monkeypatch):
    """A noun `probe` whose body is the function that a test hands in; its arguments are the command's."""

    def install(body):
        module = ModuleType("latentloom_probe")
        setattr(module, "app" if isinstance(body, typer.Typer) else "command", body)
        monkeypatch.setitem(sys.modules, "latentloom_probe", module)
        monkeypatch.setitem(NOUNS, "probe", Noun("latentloom_probe", "Only here for tests."))

    return install


@pytest.fixture
def echo(probe):
    """`probe` prints what it was given, as JSON."""

    def body(
        name: str = "none",
        ckpt_root: str = "none",
        num_frames: Annotated[int, typer.Option("--num-frames", "-n")] = 9,
        keep_names: bool = False,
        words: Annotated[list[str] | None, typer.Argument()] = None,
    ) -> None:
        """Print the arguments."""
        print(json.dumps([name, ckpt_root, num_frames, keep_names, words or []]))

    probe(body)


def said(capsys) -> tuple[str, str]:
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_help_lists_every_noun_without_importing_torch_or_any_noun():
    program = (
        "import sys; from latentloom.cli.main import run; code = run(['--help']); "
        "loaded = [m for m in sys.modules if m.split('.')[0] in ('torch', 'numpy', 'diffusers', 'transformers') "
        "or m.startswith('latentloom.cli.') and m != 'latentloom.cli.main']; "
        "print(code, loaded)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"
    for name, noun in NOUNS.items():
        assert name in done.stdout
        assert noun.help.split(",")[0] in done.stdout


def test_help_answers_within_half_a_second_times_three_for_a_busy_machine():
    times = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([COMMAND, "--help"], check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    assert min(times) < 1.5


def test_no_arguments_show_the_help_page(capsys):
    assert run([]) == 0
    assert "Usage: latentloom" in said(capsys)[0]


def test_version_is_the_one_of_the_installed_package(capsys):
    from importlib.metadata import version

    assert run(["--version"]) == 0
    assert said(capsys)[0] == f"latentloom {version('latentloom')}\n"


@pytest.mark.parametrize("name", NOUNS)
def test_every_noun_of_the_table_loads_and_documents_itself(name):
    command = load_noun(name)
    assert command.name == name
    parts = getattr(command, "commands", {name: command})
    assert parts
    assert all(part.help for part in parts.values())


@pytest.mark.parametrize(
    "arguments",
    [
        ["--ckpt_root", "a_b", "--num_frames", "5", "--keep_names"],
        ["--ckpt-root", "a_b", "--num-frames", "5", "--keep-names"],
        ["--ckpt_root=a_b", "--num-frames=5", "--keep_names"],
        ["--ckpt_root=a_b", "-n5", "--no_keep_names", "--keep-names"],
    ],
)
def test_options_take_dashes_and_underscores(echo, capsys, arguments):
    assert run(["probe", *arguments]) == 0
    assert json.loads(said(capsys)[0]) == ["none", "a_b", 5, True, []]


def test_values_keep_their_underscores(echo, capsys):
    assert run(["probe", "--name=--a_b=c_d", "--ckpt_root", "--x_y", "w_w", "--", "--ckpt_root", "--no_such=1_0"]) == 0
    assert json.loads(said(capsys)[0]) == ["--a_b=c_d", "--x_y", 9, False, ["w_w", "--ckpt_root", "--no_such=1_0"]]


def test_option_spelling_reaches_the_commands_of_a_group(probe, capsys):
    group = typer.Typer()

    @group.command("draw-clips")
    def draw_clips(num_clips: int = 1) -> None:
        """Draw."""
        print(num_clips)

    probe(group)
    assert run(["probe", "draw-clips", "--num_clips=3"]) == 0
    assert said(capsys)[0] == "3\n"


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["generat"], ["'generat'", "Did you mean 'generate'?", "Commands: demo, generate, ", "`latentloom --help`"]),
        (["probe", "--num-frame", "5"], ["--num-frame", "Options: ", "--num-frames", "`latentloom probe --help`"]),
        (
            ["probe", "--num-frames", "many"],
            ["given was 'many'", "--num-frames", "integer", "`latentloom probe --help`"],
        ),
        (["probe", "--num-frames"], ["--num-frames", "requires an argument"]),
        (["--json"], ["--json", "Options: --version"]),
    ],
)
def test_a_usage_mistake_is_one_line_on_stderr_and_exits_2(echo, capsys, arguments, parts):
    assert run(arguments) == 2
    out, err = said(capsys)
    assert out == ""
    assert err.startswith("latentloom: ")
    assert err.count("\n") == 1
    for part in parts:
        assert part in err


def test_a_bare_group_names_its_commands_in_one_line(probe, capsys):
    group = typer.Typer(no_args_is_help=True)
    group.command("draw")(lambda: None)
    group.command("read")(lambda: None)
    probe(group)
    assert run(["probe"]) == 2
    assert said(capsys) == ("", "latentloom: Missing command. Commands: draw, read. See `latentloom probe --help`.\n")


def test_an_error_of_the_package_is_its_message_in_one_line(probe, capsys):
    def body() -> None:
        """Fail."""
        raise CheckpointError("model.safetensors holds a VAE\nand this takes a transformer; give --ckpt-root a folder")

    probe(body)
    assert run(["probe"]) == 2
    expected = "latentloom: model.safetensors holds a VAE and this takes a transformer; give --ckpt-root a folder\n"
    assert said(capsys) == ("", expected)


def test_a_file_from_the_command_line_that_cannot_be_opened_is_the_users_mistake(probe, capsys, tmp_path):
    def body(prompts: Path = Path("unset")) -> None:
        """Read a file."""
        prompts.read_text()

    probe(body)
    missing = tmp_path / "prompts.txt"
    for arguments in (["--prompts", str(missing)], [f"--prompts={missing}"]):
        assert run(["probe", *arguments]) == 2
        assert said(capsys)[1].startswith(f"latentloom: {missing}: No such file or directory")


@pytest.mark.parametrize("spelling", ["{file}/reports/new", "{file}//reports/./new", "--out={file}/reports/new"])
def test_a_path_through_a_file_is_the_users_mistake_however_it_is_spelled(probe, capsys, tmp_path, spelling):
    def body(folder: Annotated[Path | None, typer.Argument()] = None, out: Path | None = None) -> None:
        """Make a folder."""
        (folder or out or Path()).mkdir(parents=True)

    probe(body)
    (tmp_path / "file").write_text("")
    assert run(["probe", spelling.format(file=tmp_path / "file")]) == 2
    assert said(capsys)[1].startswith(f"latentloom: {tmp_path / 'file' / 'reports'}")


def test_a_file_that_the_user_never_named_is_a_bug(probe):
    def body() -> None:
        """Read a file of our own."""
        Path("forgotten.bin").read_bytes()

    probe(body)
    with pytest.raises(FileNotFoundError):
        run(["probe"])


def test_a_bug_keeps_its_exception(probe):
    def body() -> None:
        """Break."""
        raise ZeroDivisionError

    probe(body)
    with pytest.raises(ZeroDivisionError):
        run(["probe"])


def test_a_returned_value_is_no_exit_code_and_a_raised_exit_is(probe):
    def returns() -> int:
        """Return."""
        return 7

    def leaves() -> None:
        """Leave."""
        raise typer.Exit(7)

    probe(returns)
    assert run(["probe"]) == 0
    probe(leaves)
    assert run(["probe"]) == 7


class TestJson:
    @pytest.fixture
    def measure(self, probe):
        def body(json_file: JsonOption = None) -> None:
            """Measure."""
            print("a table for people")
            emit_json(json_file, {"accuracy": 0.5, "of": "größe", "missing": None})

        probe(body)

    def test_dash_puts_the_payload_and_nothing_else_on_stdout(self, measure, capsys):
        assert run(["probe", "--json", "-"]) == 0
        out, err = said(capsys)
        assert json.loads(out) == {"accuracy": 0.5, "of": "größe", "missing": None}
        assert err == "a table for people\n"

    def test_stdout_is_given_back_after_the_command(self, measure, capsys):
        before = sys.stdout
        run(["probe", "--json", "-"])
        assert sys.stdout is before
        assert run(["probe"]) == 0
        assert said(capsys)[0].endswith("a table for people\n")

    def test_a_file_receives_the_payload(self, measure, capsys, tmp_path):
        target = tmp_path / "score.json"
        target.write_text("old")
        assert run(["probe", "--json", str(target)]) == 0
        assert json.loads(target.read_text()) == {"accuracy": 0.5, "of": "größe", "missing": None}
        assert os.listdir(tmp_path) == ["score.json"]
        assert said(capsys) == ("a table for people\n", "")

    def test_a_folder_is_refused_before_anything_is_measured(self, measure, capsys, tmp_path):
        assert run(["probe", "--json", str(tmp_path)]) == 2
        out, err = said(capsys)
        assert out == ""
        assert "is a folder" in err

    def test_a_file_that_cannot_be_written_is_the_users_mistake(self, measure, capsys, tmp_path):
        blocker = tmp_path / "file"
        blocker.write_text("")
        assert run(["probe", "--json", str(blocker / "score.json")]) == 2
        err = said(capsys)[1]
        assert err.count("\n") == 1
        assert str(blocker / "score.json") in err

    def test_a_number_that_json_cannot_hold_becomes_null(self, tmp_path):
        target = tmp_path / "score.json"
        emit_json(str(target), {"accuracy": float("nan"), "ratios": [1.0, float("inf")]})
        assert json.loads(target.read_text()) == {"accuracy": None, "ratios": [1.0, None]}


def test_exit_codes_of_the_real_command(tmp_path):
    refused = subprocess.run([COMMAND, "embeddd"], capture_output=True, text=True, check=False)
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)

    broken = tmp_path / "broken.py"
    broken.write_text(
        "import sys, time\n"
        "from latentloom.cli import main\n"
        "main.NOUNS['probe'] = main.Noun('broken', 'Only here for tests.')\n"
        "def command(wait: bool = False):\n"
        "    '''Break or wait.'''\n"
        "    print('started', flush=True)\n"
        "    time.sleep(60 * wait)\n"
        "    raise RuntimeError('a bug')\n"
        "sys.modules['broken'] = sys.modules[__name__]\n"
        "main.main()\n"
    )
    bug = subprocess.run([sys.executable, broken, "probe"], capture_output=True, text=True, check=False)
    assert bug.returncode == 1
    assert bug.stderr.startswith("Traceback (most recent call last)")
    assert bug.stderr.endswith("RuntimeError: a bug\n")

    with subprocess.Popen([sys.executable, broken, "probe", "--wait"], stdout=subprocess.PIPE, text=True) as waiting:
        assert waiting.stdout is not None
        assert waiting.stdout.readline() == "started\n"
        waiting.send_signal(signal.SIGINT)
        assert waiting.wait(timeout=20) == 130


def test_main_exits_with_the_code_of_the_command_line(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["latentloom", "--version"])
    with pytest.raises(SystemExit) as exit_info:
        cli.main()
    assert exit_info.value.code == 0
