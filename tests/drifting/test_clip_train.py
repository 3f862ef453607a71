"""Trainings of clip refiners: exact after an interruption, the same in two processes, and better than blending."""

import importlib
from pathlib import Path

import pytest
import torch
from blob_shards import NUM_FRAMES, SIDE, TINY, tiny, write_blobs
from moving_blobs import missing_psnr, moving_blobs
from safetensors.torch import load_file

from latentloom.drifting.clips.classes import make_classes
from latentloom.drifting.clips.config import ClipConfig
from latentloom.drifting.clips.data import load_clips
from latentloom.drifting.clips.features import ClipFeatures
from latentloom.drifting.clips.fitted_warper import make_keyframes
from latentloom.drifting.clips.refiner_files import ClipRefiner
from latentloom.drifting.clips.shard_writer import ShardWriter
from latentloom.drifting.clips.train import ClipRefinement, train_clip_refiner
from latentloom.drifting.encoders import mae_encoder
from latentloom.drifting.mae import LatentMae, MaeShape, save_mae
from latentloom.drifting.train import CURVE_NAME, STATE_NAME
from latentloom.errors import CheckpointError, ConfigError
from latentloom.runs import launch_processes
from latentloom.training import read_curve

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Blobs with another model's keyframes."""
    return write_blobs(tmp_path_factory.mktemp("blobs") / "shards", anchors=True)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    path = tmp_path_factory.mktemp("mae") / "mae.safetensors"
    torch.manual_seed(7)
    save_mae(path, LatentMae(MaeShape(channels=3, width=4, stages=1, blocks=1)), {})
    return mae_encoder(path)


def train(config: ClipConfig, folder: Path, evaluate=None, seed=0, encoder=None) -> ClipRefiner:
    classes, data = make_classes(config, load_clips(config, CPU), folder / "classes")
    keyframes = make_keyframes(config, data, folder / "interpolation", CPU)
    return train_clip_refiner(data, classes, keyframes, encoder, config, seed, folder, CPU, evaluate)


def measured(folder):
    timings = ("seconds", "step_seconds")
    lines = read_curve(folder / CURVE_NAME)
    return [{key: value for key, value in line.items() if key not in timings} for line in lines]


def largest_difference(one, other):
    first, second = load_file(one / STATE_NAME), load_file(other / STATE_NAME)
    assert first.keys() == second.keys()
    return {name: float((first[name].double() - second[name].double()).abs().max()) for name in first}


class Interruption:
    """Evaluates, and interrupts the training at the second checkpoint."""

    def __init__(self):
        self.num_calls = 0

    def __call__(self, refiner):
        self.num_calls += 1
        if self.num_calls == 2:
            raise KeyboardInterrupt
        return evaluate(refiner)


def evaluate(refiner):
    return {"eval/weight": float(refiner.network.position.norm())}


def interrupted_and_whole(config: ClipConfig, folder: Path, encoder=None) -> None:
    """Trains at a stretch, and with an interruption after a checkpoint; both come to the same end."""
    whole = train(config, folder / "whole", evaluate, encoder=encoder)
    with pytest.raises(KeyboardInterrupt):
        train(config, folder / "halves", Interruption(), encoder=encoder)
    assert int(load_file(folder / "halves" / STATE_NAME)["step"]) == 2
    torch.manual_seed(123)  # nothing may hang on the global generator
    halves = train(config, folder / "halves", evaluate, encoder=encoder)
    assert set(largest_difference(folder / "whole", folder / "halves").values()) == {0.0}
    for name, weight in whole.network.state_dict().items():
        assert torch.equal(weight, halves.network.state_dict()[name])
    assert measured(folder / "whole") == measured(folder / "halves")
    assert [line["step"] for line in measured(folder / "whole")] == list(range(config.steps))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("objective", ["drift", "mse"])
def test_an_interrupted_training_comes_to_the_very_same_end(shards, tmp_path, optimizer, objective):
    changes = {"grad_accum": 2, "corrupt_mode": "dist", "student_replace_prob": 0.3, "keyframe_schedule": "random"}
    changes |= {"drift_n_neg": 2, "drift_n_unc": 4} if objective == "drift" else {}
    interrupted_and_whole(tiny(shards, optimizer=optimizer, objective=objective, **changes), tmp_path)
    state = load_file(tmp_path / "whole" / STATE_NAME)
    assert ("unconditional/samples" in state) == ("negatives/samples" in state) == (objective == "drift")
    assert "positives/samples" not in state  # paired clips are attracted by the batch's own


