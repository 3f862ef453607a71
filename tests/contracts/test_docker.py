"""The container's entry point starts what it is asked for, in as many processes as the machine has accelerators."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENTRY_POINT = ROOT / "docker" / "entrypoint.sh"
RECIPES = ["8gpu_latent_mae", "8gpu_drifting_latent", "wan22_te_ft", "wan22_dit_lora_translator"]
OF_ONE_MACHINE = [
    "--nproc_per_node",
    "3",
    "--nnodes",
    "1",
    "--node_rank",
    "0",
    "--master_addr",
    "127.0.0.1",
    "--master_port",
    "29500",
]


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder whose torchrun and latentloom tell how they were called, and whose python counts three GPUs."""
    says = {name: f"printf '%s\\n' {name} \"$@\"" for name in ("torchrun", "latentloom")}
    for name, line in {**says, "python": "echo 3"}.items():
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{line}\n")
        path.chmod(0o755)
    return tmp_path


def enter(programs: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The entry point's run, with no more in its environment than is given."""
    given = {"PATH": f"{programs}:/usr/bin:/bin", **environment}
    return subprocess.run([ENTRY_POINT, *arguments], env=given, capture_output=True, text=True, check=False)


def called(programs: Path, *arguments: str, **environment: str) -> list[str]:
    """The program that the entry point became, and its arguments."""
    done = enter(programs, *arguments, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_other_words_go_to_the_command_as_they_are(programs):
    words = ["generate", "A red circle.", "--out", "my clip.mp4", ""]
    assert called(programs, *words) == ["latentloom", *words]
    assert called(programs) == ["latentloom", "--help"]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_trained_in_a_process_per_accelerator(programs, name):
    program, *words = called(programs, name, "--seeds", "0,1")
    assert program == "torchrun"
    assert words[:10] == OF_ONE_MACHINE
    assert words[-2:] == ["--seeds", "0,1"]
    assert Path(words[words.index("--config") + 1]).samefile(ROOT / "recipes" / f"{name}.toml")


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith("8gpu")])
def test_a_recipe_runs_the_command_that_its_comment_states(programs, name):
    stated = re.search(r"torchrun .*(--no-python .*) --config", (ROOT / "recipes" / f"{name}.toml").read_text())
    words = called(programs, name)
    assert stated is not None
    assert words[11 : words.index("--config")] == stated[1].split()


def test_launch_runs_any_command_in_a_process_per_accelerator(programs):
    words = ["drift", "train", "--dataset", "fake"]
    assert called(programs, "launch", *words) == ["torchrun", *OF_ONE_MACHINE, "--no-python", "latentloom", *words]


def test_the_environment_sets_processes_and_machines(programs):
    machines = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1234"}
    words = called(programs, "8gpu_latent_mae", NPROC_PER_NODE="8", **machines)
    assert words[1:11] == (
        [
            "--nproc_per_node",
            "8",
            "--nnodes",
            "2",
            "--node_rank",
            "1",
            "--master_addr",
            "10.0.0.1",
            "--master_port",
            "1234",
        ]
    )


def test_a_stated_number_of_processes_needs_no_counting(programs):
    (programs / "python").write_text("#!/bin/sh\nexit 1\n")
    assert called(programs, "8gpu_latent_mae", NPROC_PER_NODE="2")[1:3] == ["--nproc_per_node", "2"]


def test_a_count_that_fails_starts_nothing(programs):
    (programs / "python").write_text("#!/bin/sh\nexit 1\n")
    done = enter(programs, "8gpu_latent_mae")
    assert done.returncode != 0
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("words", "environment", "missing"),
    [
        (["8gpu_latent_mae"], {"NNODES": "2", "NODE_RANK": "0"}, "MASTER_ADDR"),
        (["8gpu_latent_mae"], {"NNODES": "2", "MASTER_ADDR": "10.0.0.1"}, "NODE_RANK"),
        (["launch"], {}, "launch drift train"),
    ],
)
def test_what_is_missing_is_said_in_one_line(programs, words, environment, missing):
    done = enter(programs, *words, **environment)
    assert done.returncode == 2
    assert done.stdout == ""
    assert missing in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_it_is_found_through_a_link_and_from_another_folder(programs, tmp_path):
    link = tmp_path / "start"
    link.symlink_to(ENTRY_POINT)
    given = {"PATH": f"{programs}:/usr/bin:/bin"}
    done = subprocess.run([link, "8gpu_latent_mae"], env=given, cwd="/", capture_output=True, text=True, check=True)
    words = done.stdout.splitlines()
    assert Path(words[words.index("--config") + 1]).is_file()


def test_the_real_launcher_and_the_real_command_understand_each_other(tmp_path):
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {"PATH": path, "HOME": str(tmp_path), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    environment["MASTER_PORT"] = "0"  # any that is free, as tests run side by side
    command = [ENTRY_POINT, "launch", "drift", "train", "--help"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--n-classes-step" in done.stdout


def test_the_image_starts_the_entry_point_that_is_here():
    text = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
    stated = re.search(r'ENTRYPOINT \["/opt/latentloom/(.*)"\]', text)
    assert stated is not None
    assert ROOT / stated[1] == ENTRY_POINT
    assert os.access(ENTRY_POINT, os.X_OK)
    assert "COPY . /opt/latentloom" in text
