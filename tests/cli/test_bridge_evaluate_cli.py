"""`latentloom bridge evaluate`: a run's own held-out pairs, others, and mistakes in one line."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from bridge_scenes import scene_encoder, train_scene_bridge
from safetensors.torch import load_file, save_file
from tiny_backbones import write_tiny_backbone

from latentloom.bridge.backbone import load_backbone
from latentloom.bridge.checkpoint import export_bridge, read_export_record
from latentloom.bridge.config import BridgeConfig, ModelConfig
from latentloom.bridge.run_data import run_pairs
from latentloom.cli.main import run
from latentloom.runs import load_config, to_toml

TEXTS = [f"a {colour} {thing} in the sky" for colour in ("red", "green", "blue") for thing in ("cat", "tree", "boat")]
SHORT = {"num_pairs": 3, "best_of": 2, "max_new_tokens": 4}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with settings and an export, its data and its encoder beside it."""
    root = tmp_path_factory.mktemp("bridge")
    backbone_folder = write_tiny_backbone(root / "backbone", "llama")
    model = ModelConfig(pretrained_model_name_or_path=str(backbone_folder), num_prefix_tokens=2, latent_dim=24)
    backbone = load_backbone(model, device=torch.device("cpu"), dtype=torch.float32)
    encoder = scene_encoder(backbone)
    encoder.model.save(str(root / "encoder"))
    write_pairs(root / "pairs.json", TEXTS, encoder.encode(TEXTS).values.numpy())
    config = BridgeConfig.model_validate(
        {
            "model": model.model_dump(),
            "data": {"train_json": str(root / "pairs.json"), "held_out": 3},
            "training": {"dtype": "fp32", "device": "cpu"},
            "logging": {"save_dir": root / "runs", "run_name": "tiny"},
            "evaluation": SHORT,
        }
    )
    folder = root / "runs" / "tiny"
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(to_toml(config))
    bridge = train_scene_bridge(backbone, run_pairs(config).train, num_steps=1, settings=model)
    export_bridge(folder, 1, bridge, config.training.model_dump(mode="json"))
    return folder


def write_pairs(path: Path, texts: list[str], vectors: np.ndarray) -> None:
    """A JSON list as in the document, with a file for each vector."""
    rows = []
    for number, (text, vector) in enumerate(zip(texts, vectors, strict=True)):
        np.save(path.parent / f"{path.stem}_{number}.npy", vector)
        rows.append({"text": text, "latent_path": f"{path.stem}_{number}.npy"})
    path.write_text(json.dumps(rows))


def evaluate(*arguments: object) -> int:
    """Exit code of the command."""
    return run(["bridge", "evaluate", *map(str, arguments)])


def test_a_runs_own_held_out_pairs_are_scored(trained, tmp_path, capsys):
    encoder = trained.parents[1] / "encoder"
    assert evaluate("--bridge", trained, "--encoder", encoder, "--json", tmp_path / "found.json") == 0
    shown = capsys.readouterr().out
    assert "3 held-out texts" in shown
    assert "mean vector" in shown
    assert "best of 2" in shown
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["out_dir"] == str(trained / "evaluation")
    assert set(found["texts"]) == {
        "greedy",
        "best_of",
        "greedy_shuffled",
        "greedy_unconditional",
        "nearest_training",
    }
    saved = json.loads((trained / "evaluation" / "metrics.json").read_text())
    assert saved["losses"] == found["losses"]
    assert (trained / "evaluation" / "report.html").exists()
    held_out = {sample["text"] for sample in found["samples"]}
    assert len(held_out) == 3
    assert held_out <= set(TEXTS)


def test_texts_get_vectors_and_training_texts_are_left_out(trained, tmp_path, capsys):
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join([*TEXTS, "a brown stone", "the cat"]))
    root = trained.parents[1]
    arguments = ("--bridge", trained, "--texts", texts, "--encoder", root / "encoder", "--out", tmp_path / "out")
    assert evaluate(*arguments, "--num-pairs", 50, "--best-of", 1, "--json", "-") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["num_texts"] == 5  # the run's three held-out ones and two new ones
    assert any("6 texts" in note for note in found["notes"])
    assert "best_of" not in found["texts"]


