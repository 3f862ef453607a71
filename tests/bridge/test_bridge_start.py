"""A training that starts from an export goes on from what that one had learned, or says why it cannot."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_backbones import write_tiny_backbone
from tiny_bridge import WORDS

from latentloom.bridge.config import BridgeConfig
from latentloom.bridge.run import train_bridge
from latentloom.errors import CheckpointError, ConfigError, FileError

DIM = 8
STILL = {"lr": 1e-12, "t2l_lr": 1e-12, "weight_decay": 0.0, "num_steps": 1}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, backbone_folder: Callable[[str], Path]) -> Path:
    """A folder with two sets of pairs, of which the vectors differ in scale, and a backbone."""
    root = tmp_path_factory.mktemp("start")
    (root / "backbone").symlink_to(backbone_folder("llama"))
    for name, scale in (("pairs", 1.0), ("others", 3.0)):
        generator = np.random.default_rng(0)
        texts = [f"{' '.join(generator.choice(WORDS, 3))} {number}" for number in range(20)]
        rows = [{"text": text, "vector": generator.normal(0.5, scale, DIM).tolist()} for text in texts]
        (root / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return root


def run(root: Path, folder: Path, task: str, model: dict[str, Any] | None = None, **training: Any) -> Path:
    """The export of a short training on the tiny backbone."""
    small = {"prefix_hidden": 8, "encoder_hidden": 8, "num_prefix_tokens": 2, "lora": {"rank": 2}}
    place = {"pretrained_model_name_or_path": str(root / "backbone")}
    data = training.pop("data", "pairs.jsonl")
    outcome = train_bridge(
        BridgeConfig.model_validate(
            {
                "model": small | place | (model or {}),
                "data": {"data_root": root, "train_json": data, "held_out": 2},
                "training": {"task": task, "num_steps": 4, "warmup_steps": 0, "train_batch_size": 4, "dtype": "fp32"}
                | training
                | {"device": "cpu"},
                "logging": {"save_dir": folder.parent, "run_name": folder.name},
                "evaluation": {"num_pairs": 0},
            }
        )
    )
    assert outcome is not None
    return outcome.export


@pytest.fixture(scope="module")
def heard(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of text -> vector."""
    return run(root, tmp_path_factory.mktemp("heard") / "run", "t2l")


@pytest.fixture(scope="module")
def said(root: Path, heard: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of vector -> text that started from the other."""
    return run(root, tmp_path_factory.mktemp("said") / "run", "l2t", init_from=heard)


def part(export: Path, *words: str) -> dict[str, torch.Tensor]:
    """Weights of an export with one of these words in their names."""
    return {name: value for name, value in load_file(export).items() if any(word in name for word in words)}


def test_a_stage_hands_on_what_it_does_not_train(heard: Path, said: Path) -> None:
    before, after = part(heard, "text_to_latent", "standardizer"), part(said, "text_to_latent", "standardizer")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    trained = part(heard, "latent_prefix"), part(said, "latent_prefix")
    assert not torch.equal(trained[0]["latent_prefix.project.0.weight"], trained[1]["latent_prefix.project.0.weight"])


def test_the_next_stage_begins_with_all_weights_and_the_deviations_they_were_trained_with(
    root: Path, said: Path, tmp_path: Path
) -> None:
    both = run(root, tmp_path / "both", "joint", init_from=said.parent, data="others.jsonl", **STILL)
    before, after = load_file(said), load_file(both)
    assert before.keys() == after.keys()
    assert any("lora_" in name for name in before)
    for name, weight in before.items():
        torch.testing.assert_close(after[name], weight, rtol=0, atol=1e-9)
    anew = run(root, tmp_path / "anew", "joint", data="others.jsonl", **STILL)
    assert not torch.allclose(load_file(anew)["standardizer.std"], before["standardizer.std"], rtol=0.5)


@pytest.mark.parametrize(
    ("task", "model", "reason"),
    [
        ("t2l", {}, "which this run does not train"),
        ("joint", {"lora": {"rank": 0}}, "which this run does not train"),
        ("joint", {"num_prefix_tokens": 3}, "give it the settings that the export was made with"),
    ],
)
def test_an_export_that_would_lose_weights_is_refused(
    task: str, model: dict[str, Any], reason: str, root: Path, said: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=reason) as refusal:
        run(root, tmp_path / "run", task, model, init_from=said)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "run").exists()


def test_an_export_of_another_backbone_and_one_that_is_not_there_are_refused(
    root: Path, said: Path, tmp_path: Path
) -> None:
    other = write_tiny_backbone(tmp_path / "other", "llama", seed=1)
    with pytest.raises(CheckpointError, match="give an export of the same backbone"):
        run(root, tmp_path / "run", "joint", {"pretrained_model_name_or_path": str(other)}, init_from=said)
    with pytest.raises(FileError):
        run(root, tmp_path / "run", "joint", init_from=tmp_path / "absent.safetensors")


def test_a_folder_takes_a_run_with_one_start(root: Path, heard: Path, said: Path, tmp_path: Path) -> None:
    run(root, tmp_path / "run", "l2t", init_from=heard, num_steps=1)
    with pytest.raises(ConfigError, match=r"holds a run with training\.init_from = "):
        run(root, tmp_path / "run", "l2t", init_from=said, num_steps=1)