def test_an_interrupted_training_in_features_comes_to_the_very_same_end(shards, encoder, tmp_path):
    interrupted_and_whole(tiny(shards, feature_loss_weight=1.0), tmp_path, encoder)
    names = measured(tmp_path / "whole")[-1]
    assert "loss" in names


def test_an_interrupted_training_with_a_learned_interpolation_comes_to_the_very_same_end(shards, tmp_path):
    config = tiny(shards, objective="mse", target="adjacent", interp_mode="learned", interp_steps=3)
    interrupted_and_whole(config, tmp_path)


def test_a_lora_is_averaged_and_kept_without_its_base_and_resumes_exactly(tmp_path):
    pytest.importorskip("peft")
    generator = torch.Generator().manual_seed(0)
    with ShardWriter(tmp_path / "latents", space="latent") as writer:
        for number in range(8):
            writer.write(f"clip{number}", torch.randn(16, 5, 4, 4, generator=generator).half().float())
    changes = {"backbone": "wan", "train_blocks": "lora", "lora_rank": 2, "num_levels": 2, "objective": "mse"}
    changes |= {"gradient_checkpointing": True, "base_dtype": "bfloat16"}
    config, calls = tiny(tmp_path / "latents", **changes), []

    def interrupt(refiner):
        calls.append(refiner)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return {}

    whole = train(config, tmp_path / "whole", lambda refiner: {})
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "halves", interrupt)
    halves = train(config, tmp_path / "halves", lambda refiner: {})
    assert set(largest_difference(tmp_path / "whole", tmp_path / "halves").values()) == {0.0}
    for name, weight in whole.network.state_dict().items():
        assert torch.equal(weight, halves.network.state_dict()[name])
    assert whole.network.gradient_checkpointing
    assert whole.network.get_parameter("transformer.patch_embedding.weight").dtype == torch.bfloat16
    kept = {name for name in load_file(tmp_path / "whole" / STATE_NAME) if name.startswith(("refiner/", "average/"))}
    assert any("lora_A" in name for name in kept)
    assert not any("base_layer" in name or "time_embedder" in name for name in kept)
    shared = [network.transformer.patch_embedding.weight.data_ptr() for network in (r.network for r in calls)]
    assert len(set(shared)) == 1  # of both checkpoints one frozen base


def test_two_processes_train_as_one_with_the_doubled_batch(shards, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)  # spawned processes take over the path
    ranks = importlib.import_module("clip_ranks")
    common = {**TINY, "data_root": str(shards), "steps": 3, "n_classes_step": 1, "corrupt_mode": "dist"}
    common |= {"grad_accum": 2, "student_replace_prob": 0.3, "drift_n_unc": 4, "interp_mode": "learned"}
    common |= {"interp_steps": 2}
    launch_processes(ranks.train, 2, common, str(tmp_path / "two"))
    ranks.train(0, {**common, "n_classes_step": 2}, str(tmp_path / "one"))
    for objective in ("drift", "mse"):
        one, two = tmp_path / "one" / objective, tmp_path / "two" / objective
        differences = largest_difference(one, two)
        others = {name: value for name, value in differences.items() if not name.startswith("optimizer")}
        assert max(others.values()) < 1e-5, max(others, key=others.__getitem__)  # weights, averages, banks, sampler
        assert {"refiner/blocks.0.qkv.weight", "average/position", "sampler/places"} <= others.keys()
        for alone, joined in zip(read_curve(one / CURVE_NAME), read_curve(two / CURVE_NAME), strict=True):
            for key in ("loss", "gradient_norm", "lr"):
                assert alone[key] == pytest.approx(joined[key], rel=1e-4)


