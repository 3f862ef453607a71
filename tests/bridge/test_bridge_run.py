"""A whole run: what it leaves, and that a killed one goes on, a finished one does not, and another one is refused."""

import json
import random
import signal
import time
from collections.abc import Callable, Mapping
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from bridge_scenes import scene_encoder
from safetensors.torch import load_file
from tiny_backbones import write_tiny_backbone
from tiny_bridge import WORDS

from latentloom.bridge.config import BridgeConfig
from latentloom.bridge.run import Outcome, train_bridge
from latentloom.errors import LatentLoomError
from latentloom.runs import RunRecord
from latentloom.training import read_curve

if TYPE_CHECKING:
    from latentloom.bridge.backbone import Backbone

DIM = 12
NUM = 30
NO_SCORES = {"evaluation": {"num_pairs": 0}}
ONE_STEP = {"training": {"num_steps": 1}}
Changes = Mapping[str, Mapping[str, Any]]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, backbone_folder: Callable[[str], Path]) -> Path:
    """A folder with `pairs.json`, of which two rows are bad, `val.json`, `texts.txt` and a link to a backbone."""
    root = tmp_path_factory.mktemp("run")
    (root / "backbone").symlink_to(backbone_folder("llama"))
    texts = some_texts(NUM)
    write_pairs(root / "pairs.json", [*texts, "", "a text whose vector is none"], nan_rows=[NUM + 1])
    write_pairs(root / "val.json", [texts[0], "a blue river sings", "the old trees"])
    (root / "texts.txt").write_text("\n".join([*texts, texts[0]]) + "\n")
    return root


def some_texts(num: int) -> list[str]:
    """Different texts of 3 to 8 words."""
    generator = np.random.default_rng(0)
    return [" ".join([*generator.choice(WORDS, generator.integers(2, 8)), str(number)]) for number in range(num)]


def write_pairs(path: Path, texts: list[str], nan_rows: list[int] | None = None) -> None:
    """A list as in the document; each text has a random vector, or NaN."""
    generator = np.random.default_rng(1)
    rows = []
    for number, text in enumerate(texts):
        vector = np.full(DIM, np.nan) if number in (nan_rows or []) else generator.normal(0.3, 1.0, DIM)
        name = f"{path.stem}_{number}.npy"
        np.save(path.parent / name, vector.astype(np.float32))
        rows.append({"text": text, "latent_path": name})
    path.write_text(json.dumps(rows))


def settings(root: Path, save_dir: Path, *changes: Changes) -> BridgeConfig:
    """Six steps of both directions on the tiny backbone; whatever draws at random is on."""
    sections: dict[str, dict[str, Any]] = {
        "model": {
            "pretrained_model_name_or_path": str(root / "backbone"),
            "prefix_hidden": 16,
            "encoder_hidden": 16,
            "num_prefix_tokens": 2,
            "unconditional_share": 0.3,
            "lora": {"rank": 2, "dropout": 0.1},
        },
        "data": {"data_root": root, "train_json": "pairs.json", "held_out": 5, "max_bad_share": 0.2},
        "training": {
            "num_steps": 6,
            "warmup_steps": 2,
            "train_batch_size": 4,
            "t2l_batch_size": 6,
            "dtype": "fp32",
            "device": "cpu",
        },
        "logging": {"save_dir": save_dir, "run_name": "tiny", "log_every": 1, "save_every": 4},
        "evaluation": {"num_pairs": 4, "best_of": 1, "max_new_tokens": 4},
    }
    for change in changes:
        for section, values in change.items():
            sections[section] |= values
    return BridgeConfig.model_validate(sections)


def trained(config: BridgeConfig) -> Outcome:
    outcome = train_bridge(config)
    assert outcome is not None
    return outcome


def curve(folder: Path) -> list[dict[str, float]]:
    """A run's measures by step, without times."""
    return [{key: line[key] for key in line if "seconds" not in key} for line in read_curve(folder / "curve.jsonl")]


