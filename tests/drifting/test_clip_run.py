"""Whole runs on clips: what they leave, that figures are what they say, what is repeated, and what is refused."""

import json
from shutil import copytree

import pytest
import torch
from blob_shards import blobs, tiny, write_blobs
from moving_blobs import missing_psnr
from safetensors.torch import load_file
from shard_files import clip_values, write_folder

from latentloom.drifting.clips.classes import make_classes
from latentloom.drifting.clips.config import ClipConfig
from latentloom.drifting.clips.data import load_clips
from latentloom.drifting.clips.experiment import clip_trainings
from latentloom.drifting.clips.frame_encoder import frame_mae_config
from latentloom.drifting.clips.refiner_files import load_clip_refiner
from latentloom.drifting.clips.run import ClipOutcome, run_clips
from latentloom.drifting.clips.shard_writer import ShardWriter
from latentloom.drifting.train import CURVE_NAME, STATE_NAME
from latentloom.drifting.trainings import REFINER_NAME
from latentloom.errors import ConfigError, FileError, LatentLoomError
from latentloom.keyframes import interpolate_frames
from latentloom.keyframes.frame_interpolation import adjacent_targets
from latentloom.runs import RunRecord, load_config
from latentloom.training import read_curve
from latentloom.wan.checkpoint_fingerprints import fingerprint_vae
from latentloom.wan.shipped import micro_wan_weights

CPU = torch.device("cpu")
METHODS = ("linear interpolation", "MSE refiner", "drifting refiner")


def finished(config, folder):
    outcome = run_clips(config, folder)
    assert isinstance(outcome, ClipOutcome)
    return outcome


