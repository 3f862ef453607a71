"""Every training of the package states what it is in its record; what only evaluates is named here."""

import ast
from pathlib import Path
from typing import Any

import pytest
import torch

from latentloom.delta.config import TrainConfig
from latentloom.delta.experiment import delta_trainings
from latentloom.delta.pair_embeddings import PairEmbeddings
from latentloom.delta.pairs import PromptPair
from latentloom.delta.split import Split
from latentloom.drifting.config import DriftConfig, MaeConfig
from latentloom.drifting.data import load_data
from latentloom.drifting.experiment import drift_trainings, mae_trainings
from latentloom.micro.config import BuildConfig
from latentloom.micro.experiment import build_trainings
from latentloom.runs import RunFolder, RunRecord
from latentloom.steering.control.experiment import control_training
from latentloom.tensors import TextEmbeddings

SOURCE = Path(__file__).resolve().parents[2] / "src" / "latentloom"
CPU = torch.device("cpu")
#: Modules whose runs train nothing.
EVALUATIONS = {"cli/drift_evaluate_representation.py", "cli/steer_sweep_run.py", "cli/steer_clips.py"}
#: Modules that make optimizer steps, and those whose run they belong to. The judge is a part of an evaluation, the
#: warper is fitted by whoever interpolates with it, and the smoke test keeps nothing.
STEPS = {
    "bridge/smoke.py": None,
    "bridge/train.py": "bridge/run.py",
    "delta/train.py": "delta/training_run.py",
    "drifting/judge.py": None,
    "drifting/train.py": "drifting/run.py",
    "drifting/train_mae.py": "drifting/train_mae.py",
    "finetune/stages/engine.py": "finetune/loop.py",
    "keyframes/sinkhorn.py": None,
    "micro/loop.py": "micro/build.py",
    "steering/control/learned.py": "cli/steer_control_learn.py",
}


def calls(path: Path, names: set[str]) -> list[ast.Call]:
    """The calls of methods of these names in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    return [call for call in found if isinstance(call.func, ast.Attribute) and call.func.attr in names]


def starts(path: Path) -> list[ast.Call]:
    """Where a file starts runs."""
    return [call for call in calls(path, {"at", "create"}) if ast.unparse(call.func).startswith("RunFolder.")]


MODULES = {str(path.relative_to(SOURCE)): path for path in sorted(SOURCE.rglob("*.py"))}


def test_every_run_states_its_trainings_or_is_known_to_train_nothing():
    silent = {
        name
        for name, path in MODULES.items()
        for call in starts(path)
        if "trainings" not in {keyword.arg for keyword in call.keywords}
    }
    assert silent == EVALUATIONS


def test_every_module_that_steps_an_optimizer_belongs_to_a_run_that_states_its_trainings():
    steps = {name for name, path in MODULES.items() if calls(path, {"backward", "grad"})}
    owners = {name: STEPS.get(name, "not listed") for name in steps}
    assert "not listed" not in owners.values(), owners
    for owner in owners.values():
        assert owner is None or starts(MODULES[owner])


def delta() -> dict[str, Any]:
    texts = [f"boat {number}" for number in range(12)]
    tokens = TextEmbeddings(torch.randn(24, 8), torch.full((12,), 2))
    cache = PairEmbeddings(tokens, tokens, [PromptPair(text, f"A long {text}.") for text in texts], "e")
    config = TrainConfig(val_frac=0.2, test_frac=0.2, epochs=3, batch_size=4)
    split = Split.of(cache, config.val_frac, config.test_frac, config.seed)
    return delta_trainings(cache, split, config, "twelve boats")


def drift(**changes: Any) -> dict[str, Any]:
    config = DriftConfig.model_validate({"device": "cpu", **changes})
    return drift_trainings(config, load_data(config, CPU), 80)


def mae() -> dict[str, Any]:
    config = MaeConfig(device="cpu", classify_share=0.5)
    return mae_trainings(config, load_data(config, CPU), config.batch_size)


TRAININGS = {
    "delta": (delta, {"adapter"}),
    "drift": (lambda: drift(mse_baseline=True), {"autoencoder", "MSE refiner", "drifting refiner"}),
    "drift, pixels": (lambda: drift(feature_loss_weight=0.0, vanilla_loss_weight=1.0), {"drifting refiner"}),
    "drift, regression": (lambda: drift(objective="mse"), {"MSE refiner"}),
    "mae": (mae, {"autoencoder"}),
    "build": (lambda: build_trainings(BuildConfig()), {"vae", "text", "transformer"}),
    "control": (lambda: {"red": control_training("pairs.jsonl", 4, "micro", None)}, {"red"}),
}


@pytest.mark.parametrize("name", TRAININGS)
def test_the_record_of_a_training_holds_all_sections(name, tmp_path):
    make, expected = TRAININGS[name]
    run = RunFolder.at(tmp_path / "run", {}, seeds=0, data="some", trainings=make())
    run.finish({})
    record = RunRecord.read(tmp_path / "run")
    assert record.trainings.keys() == expected
    for facts in record.trainings.values():
        assert facts.loss
        assert facts.batch_size >= 1
        assert facts.steps >= 1


def test_what_drives_a_training_is_read_off_its_settings():
    facts = drift(mse_baseline=True, drift_n_neg=3, temperatures=(0.1, 0.4), steps=7)
    refiner, baseline = facts["drifting refiner"], facts["MSE refiner"]
    assert (refiner.temperatures, refiner.batch_size, refiner.steps) == ((0.1, 0.4), 80, 7)
    assert "3 earlier refined" in refiner.sampling.negatives
    assert [encoder.name for encoder in refiner.encoders] == ["features: mae"]
    assert len(refiner.features) == 2
    assert (baseline.temperatures, baseline.sampling, baseline.encoders) == (None, None, None)
    adapter = delta()["adapter"]
    assert adapter.steps == 3 * -(-adapter.data.num_samples // 4)
    assert adapter.data.num_samples + adapter.data.num_held_out == 12
