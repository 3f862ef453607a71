import importlib
import random
from ast import literal_eval
from pathlib import Path

import numpy as np
import pytest
import torch

from latentloom.errors import ConfigError
from latentloom.runs import all_reduce_mean_, choose_device, is_distributed, launch_processes, seed_everything


@pytest.fixture
def functions(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)  # spawned processes take over the path
    return importlib.import_module("rank_functions")


def test_processes_form_a_group_and_average(functions, tmp_path):
    launch_processes(functions.average, 2, str(tmp_path))
    for rank in range(2):
        facts = literal_eval((tmp_path / f"{rank}.txt").read_text())
        assert facts == [rank, rank, True, 1, [[0.5, 0.5], [0.5, 0.5]], 5.0]


def test_the_error_of_a_process_is_raised_here_as_it_was_there(functions):
    with pytest.raises(ConfigError) as error:
        launch_processes(functions.fail_in_second, 2)
    assert str(error.value) == "rate 3; give one below 1"
    assert "fail_in_second" in "".join(error.value.__notes__)


def test_an_error_that_cannot_be_passed_on_is_told(functions):
    with pytest.raises(RuntimeError, match="Unpicklable"):
        launch_processes(functions.fail_strangely, 1)


def test_a_process_that_dies_is_an_error(functions):
    with pytest.raises(RuntimeError, match="exit code 7"):
        launch_processes(functions.die, 1)


def test_what_cannot_be_launched_is_refused_at_once(functions):
    with pytest.raises(ConfigError, match="at least 1"):
        launch_processes(functions.die, 0)
    with pytest.raises(ValueError, match="top level"):
        launch_processes(lambda rank: None, 2)


def test_alone_a_mean_is_the_value():
    value = torch.tensor([2.0])
    all_reduce_mean_([value])
    assert value.item() == 2
    assert not is_distributed()


def test_a_seed_repeats_every_kind_of_randomness():
    def draws() -> list[float]:
        generator = seed_everything(7)
        return [random.random(), np.random.rand(), torch.rand(1).item(), torch.rand(1, generator=generator).item()]

    assert draws() == draws()
    for seed in (-1, 2**32):
        with pytest.raises(ConfigError, match="seed"):
            seed_everything(seed)


def test_devices_are_checked_against_the_machine():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("gpu", "", "cuda:99", "xla", "cpu cpu"):
        with pytest.raises(ConfigError, match="device"):
            choose_device(name)