def written(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def refuses(config, folder, kind=LatentLoomError):
    """The line that a run is refused with; nothing in its folder changes."""
    before = written(folder)
    with pytest.raises(kind) as raised:
        run_clips(config, folder)
    assert written(folder) == before
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_blobs(tmp_path_factory.mktemp("blobs") / "shards", 28)


@pytest.fixture(scope="module")
def run(shards, tmp_path_factory):
    """Settings, folder and outcome of a run with a baseline; not to be changed."""
    config = tiny(shards, mse_baseline=True, still_tolerance=0.02)
    folder = tmp_path_factory.mktemp("run") / "clips"
    return config, folder, finished(config, folder)


def test_a_run_leaves_its_files_and_refiners(run):
    config, folder, _ = run
    for name in ("drift", "mse"):
        part = folder / f"seed0-{name}"
        assert sorted(path.name for path in part.iterdir()) == [CURVE_NAME, REFINER_NAME]
        refiner, settings = load_clip_refiner(part / REFINER_NAME)
        assert settings.objective == name
        assert refiner.manifest is not None
        assert refiner.manifest.space == "pixel"
        lines = read_curve(part / CURVE_NAME)
        assert [line["step"] for line in lines] == [0, 1, 2, 3]
        assert {f"eval/mse_missing_{count}" for count in (5, 3, 2)} <= lines[-1].keys()
    assert load_config(ClipConfig, folder / "config.toml") == config
    for name in ("report.html", "metrics.json", "record.json", "settings.json", "classes/codebook.safetensors"):
        assert (folder / name).is_file()
    assert list((folder / "tensorboard").iterdir())
    assert not list(folder.rglob("*.partial*"))


def test_the_report_shows_every_level_with_its_methods_and_pictures(run):
    _, folder, outcome = run
    page = (folder / "report.html").read_text()
    for stride, num_given in ((2, 5), (4, 3), (8, 2)):
        assert f"A keyframe every {stride} frames: {num_given} given" in page
    for part in (*METHODS, "pseudo-classes", "data:image/png", "disc ", "held out"):
        assert part in page
    assert page.count("data:image/") >= 3 * 3  # three clips at each level
    assert [(level.stride, level.num_given) for level in outcome.levels] == [(2, 5), (4, 3), (8, 2)]


def test_the_record_has_its_sections(run):
    _, folder, outcome = run
    record = RunRecord.read(folder)
    assert (record.status, record.seeds) == ("finished", [0])
    assert record.decision == outcome.decision
    clips_per_second = record.throughput["clips"]
    assert clips_per_second is not None
    assert clips_per_second > 2 * 4 * 6 / (record.seconds or 0)  # scores and page take no training time
    trainings = record.trainings
    assert set(trainings) == {"MSE refiner", "drifting refiner"}
    drift = trainings["drifting refiner"]
    assert drift.data.num_samples == 21
    assert drift.data.num_held_out == 7
    assert drift.data.shards == "shard-00000.tar to shard-00002.tar, 3 in all"
    assert drift.quantizer is not None
    assert drift.quantizer.num_classes == 3
    assert drift.temperatures is not None
    assert drift.sampling is not None
    assert drift.batch_size == 6
    assert trainings["MSE refiner"].temperatures is None
    assert record.results["2 keyframes"]["methods"].keys() == set(METHODS)


def test_metrics_are_what_the_refiners_really_reach(run):
    config, folder, _ = run
    measured = json.loads((folder / "metrics.json").read_text())
    classes, data = make_classes(config, load_clips(config, CPU), folder / "classes")
    refiner, _ = load_clip_refiner(folder / "seed0-drift" / REFINER_NAME)
    rows = torch.arange(len(data.held_out))
    clips, text = data.held_out.load(rows), data.held_out.load_text(rows)
    for level, num_given in enumerate((5, 3, 2)):
        figures = measured[f"{num_given} keyframes"]["methods"]
        given = torch.zeros(len(clips), 9, dtype=torch.bool)
        given[:, :: 2 ** (level + 1)] = True
        linear = interpolate_frames(clips, given, "linear")
        assert figures["linear interpolation"]["psnr"]["value"] == pytest.approx(missing_psnr(linear, clips, given))
        holes = refiner.keyframes.draw_holes(len(clips), torch.Generator(), level)
        assert torch.equal(holes.given, given)
        filled = refiner.keyframes.fill(clips, holes)
        refined = refiner.complete(filled, holes.masks, data.held_out.labels, torch.ones(len(clips)), *text)
        reached = missing_psnr(refined, clips, given)
        assert figures["drifting refiner"]["psnr"]["value"] == pytest.approx(reached, abs=1e-4)
        error = ((refined - clips).square().mean(dim=(1, 3, 4))[~given]).mean()
        last = read_curve(folder / "seed0-drift" / CURVE_NAME)[-1]
        assert last[f"eval/mse_missing_{num_given}"] == pytest.approx(float(error), rel=1e-4)
        gain = measured[f"{num_given} keyframes"]["gains"]["drifting refiner"]["psnr"]
        assert gain["value"] == pytest.approx(reached - missing_psnr(linear, clips, given), abs=1e-3)
        assert gain["low"] <= gain["value"] <= gain["high"]
        for name in METHODS:
            for figure in ("psnr", "kid", "fd", "mse_missing"):
                assert figures[name][figure]["low"] <= figures[name][figure]["high"]
    assert classes.num_classes == 3
    assert measured["effective_batch"] == 6


def test_a_finished_run_is_not_repeated_and_comes_to_the_same_figures(run, tmp_path):
    config, made, outcome = run
    folder = copytree(made, tmp_path / "run")
    state = folder / "seed0-drift" / STATE_NAME
    state.write_bytes(b"left by a run that was killed between its last two writes")
    (folder / "seed0-mse" / CURVE_NAME).unlink()
    kept = {path: path.stat().st_mtime_ns for path in [*folder.glob("seed*/*.*"), *folder.glob("classes/*")]}
    del kept[state]
    again = finished(config, folder)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert again.results == outcome.results
    assert not state.exists()


def test_a_further_seed_and_what_changes_no_weight_are_added_to_a_run(shards, tmp_path):
    finished(tiny(shards, eval_levels=(2,)), tmp_path / "run")
    first = tmp_path / "run" / "seed0-drift" / REFINER_NAME
    before = first.stat().st_mtime_ns
    outcome = finished(tiny(shards, seeds=(0, 1), eval_levels=(2,), log_every=2), tmp_path / "run")
    assert first.stat().st_mtime_ns == before
    assert list(outcome.results) == ["2 keyframes", "effective_batch", "processes"]
    assert outcome.results["2 keyframes"]["methods"]["drifting refiner"]["num_seeds"] == 2
    weights = [load_file(tmp_path / "run" / f"seed{seed}-drift" / REFINER_NAME) for seed in (0, 1)]
    assert not torch.equal(weights[0]["network.position"], weights[1]["network.position"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": 5}, "holds a run with steps = 4, not 5"),
        ({"corrupt_mode": "dist"}, "corrupt_mode = 'none', not 'dist'"),
        ({"num_pseudo_classes": 2}, "num_pseudo_classes = 3, not 2"),
        ({"n_classes_step": 1}, "n_classes_step = 2, not 1"),
        ({"use_text": False}, "use_text = True, not False"),
        ({"held_out_share": 0.5}, "held_out_share"),
    ],
)
def test_other_settings_in_the_same_folder_are_refused(run, changes, said):
    config, folder, _ = run
    other = ClipConfig.model_validate({**config.model_dump(), **changes})
    assert said in refuses(other, folder, ConfigError)


def test_other_clips_in_the_same_folder_are_refused(run, tmp_path):
    config, folder, _ = run
    others = write_blobs(tmp_path / "others", 28, seed=5)
    assert "holds a run with data" in refuses(tiny(others, mse_baseline=True), folder, ConfigError)
    assert config.data_root != others


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"patch_size": 3}, "patch_size = 3 does not divide frames of 8x8"),
        ({"num_levels": 4}, "at most 3 levels"),
        ({"num_pseudo_classes": 22}, "num_pseudo_classes = 22 for 21 training clips"),
        ({"student_replace_prob": 0.5}, "hold no anchors of another model"),
        ({"backbone": "wan"}, "takes clips of 16 channels, these have 3"),
        ({"codebook": "/nowhere/codebook.safetensors"}, "/nowhere/codebook.safetensors"),
        ({"feature_loss_weight": 1.0, "feature_checkpoint": "/nowhere.safetensors"}, "/nowhere.safetensors"),
        ({"data_root": "/nowhere/shards"}, "/nowhere/shards"),
        ({"device": "cuda:99"}, "cuda:99"),
        ({"eval_clips": 1}, "1 held out to be scored; scores need two"),
        ({"held_out_share": 0.02}, "1 held out to be scored; scores need two"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(shards, tmp_path, changes, said):
    folder = tmp_path / "run"
    folder.mkdir()
    assert said in refuses(tiny(shards, **changes), folder)
    assert list(folder.iterdir()) == []


def test_level_by_level_refinement_ends_at_the_clip(run):
    """With a refiner that knows the truth of every level, the steps come to the very clip."""
    config, folder, _ = run
    refiner, _ = load_clip_refiner(folder / "seed0-drift" / REFINER_NAME)
    changes = {"target": "adjacent", "objective": "mse", "mse_baseline": False, "still_tolerance": 0.0}
    adjacent = config.model_copy(update=changes)
    clips = blobs(6, seed=4)
    keyframes = type(refiner.keyframes)(adjacent, 9)
    holes = keyframes.draw_holes(6, torch.Generator().manual_seed(0))
    assert len(holes.level.unique()) == 3
    calls = []

    class Oracle(torch.nn.Module):
        """What a refiner that was trained for ever would give: the next denser level of the true clips."""

        def forward(self, values, given, confidence, classes, level, alpha, text=None, text_mask=None):
            calls.append((level.clone(), given.clone(), confidence.clone()))
            return adjacent_targets(clips, holes.masks, level, "linear")

    oracle = type(refiner)(Oracle(), keyframes, refiner.classes, refiner.manifest)
    filled = keyframes.fill(clips, holes)
    completed = oracle.complete(filled, holes.masks, torch.zeros(6, dtype=torch.long), torch.ones(6))
    assert torch.equal(completed, clips)
    assert len(calls) == 3
    assert torch.equal(calls[0][0], holes.level)
    for level, given, confidence in calls:
        assert torch.equal(given & holes.given, given)  # what an earlier step made is no true frame
        assert bool((confidence[given] == 1).all())
        rows = level < holes.level
        assert bool((confidence[rows][~given[rows]] < 1).all())


def test_a_run_on_adjacent_levels_keeps_keyframes_through_all_steps(shards, tmp_path):
    changes = {"objective": "mse", "target": "adjacent", "corrupt_mode": "gauss", "still_tolerance": 0.0}
    config = tiny(shards, **changes, eval_levels=(2,))
    outcome = finished(config, tmp_path / "run")
    assert set(outcome.results["2 keyframes"]["methods"]) == {"linear interpolation", "MSE refiner"}
    refiner, _ = load_clip_refiner(tmp_path / "run" / "seed0-mse" / REFINER_NAME)
    clips = blobs(3, seed=4)
    classes, alpha = torch.tensor([0, 1, 2]), torch.ones(3)
    holes = refiner.keyframes.draw_holes(3, torch.Generator().manual_seed(0))
    holes = type(holes)(holes.masks, torch.tensor([0, 1, 2]), holes.seed)
    filled = refiner.keyframes.fill(clips, holes)
    together = refiner.complete(filled, holes.masks, classes, alpha)
    assert torch.equal(together.transpose(1, 2)[holes.given], clips.transpose(1, 2)[holes.given])
    for row in range(3):  # each takes as many steps as it has levels left
        rows = slice(row, row + 1)
        alone = refiner.complete(filled[rows], holes.masks[:, rows], classes[rows], alpha[rows])
        assert torch.allclose(alone, together[rows], atol=1e-5)
    plain = refiner.keyframes.interpolate(clips[:1], filled.given[:1])
    direct = refiner.network(plain, filled.given[:1], filled.confidence[:1], classes[:1], *_ones(0))
    assert torch.allclose(direct, together[:1], atol=1e-5)  # the densest level takes a single step


def _ones(level):
    return torch.tensor([level]), torch.ones(1)


@pytest.fixture(scope="module")
def single_frames(tmp_path_factory):
    """Latents of single frames of a VAE that the shards do not name."""
    return write_folder(tmp_path_factory.mktemp("latents") / "shards", 12, 6)


SHORT = {"num_levels": 2, "num_pseudo_classes": 2, "eval_levels": (1,), "steps": 2}


def test_latents_of_single_frames_are_scored_as_frames_too(single_frames, tmp_path):
    outcome = finished(tiny(single_frames, **SHORT, ckpt_root=micro_wan_weights()), tmp_path / "run")
    for level in outcome.levels:
        assert set(level.pixels) == {"linear interpolation", "drifting refiner"}
        assert level.gains()["drifting refiner"].pixel_psnr is not None
    assert ">decoded<" in (tmp_path / "run" / "report.html").read_text()


def test_latents_of_an_unknown_vae_are_scored_and_the_page_says_why_nothing_is_shown(single_frames, tmp_path):
    outcome = finished(tiny(single_frames, **SHORT), tmp_path / "run")
    assert all(level.pixels == {} and level.pictures == [] for level in outcome.levels)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "wins rest on latents alone: their VAE is not known" in page
    assert "ckpt_root names it" in page


@pytest.mark.parametrize(
    ("changes", "spacing", "stride"),
    [
        ({"min_keyframes": 1, "num_levels": 1}, "9 frames: 1 given", 9),
        ({"eval_levels": (0,)}, "4 frames on average: 3 given", 4),
    ],
)
def test_one_keyframe_and_drawn_ones_have_a_stride_too(shards, tmp_path, changes, spacing, stride):
    changes = {"keyframe_schedule": "random", "eval_levels": (), "num_pseudo_classes": 1, "objective": "mse", **changes}
    outcome = finished(tiny(shards, **{**SHORT, **changes}), tmp_path / "run")
    last = outcome.levels[-1]
    assert (last.stride, last.num_given) == (stride, int(spacing.split(": ")[1][0]))
    assert f"A keyframe every {spacing}" in (tmp_path / "run" / "report.html").read_text()
    assert RunRecord.read(tmp_path / "run").trainings["MSE refiner"].quantizer is None


def test_the_record_states_the_classes_of_a_codebook_that_is_given(run, shards):
    _, folder, _ = run
    config = tiny(shards, codebook=folder / "classes" / "codebook.safetensors", num_pseudo_classes=9)
    facts = clip_trainings(config, load_clips(config, CPU), 6)["drifting refiner"]
    assert facts.quantizer is not None
    assert facts.quantizer.num_classes == 3


def test_the_record_of_the_autoencoder_states_split_and_vae(single_frames, tmp_path):
    config = tiny(single_frames, feature_loss_weight=1.0, ckpt_root=micro_wan_weights(), held_out_root=single_frames)
    data = load_clips(config, CPU)
    facts = clip_trainings(config, data, 6)["autoencoder"]
    assert (facts.data.num_samples, facts.data.num_held_out) == (12 * 5, 12 * 5)
    assert facts.encoders is not None
    assert facts.encoders[0].checkpoint == str(micro_wan_weights())
    settings = frame_mae_config(config, data)
    assert (settings.held_out_root, settings.vae_root) == (single_frames, micro_wan_weights())
    settings = frame_mae_config(tiny(single_frames, held_out_share=0.4), data)
    assert (settings.held_out_share, settings.vae_root) == (0.4, None)


def test_the_vae_is_checked_before_the_folder_is_taken(single_frames, shards, tiny_checkpoint, tmp_path):
    own = write_folder(tmp_path / "own", 6, vae=fingerprint_vae(micro_wan_weights()))
    config = tiny(own, **SHORT, ckpt_root=tiny_checkpoint)
    assert "did not make these latents" in refuses(config, tmp_path / "run", ConfigError)
    assert "/nowhere" in refuses(tiny(single_frames, **SHORT, ckpt_root="/nowhere"), tmp_path / "run", FileError)
    pixels = tiny(shards, ckpt_root=micro_wan_weights())
    assert "ckpt_root has no effect" in refuses(pixels, tmp_path / "run", ConfigError)


def test_latents_that_are_compressed_in_time_are_trained_on_and_shown(tmp_path):
    vae = fingerprint_vae(micro_wan_weights())
    with ShardWriter(tmp_path / "latents", space="latent", frames="clip", vae=vae) as writer:
        for number in range(12):
            writer.write(f"clip{number}", clip_values(number))
    outcome = finished(tiny(tmp_path / "latents", **SHORT), tmp_path / "run")
    assert all(len(level.pictures) == 3 for level in outcome.levels)
    decoded = outcome.levels[0].pixels["linear interpolation"]
    assert set(outcome.levels[0].pixels) == {"linear interpolation", "drifting refiner"}
    # of 17 video frames the first one and the last four belong to the two given latents
    assert decoded.num_missing.tolist() == [12] * decoded.num_clips
    assert "data:image/png" in (tmp_path / "run" / "report.html").read_text()
