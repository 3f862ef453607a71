"""A resumed run is the uninterrupted run, bit for bit; a file of another run is refused."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional
from torch.optim import Optimizer

from latentloom.errors import CheckpointError, CorruptFileError, FileError
from latentloom.training import (
    TrainedWeights,
    WeightAverage,
    load_state,
    make_optimizers,
    save_state,
    set_learning_rate,
    trapezoid,
)

NUM_STEPS = 8


class Run:
    """Everything that a training run carries from step to step."""

    def __init__(self, seed: int, channels: int = 3) -> None:
        torch.manual_seed(seed)
        self.module = nn.Sequential(nn.Conv2d(2, channels, 3), nn.SiLU(), nn.Flatten(), nn.Linear(channels * 4, 2))
        self.average = WeightAverage(self.module, decay=0.7)
        self.optimizers: list[Optimizer] = make_optimizers([self.module], muon_lr=1e-2, adam_lr=1e-3)

    @property
    def parts(self) -> dict[str, nn.Module | WeightAverage]:
        return {"module": self.module, "average": self.average}

    def train(self, first: int, last: int) -> None:
        for step in range(first, last):
            generator = torch.Generator().manual_seed(step)
            set_learning_rate(self.optimizers, trapezoid(step, NUM_STEPS, warmup=2))
            loss = functional.mse_loss(
                self.module(torch.randn(4, 2, 4, 4, generator=generator)), torch.randn(4, 2, generator=generator)
            )
            for optimizer in self.optimizers:
                optimizer.zero_grad()
            loss.backward()
            for optimizer in self.optimizers:
                optimizer.step()
            self.average.update(self.module)

    def save(self, path: Path, step: int) -> None:
        save_state(path, step, self.parts, self.optimizers)

    def load(self, path: Path) -> int:
        return load_state(path, self.parts, self.optimizers)


@pytest.fixture
def saved(tmp_path) -> Path:
    run = Run(seed=0)
    run.train(0, 3)
    run.save(tmp_path / "state.safetensors", 3)
    return tmp_path / "state.safetensors"


@settings(max_examples=20)
@given(stop=st.integers(0, NUM_STEPS), seed=st.integers(0, 1000))
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(stop, seed):
    whole, first, second = Run(seed), Run(seed), Run(seed + 1)
    whole.train(0, NUM_STEPS)
    first.train(0, stop)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "state.safetensors"
        first.save(path, stop)
        step = second.load(path)
    assert step == stop
    second.train(step, NUM_STEPS)
    for name, value in whole.module.state_dict().items():
        assert torch.equal(second.module.state_dict()[name], value), name
    for name, value in whole.average.state_dict().items():
        assert torch.equal(second.average.state_dict()[name], value), name


def test_saving_does_not_disturb_the_run(tmp_path):
    whole, saving = Run(0), Run(0)
    whole.train(0, 4)
    for step in range(4):
        saving.train(step, step + 1)
        saving.save(tmp_path / "state.safetensors", step + 1)
    for name, value in whole.module.state_dict().items():
        assert torch.equal(saving.module.state_dict()[name], value), name


def test_a_part_alone_is_read_from_a_file_of_many(saved):
    other = Run(seed=5)
    assert load_state(saved, {"module": other.module}, []) == 3
    assert torch.equal(other.module.state_dict()["0.weight"], load_file(saved)["module/0.weight"])


def test_a_state_of_another_shape_is_refused(saved):
    with pytest.raises(CheckpointError, match="state of another run: start in an empty folder"):
        Run(seed=0, channels=4).load(saved)


def test_a_state_without_one_of_the_parts_is_refused(saved):
    run = Run(seed=0)
    for name in ("encoder", "other_average"):
        part = run.module if name == "encoder" else run.average
        with pytest.raises(CheckpointError, match="another run"):
            load_state(saved, {name: part}, [])


@pytest.mark.parametrize("broken", ["0/exp_avg", "x/exp_avg", "deep/0/exp_avg"])
def test_a_state_whose_optimizer_entries_do_not_fit_is_refused(saved, broken):
    tensors = load_file(saved)
    tensors[f"optimizer0/{broken}"] = torch.zeros(17, 3)
    save_file(tensors, saved)
    with pytest.raises(CheckpointError, match="another run"):
        Run(seed=0).load(saved)


def test_a_file_that_holds_no_step_is_refused(saved):
    tensors = load_file(saved)
    del tensors["step"]
    save_file(tensors, saved)
    with pytest.raises(CheckpointError, match="another run"):
        Run(seed=0).load(saved)


def test_a_truncated_or_missing_file_is_named(saved, tmp_path):
    saved.write_bytes(saved.read_bytes()[:-8])
    with pytest.raises(CorruptFileError, match=r"state\.safetensors"):
        Run(seed=0).load(saved)
    with pytest.raises(FileError, match=r"absent\.safetensors"):
        Run(seed=0).load(tmp_path / "absent.safetensors")


def test_a_failed_save_leaves_the_last_good_file(saved, tmp_path):
    before = saved.read_bytes()
    run = Run(seed=0)
    run.module.register_buffer("unsavable", torch.zeros(2, device="meta"))
    with pytest.raises(NotImplementedError):
        run.save(saved, 4)
    assert saved.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["state.safetensors"]


def test_frozen_weights_that_two_modules_share_are_left_out_under_both_names():
    network = nn.ModuleDict({"embedding": nn.Embedding(4, 3), "head": nn.Linear(3, 4, bias=False)})
    network["head"].weight = network["embedding"].weight
    network["embedding"].requires_grad_(False)
    network["trained"] = nn.Linear(3, 3)
    assert sorted(TrainedWeights(network).state_dict()) == ["trained.bias", "trained.weight"]