def written(folder: Path) -> dict[str, int]:
    """When each export and the state were written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.stem.startswith(("check", "state"))}


@pytest.fixture(scope="module")
def finished(root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[BridgeConfig, Outcome]:
    """A run that was made; others only look at it."""
    config = settings(root, tmp_path_factory.mktemp("finished"))
    return config, trained(config)


def test_a_run_leaves_its_settings_record_curve_exports_scores_and_page(finished: tuple[BridgeConfig, Outcome]):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config, outcome = finished
    folder = config.logging.save_dir / "tiny"
    assert (outcome.folder, outcome.export) == (folder, folder / "checkpoint_step_6.safetensors")
    for name in ("config.toml", "report.html", "checkpoint_step_4.pt", "checkpoint_step_6.pt"):
        assert (folder / name).is_file()
    assert not list(folder.rglob("*.partial*"))

    lines = curve(folder)
    assert [line["step"] for line in lines] == list(range(6))
    assert all(line["text_loss"] > 0 and line["latent_loss"] > 0 for line in lines)
    events = EventAccumulator(str(folder / "tensorboard")).Reload().Scalars("text_loss")
    assert [event.value for event in events] == pytest.approx([line["text_loss"] for line in lines])

    record = RunRecord.read(folder)
    assert record.status == "finished"
    (facts,) = record.trainings.values()
    assert (facts.steps, facts.data.num_samples, facts.data.num_held_out) == (6, NUM - 5, 5)
    assert record.data == "pairs.json (left out: 1 NaN or infinite, 1 empty text), held out: 5"
    assert record.data in (folder / "report.html").read_text()

    assert outcome.scores is not None
    assert (outcome.scores.num_texts, outcome.scores.task) == (4, "joint")
    saved = json.loads((folder / "metrics.json").read_text())
    assert saved == json.loads(json.dumps(outcome.scores.to_json())) == record.results["scores"]
    assert 0 <= saved["vectors"]["bridge"]["recall_at_1"]["value"] <= 1
    assert set(saved["vectors"]) == {"bridge", "ridge", "mean_vector"}


def test_both_exports_hold_the_same_weights_and_need_no_pickle(finished: tuple[BridgeConfig, Outcome]):
    _, outcome = finished
    content = torch.load(outcome.export.with_suffix(".pt"), weights_only=True)
    weights = load_file(outcome.export)
    assert content["state_dict"].keys() == weights.keys()
    for name, weight in weights.items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, content["state_dict"][name])
    assert json.loads(content["latentloom"])["step"] == 6
    sides = {"lora" if "lora_" in name else name.split(".")[0] for name in weights}
    assert sides == {"standardizer", "latent_prefix", "text_to_latent", "lora"}  # nothing of the frozen backbone


def test_a_finished_run_that_is_repeated_trains_nothing_more(finished: tuple[BridgeConfig, Outcome]):
    config, outcome = finished
    before, lines = written(outcome.folder), curve(outcome.folder)
    assert {"state.safetensors", "checkpoint_step_6.safetensors"} <= before.keys()
    again = trained(config)
    assert written(outcome.folder) == before
    assert curve(outcome.folder) == lines
    assert again.scores is not None
    assert outcome.scores is not None
    assert again.scores.to_json() == outcome.scores.to_json()


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"model": {"num_prefix_tokens": 3}}, "model.num_prefix_tokens"),
        ({"model": {"lora": {"rank": 3}}}, "model.lora"),
        ({"training": {"lr": 1e-4}}, "training.lr"),
        ({"training": {"num_steps": 8}}, "training.num_steps"),
        ({"data": {"train_json": "val.json", "held_out": 1}}, "data"),
        ({"data": {"held_out": 6}}, "data"),
    ],
)
def test_another_run_in_the_same_folder_is_refused_by_what_differs(
    change: Changes, name: str, root: Path, finished: tuple[BridgeConfig, Outcome]
):
    config, outcome = finished
    kept = {path: path.read_bytes() for path in outcome.folder.iterdir() if path.is_file()}
    with pytest.raises(LatentLoomError) as refusal:
        train_bridge(settings(root, config.logging.save_dir, change))
    said = str(refusal.value)
    assert "\n" not in said
    assert said.startswith(f"{outcome.folder} holds a run with {name} = ")
    assert "give another folder" in said
    assert {path: path.read_bytes() for path in outcome.folder.iterdir() if path.is_file()} == kept


def test_a_run_does_not_go_on_with_other_weights_under_the_same_name(root: Path, tmp_path: Path):
    link = tmp_path / "backbone"
    link.symlink_to((root / "backbone").resolve())
    config = settings(
        root, tmp_path / "runs", NO_SCORES, {"model": {"pretrained_model_name_or_path": str(link)}}, ONE_STEP
    )
    trained(config)
    link.unlink()
    write_tiny_backbone(link, "llama", seed=1)
    with pytest.raises(LatentLoomError, match="holds a run with backbone = ") as refusal:
        train_bridge(config)
    assert "\n" not in str(refusal.value)


def test_how_often_a_run_writes_and_what_it_scores_may_change(root: Path, tmp_path: Path):
    first = trained(settings(root, tmp_path, NO_SCORES, ONE_STEP))
    assert first.scores is None
    assert not (first.folder / "metrics.json").exists()
    before = written(first.folder)
    scored = trained(settings(root, tmp_path, ONE_STEP, {"logging": {"save_every": 1, "log_every": 2}}))
    assert scored.scores is not None
    assert written(first.folder) == before


def test_pairs_of_a_file_of_their_own_are_held_out_but_for_texts_that_train(root: Path, tmp_path: Path):
    val = {"data": {"val_json": "val.json"}, "training": {"num_steps": 1, "task": "t2l"}}
    outcome = trained(settings(root, tmp_path, val))
    record = RunRecord.read(outcome.folder)
    assert record.data.endswith("held out: 2 of val.json")
    (facts,) = record.trainings.values()
    assert (facts.data.num_samples, facts.data.num_held_out) == (NUM, 2)
    assert outcome.scores is not None
    assert (outcome.scores.num_texts, outcome.scores.task, dict(outcome.scores.texts)) == (2, "t2l", {})


def test_a_text_file_becomes_pairs_by_an_encoder_which_then_scores_texts(
    root: Path, tmp_path: Path, tiny_backbone: "Backbone"
):
    scene_encoder(tiny_backbone, DIM).model.save(str(tmp_path / "encoder"))
    texts = {"train_json": None, "texts": "texts.txt", "encoder": str(tmp_path / "encoder")}
    changes = {"data": texts, "training": {"num_steps": 1, "task": "l2t"}, "evaluation": {"best_of": 2}}
    outcome = trained(settings(root, tmp_path / "runs", changes))
    record, scores = RunRecord.read(outcome.folder), outcome.scores
    assert record.data.startswith(f"texts.txt, {NUM} texts with vectors of")  # the repetition is left out
    assert record.data.endswith("held out: 5")
    assert scores is not None
    assert scores.texts["best_of"].cosine is not None
    assert dict(scores.vectors) == {}


def start(config: BridgeConfig) -> Any:
    """A process that makes a run; it begins as this one is, with all that takes long to import."""
    process = get_context("fork").Process(target=train_bridge, args=(config,))
    process.start()
    return process


def num_lines(folder: Path) -> int:
    path = folder / "curve.jsonl"
    return len(read_curve(path)) if path.exists() else 0


def kill_and_go_on(root: Path, folder: Path, num_kills: int, seed: int) -> None:
    """Hold a run that is killed at random steps to one that is not: losses, and what it made, exactly."""
    num_steps = 14 * (num_kills + 1)  # so that no kill comes after the end
    changes = NO_SCORES, {"training": {"num_steps": num_steps}, "logging": {"save_every": 3}}
    alone = trained(settings(root, folder / "alone", *changes)).folder
    config, draw = settings(root, folder / "killed", *changes), random.Random(seed)
    run = folder / "killed" / "tiny"
    for number in range(num_kills):
        until = 14 * number + draw.randint(1, 13)
        process = start(config)
        deadline = time.monotonic() + 300
        while num_lines(run) < until and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.02))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "it was killed before it was done"
        assert until <= num_lines(run) < num_steps
    assert trained(config).folder == run
    assert curve(run) == curve(alone)
    ends = [load_file(path / f"checkpoint_step_{num_steps}.safetensors") for path in (run, alone)]
    assert all(torch.equal(weight, ends[1][name]) for name, weight in ends[0].items())
    assert ends[0].keys() == ends[1].keys()
    assert RunRecord.read(run).status == "finished"


def test_a_run_that_is_killed_goes_on_as_if_it_had_not_been(root: Path, tmp_path: Path):
    kill_and_go_on(root, tmp_path, 1, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
def test_a_run_that_is_killed_several_times_goes_on(root: Path, tmp_path: Path, seed: int):
    kill_and_go_on(root, tmp_path, 4, seed=seed)