def test_an_export_alone_is_scored_on_given_pairs_without_its_runs_baselines(trained, tmp_path, capsys):
    alone = tmp_path / "bridge.safetensors"
    alone.write_bytes((trained / "checkpoint_step_1.safetensors").read_bytes())
    pairs = trained.parents[1] / "pairs.json"
    assert evaluate("--bridge", alone, "--data", pairs, "--num-pairs", 2, "--best-of", 1) == 0
    shown = capsys.readouterr().out
    assert "nearest training text" in shown  # that there is none
    assert "2 held-out texts" in shown
    assert (tmp_path / "evaluation" / "metrics.json").exists()


def test_mistakes_take_one_line(trained, tmp_path, capsys):
    def said(*arguments: object) -> str:
        assert evaluate(*arguments) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert [line for line in lines if line.startswith("latentloom: ")] == lines[-1:]  # after progress, if any
        return lines[-1]

    alone = tmp_path / "bridge.safetensors"
    alone.write_bytes((trained / "checkpoint_step_1.safetensors").read_bytes())
    assert "--data or --texts" in said("--bridge", alone)
    assert "--data and --texts" in said("--bridge", trained, "--data", "a.json", "--texts", "b.txt")
    assert "nothing_here" in said("--bridge", tmp_path / "nothing_here")
    assert "checkpoint_step_" in said("--bridge", tmp_path)
    texts = tmp_path / "texts.txt"
    texts.write_text("a brown stone\n")
    assert "--encoder" in said("--bridge", trained, "--texts", texts)
    texts.write_text("\n".join(run_texts(trained)))
    encoder = trained.parents[1] / "encoder"
    assert "training texts" in said("--bridge", trained, "--texts", texts, "--encoder", encoder)
    narrow = tmp_path / "narrow.json"
    write_pairs(narrow, TEXTS, np.ones((len(TEXTS), 5), dtype=np.float32))
    line = said("--bridge", trained, "--data", narrow)
    assert "5" in line
    assert "24" in line


def test_a_run_is_scored_from_another_folder_than_it_was_trained_in(trained, tmp_path, monkeypatch, capsys):
    root, moved = tmp_path / "root", tmp_path / "backbone"
    shutil.copytree(trained.parents[1], root)
    folder = root / "runs" / "tiny"
    settings = load_config(BridgeConfig, folder / "config.toml").model_dump(mode="json")
    settings["data"] |= {"data_root": ".", "train_json": "pairs.json"}
    settings["logging"]["save_dir"] = "runs"
    (folder / "config.toml").write_text(to_toml(BridgeConfig.model_validate(settings)))
    (root / "backbone").rename(moved)
    rename_backbone(folder / "checkpoint_step_1.safetensors", str(root / "backbone"))
    monkeypatch.chdir(root)
    assert evaluate("--bridge", folder, "--best-of", 1, "--local-dir", moved) == 0
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    capsys.readouterr()
    assert evaluate("--bridge", folder, "--best-of", 1) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"{elsewhere / 'pairs.json'} does not exist" in line
    assert "run this where it was trained, or give --data or --texts" in line
    pairs = root / "pairs.json"
    assert evaluate("--bridge", folder, "--data", pairs, "--best-of", 1, "--local-dir", moved) == 0
    assert list(elsewhere.iterdir()) == []


def rename_backbone(export: Path, name: str) -> None:
    """Let an export say that its backbone lies elsewhere."""
    about = read_export_record(export)
    model = about.model.model_copy(update={"pretrained_model_name_or_path": name})
    stated = about.model_copy(update={"model": model}).model_dump_json()
    save_file(load_file(export), export, metadata={"latentloom": stated})


def test_an_export_that_does_not_say_how_it_was_trained_is_scored_both_ways(trained, tmp_path, capsys):
    alone = tmp_path / "bridge.safetensors"
    export = trained / "checkpoint_step_1.safetensors"
    about = read_export_record(export).model_dump(mode="json")
    save_file(load_file(export), alone, metadata={"latentloom": json.dumps({**about, "training": {}})})
    pairs = trained.parents[1] / "pairs.json"
    assert evaluate("--bridge", alone, "--data", pairs, "--num-pairs", 2, "--best-of", 1, "--json", "-") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["texts"]
    assert found["vectors"]


def run_texts(folder: Path) -> list[str]:
    """Training texts of a run."""
    return list(run_pairs(load_config(BridgeConfig, folder / "config.toml")).train.texts)