def test_keyframes_of_another_model_are_asked_for_only_where_there_are_some(tmp_path):
    config = tiny(write_blobs(tmp_path / "shards"), student_replace_prob=0.2)
    classes, data = make_classes(config, load_clips(config, CPU), tmp_path / "classes")
    keyframes = make_keyframes(config, data, tmp_path / "interpolation", CPU)
    with pytest.raises(ConfigError, match="the shards hold no anchors of another model") as raised:
        ClipRefinement(data, classes, keyframes, config, 0, CPU)
    assert "\n" not in str(raised.value)


def test_the_state_of_another_training_is_refused(shards, tmp_path):
    train(tiny(shards, steps=1), tmp_path)
    for changes in ({"width": 32}, {"optimizer": "muon"}):
        with pytest.raises(CheckpointError, match="another run"):
            train(tiny(shards, **changes), tmp_path)
    with pytest.raises(CheckpointError, match="another run"):
        train(tiny(shards), tmp_path, seed=1)


@pytest.mark.parametrize("keep_anchors_fixed", [True, False])
def test_given_frames_come_out_of_a_trained_refiner_bit_for_bit_if_they_are_fixed(shards, tmp_path, keep_anchors_fixed):
    refiner = train(tiny(shards, keep_anchors_fixed=keep_anchors_fixed, lr=1e-2, ema_decay=0.0), tmp_path)
    data = load_clips(tiny(shards), CPU)
    clips = data.held_out.load(torch.arange(4))
    holes = refiner.keyframes.draw_holes(4, torch.Generator().manual_seed(0))
    filled = refiner.keyframes.fill(clips, holes)
    text = data.held_out.load_text(torch.arange(4))
    refined = refiner.complete(filled, holes.masks, torch.zeros(4, dtype=torch.long), torch.ones(4), *text)
    kept = (refined == clips).all(dim=(1, 3, 4))[holes.given]
    assert bool(kept.all()) == keep_anchors_fixed


def test_drifting_and_regression_measure_what_they_started_from(shards, tmp_path):
    train(tiny(shards, objective="mse", corrupt_mode="dist", still_tolerance=0.0), tmp_path)
    for line in measured(tmp_path):
        assert line["interp/mse_missing"] > line["interp/mse_all"] > 0
    assert measured(tmp_path)[0]["loss"] == pytest.approx(measured(tmp_path)[0]["interp/mse_all"], rel=1e-5)


def test_features_are_what_the_loss_compares(shards, encoder, tmp_path):
    config = tiny(shards, feature_loss_weight=1.0, vanilla_loss_weight=0.0)
    train(config, tmp_path, encoder=encoder)
    clips = torch.zeros(1, 3, NUM_FRAMES, SIDE, SIDE)
    assert any(name.endswith("course") for name in ClipFeatures(config, encoder)(clips))
    assert all(line["loss"] > 0 for line in measured(tmp_path))


def test_a_regression_beats_linear_interpolation_on_blobs_it_has_not_seen(tmp_path):
    root = tmp_path / "shards"
    with ShardWriter(root, space="pixel") as writer:
        for number, clip in enumerate(moving_blobs(300, frames=NUM_FRAMES, side=SIDE, distance=6.0)):
            writer.write(f"blob{number}", clip)
    changes = {"objective": "mse", "num_levels": 1, "patch_size": 4, "width": 48, "depth": 2, "n_classes_step": 3}
    changes |= {"n_gen_per_class": 8, "steps": 150, "warmup": 10, "lr": 1e-2, "log_every": 10, "save_every": 1000}
    refiner = train(tiny(root, **changes), tmp_path / "run")
    clips = moving_blobs(64, frames=NUM_FRAMES, side=SIDE, distance=6.0, seed=99)
    holes = refiner.keyframes.draw_holes(64, torch.Generator().manual_seed(1), 0)
    filled = refiner.keyframes.fill(clips, holes)
    classes = refiner.classes.assign(refiner.classes.encoder.embed_clips(filled.values))
    refined = refiner.complete(filled, holes.masks, classes, torch.ones(64))
    linear, reached = (missing_psnr(filled_in, clips, holes.given) for filled_in in (filled.values, refined))
    losses = [line["loss"] for line in measured(tmp_path / "run")]
    assert sum(losses[-4:]) < 0.75 * sum(losses[:4])
    assert reached > linear + 1  # dB; 2.2 were measured
