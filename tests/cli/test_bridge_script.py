"""The run script: which commands it starts, with which settings and environment."""

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "run_wedlm8b_ar_bridge.sh"
RECIPE = ["--config-name", "wedlm8b_ar_bridge"]
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")

RECORDER = f"""#!{sys.executable} -I
import json, os, sys
with open(os.environ["RECORD"], "a") as file:
    print(json.dumps([os.path.basename(sys.argv[0]), sys.argv[1:], dict(os.environ)]), file=file)
sys.exit(int(os.environ.get("FAIL", "0")))
"""


class Started(NamedTuple):
    name: str
    arguments: list[str]
    environment: dict[str, str]


def write_command(folder: Path, name: str, text: str) -> None:
    file = folder / name
    file.write_text(text)
    file.chmod(file.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def commands(tmp_path: Path) -> Path:
    """The folder whose commands the script finds first: stubs that record how they were started."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("latentloom", "torchrun"):
        write_command(folder, name, RECORDER)
    return folder


@pytest.fixture
def run(tmp_path: Path, commands: Path) -> Callable[..., list[Started]]:
    """Runs the script with stubs of its commands, and gives what each was started with."""

    def run(*arguments: str, expect: int = 0, **variables: str) -> list[Started]:
        record = tmp_path / "record.jsonl"
        record.unlink(missing_ok=True)
        environment = {"PATH": f"{commands}:/usr/bin:/bin", "RECORD": str(record), "HOME": str(tmp_path), **variables}
        done = subprocess.run(
            ["bash", str(SCRIPT), *arguments], env=environment, cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == expect, done.stderr
        return [Started(*json.loads(line)) for line in record.read_text().splitlines()]

    return run


def value_after(option: str, arguments: list[str]) -> str:
    return arguments[arguments.index(option) + 1]


def test_the_script_fetches_and_then_trains_offline_in_one_process(run) -> None:
    (fetch, fetched, before), (train, trained, after) = run()
    assert (fetch, fetched) == ("latentloom", ["bridge", "fetch", *RECIPE])
    assert train == "torchrun"
    assert trained == [
        *("--nnodes", "1", "--node_rank", "0", "--nproc_per_node", "1"),
        *("--master_addr", "127.0.0.1", "--master_port", "29500"),
        *("--no-python", "latentloom", "bridge", "train", *RECIPE),
    ]
    assert not any(name in before for name in OFFLINE)
    assert [after[name] for name in OFFLINE] == ["1", "1", "1"]


def test_every_variable_of_the_document_becomes_a_setting_of_both_commands(run) -> None:
    variables = {
        "MODEL_ID": "tencent/WeDLM-8B-Instruct",
        "LOCAL_MODEL_DIR": "/models/we dlm",
        "DATA_ROOT": "/data",
        "TRAIN_JSON": "a.json",
        "VAL_JSON": "b.json",
        "DTYPE": "fp32",
        "TASK": "t2l",
        "TRAIN_BATCH_SIZE": "4",
        "NUM_STEPS": "20000",
        "LR": "1e-4",
        "RUN_NAME": "one",
        "SAVE_DIR": "/out",
    }
    (_, fetched, _), (_, trained, _) = run("model.max_seq_len=512", **variables)
    settings = [
        "model.pretrained_model_name_or_path=tencent/WeDLM-8B-Instruct",
        "model.pretrained_local_dir=/models/we dlm",
        "data.data_root=/data",
        "data.train_json=a.json",
        "data.val_json=b.json",
        "training.dtype=fp32",
        "training.task=t2l",
        "training.train_batch_size=4",
        "training.num_steps=20000",
        "training.lr=1e-4",
        "logging.run_name=one",
        "logging.save_dir=/out",
        "model.max_seq_len=512",
    ]
    assert fetched[4:] == trained[trained.index("--config-name") + 2 :] == settings


def test_the_settings_of_the_script_are_settings_of_the_bridge(run) -> None:
    from latentloom.cli.bridge_settings import bridge_settings

    variables = {"DTYPE": "fp32", "TASK": "l2t", "LR": "5e-5", "NUM_STEPS": "7", "RUN_NAME": "x", "DATA_ROOT": "/data"}
    _, (_, trained, _) = run(**variables, WANDB_PROJECT="p", VAL_JSON="v.json", LOCAL_MODEL_DIR="m")
    settings = bridge_settings("wedlm8b_ar_bridge", None, trained[trained.index("--config-name") + 2 :])
    assert (settings.training.dtype, settings.training.task, settings.training.lr) == ("fp32", "l2t", 5e-5)
    assert (settings.training.num_steps, settings.logging.run_name, settings.logging.wandb) == (7, "x", True)
    assert (settings.data.data_root, settings.data.val_json) == (Path("/data"), "v.json")


def test_download_only_and_a_failed_fetch_train_nothing(run) -> None:
    assert [name for name, _, _ in run(DOWNLOAD_ONLY="1")] == ["latentloom"]
    assert [name for name, _, _ in run(FAIL="2", expect=2)] == ["latentloom"]


def test_processes_are_counted_from_the_graphics_cards_unless_given(run, commands: Path) -> None:
    write_command(commands, "nvidia-smi", "#!/bin/sh\nprintf 'GPU 0: a\\nGPU 1: b\\nGPU 2: c\\n'\n")
    assert value_after("--nproc_per_node", run()[1][1]) == "3"
    assert value_after("--nproc_per_node", run(NPROC_PER_NODE="8")[1][1]) == "8"
    write_command(commands, "nvidia-smi", "#!/bin/sh\necho no driver >&2\nexit 9\n")
    assert value_after("--nproc_per_node", run()[1][1]) == "1"


def test_nodes_come_from_slurm_unless_given(run, commands: Path) -> None:
    write_command(commands, "scontrol", '#!/bin/sh\n[ "$3" = "n[3-5]" ] && printf "n3\\nn4\\nn5\\n"\n')
    slurm = {"SLURM_NNODES": "3", "SLURM_NODEID": "2", "SLURM_JOB_NODELIST": "n[3-5]"}
    _, (_, trained, _) = run(**slurm)
    assert [value_after(name, trained) for name in ("--nnodes", "--node_rank", "--master_addr")] == ["3", "2", "n3"]
    own = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1234"}
    _, (_, trained, _) = run(**slurm, **own)
    options = ("--nnodes", "--node_rank", "--master_addr", "--master_port")
    assert [value_after(name, trained) for name in options] == list(own.values())


@pytest.mark.parametrize(
    ("variables", "logged"),
    [({}, False), ({"WANDB_PROJECT": "p"}, True), ({"WANDB_PROJECT": "p", "WANDB_MODE": "disabled"}, False)],
)
def test_wandb_is_on_where_its_variables_are_set(run, variables: dict[str, str], logged: bool) -> None:
    _, (_, trained, environment) = run(**variables)
    assert ("logging.wandb=true" in trained) == logged
    assert {name: environment.get(name) for name in variables} == variables


def test_the_script_finds_the_environment_of_its_checkout(tmp_path: Path) -> None:
    if not os.access(SCRIPT.parent / ".venv/bin/latentloom", os.X_OK):
        pytest.skip("needs the environment that `make setup` makes")
    done = subprocess.run(
        ["bash", str(SCRIPT), "model.nope=1"],
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "nope" in done.stderr


def test_stages_that_name_no_run_get_folders_of_their_own(run) -> None:
    def name(**variables: str) -> list[str]:
        _, (_, trained, _) = run(**variables)
        return [setting.partition("=")[2] for setting in trained if setting.startswith("logging.run_name=")]

    assert name() == []  # the recipe's name
    assert name(TASK="t2l", NUM_STEPS="1") == ["wedlm-8b-ar-latent-bridge-t2l-1"]
    assert name(TASK="t2l", NUM_STEPS="20000") == ["wedlm-8b-ar-latent-bridge-t2l-20000"]
    assert name(TASK="joint", RUN_NAME="mine") == ["mine"]
