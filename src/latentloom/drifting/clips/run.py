"""A run of `latentloom drift train` on clips: its refiners, what they reached beside interpolation, and its page."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from latentloom.drifting.clips.backbones import new_network
from latentloom.drifting.clips.classes import make_classes, refuse_classes_that_do_not_fit
from latentloom.drifting.clips.config import ClipConfig
from latentloom.drifting.clips.corruption import Keyframes
from latentloom.drifting.clips.data import ClipData, load_clips
from latentloom.drifting.clips.experiment import clip_trainings
from latentloom.drifting.clips.fitted_warper import make_keyframes
from latentloom.drifting.clips.frame_encoder import compares_frames, make_frame_encoder
from latentloom.drifting.clips.held_out import HeldOutClips
from latentloom.drifting.clips.pixels import ClipSpace, known_space, vae_root
from latentloom.drifting.clips.refiner_files import ClipRefiner, load_clip_refiner, save_clip_refiner
from latentloom.drifting.clips.report import ClipReport, LevelScores, compare_levels, write_clip_report
from latentloom.drifting.clips.train import require_students, train_clip_refiner
from latentloom.drifting.idle_settings import idle_settings
from latentloom.drifting.representation.codebook import Codebook
from latentloom.drifting.train import CURVE_NAME, effective_batch
from latentloom.drifting.trainings import (
    METHODS,
    identity,
    last_measures,
    steps_to_do,
    trained_once,
    training_folder,
    trainings,
    write_curves,
)
from latentloom.errors import ConfigError
from latentloom.runs import RunFolder, process_rank
from latentloom.runs.claims import claim_folder, file_digest, samples_digest
from latentloom.runs.process_group import joined_processes, num_processes
from latentloom.storage import write_json
from latentloom.storage.atomic import disk_failures_said
from latentloom.training import read_curve
from latentloom.wan.checkpoint_fingerprints import fingerprint_transformer
from latentloom.wan.shipped import micro_wan_weights

#: Settings that leave the weights of each training as they are.
CHANGEABLE = {"seeds", "mse_baseline", "eval_clips", "eval_levels", "eval_alpha", "log_every", "save_every", "device"}
CHANGEABLE |= {"ckpt_root"}  # what it holds is told by the transformer's fingerprint

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClipOutcome:
    """What a run came to.

    Attributes:
        levels: scores of every method at every level.
        results: those of the record.
        decision: what follows from them.
    """

    levels: list[LevelScores]
    results: dict[str, Any]
    decision: str


def run_clips(config: ClipConfig, out_dir: Path) -> ClipOutcome | None:
    """Train a refiner of clips for each seed, score them on held-out clips, and leave everything in `out_dir`.

    Under torchrun every process calls it; the first one writes, and the others are given None. An interrupted run
    goes on exactly where it stopped; finished trainings in the folder are not repeated.

    Args:
        config: the settings.
        out_dir: the run folder: `report.html`, `metrics.json`, and `seedN-drift/refiner.safetensors`.

    Raises:
        LatentLoomError: the user's mistakes, of whichever kind.
    """
    with joined_processes(config.device) as device:
        data = load_clips(config, device)
        _refuse_what_does_not_fit(config, data, device)
        space = known_space(data, vae_root(config), device)
        facts = clip_trainings(config, data, effective_batch(config))
        settings = config.model_dump(mode="json", exclude=CHANGEABLE) | _digests(config)
        claim_folder(out_dir, identity(settings, data.description, data.train.fingerprint, effective_batch(config)))
        with disk_failures_said(out_dir):
            if process_rank() != 0:
                _Run(config, data, space, out_dir, device).train_all()
                return None
            with RunFolder.at(out_dir, config, data=data.description, seeds=config.seeds, trainings=facts) as run:
                return _Run(config, data, space, out_dir, device).finish(run)


def _refuse_what_does_not_fit(config: ClipConfig, data: ClipData, device: torch.device) -> None:
    """Make what needs no folder: what does not fit the data must not take one first.

    Raises:
        LatentLoomError: from whichever part the settings do not fit.
    """
    Keyframes(config, data.train.shape[1])
    refuse_classes_that_do_not_fit(config, data)
    require_students(config, data.train)
    new_network(data, config, config.num_pseudo_classes, 0)
    if config.feature_checkpoint is not None:
        make_frame_encoder(config, data, Path(), device)
    num_scored = min(len(data.held_out), config.eval_clips)
    if num_scored < 2 or len(data.train) < 2:
        raise ConfigError(
            f"{len(data.train)} clips to train on and {num_scored} held out to be scored; scores need two of each: "
            "give more clips, or a larger held_out_share or eval_clips"
        )
    if data.space == "pixel" and config.backbone == "tokens" and config.ckpt_root is not None:
        raise ConfigError("ckpt_root has no effect with clips of pixels and backbone = 'tokens'; leave it out")


class _Run:
    """What all trainings of a run share."""

    def __init__(
        self, config: ClipConfig, data: ClipData, space: ClipSpace | None, out_dir: Path, device: torch.device
    ) -> None:
        self.config = config
        self.space = space
        self.out_dir = out_dir
        self.device = device
        self.classes, self.data = make_classes(config, data, out_dir / "classes")
        self.keyframes = make_keyframes(config, self.data, out_dir / "interpolation", device)
        self.encoder = make_frame_encoder(config, self.data, out_dir / "features", device)

    def train_all(self) -> None:
        """Every training, in a process that writes nothing."""
        for seed, objective in trainings(self.config):
            self._train(seed, objective, None)

    def finish(self, run: RunFolder) -> ClipOutcome:
        """Every training, its scores, and the page."""
        config = self.config
        held_out = HeldOutClips(self.data, config, self.keyframes, self.space, self.device)
        refiners: dict[str, list[ClipRefiner]] = {}
        curves, num_steps, seconds, evaluate = {}, 0, 0.0, _Timed(held_out.measure)
        for seed, objective in trainings(config):
            started, folder = time.monotonic(), training_folder(run.path, seed, objective)
            num_steps += steps_to_do(folder, config.steps)
            refiners.setdefault(METHODS[objective], []).append(self._train(seed, objective, evaluate))
            seconds += time.monotonic() - started
            logger.info("%s, seed %d: %.1f s", objective, seed, time.monotonic() - started)
            if (folder / CURVE_NAME).exists() and (lines := read_curve(folder / CURVE_NAME)):
                curves[f"{METHODS[objective]}, seed {seed}"] = lines
        trained_for = max(seconds - evaluate.seconds, 1e-9)
        run.state_throughput(effective_batch(config) * num_steps / trained_for, "clips")
        write_curves(run, curves)
        levels = [_scores(held_out, number, refiners) for number in range(len(held_out.levels))]
        page = ClipReport(
            introduction=_introduction(config, self.data),
            settings=config.model_dump(mode="json"),
            facts=_facts(config, self.data, self.classes, self.space, self.device, curves),
            levels=levels,
            subject=METHODS[config.objective],
            curves=curves,
            diagnostics=last_measures(curves),
        )
        write_clip_report(run.path / "report.html", page)
        decision = compare_levels(levels, METHODS[config.objective])
        results: dict[str, Any] = {f"{level.num_given} keyframes": level.to_json() for level in levels}
        results |= {"effective_batch": effective_batch(config), "processes": num_processes()}
        write_json(run.path / "metrics.json", {**results, "decision": decision, "data": self.data.description})
        run.finish(results, decision=decision)
        return ClipOutcome(levels, results, decision)

    def _train(self, seed: int, objective: str, evaluate: "_Timed | None") -> ClipRefiner:
        """The refiner of a seed and an objective, from its file where that training is finished."""
        config, data = self.config.model_copy(update={"objective": objective}), self.data
        folder = training_folder(self.out_dir, seed, objective)

        def train() -> ClipRefiner:
            parts = (data, self.classes, self.keyframes, self.encoder)
            return train_clip_refiner(*parts, config, seed, folder, self.device, evaluate)

        def save(path: Path, refiner: ClipRefiner) -> None:
            record = {"seed": seed, "data": data.description, "images": samples_digest(data.train.fingerprint)}
            record |= {"effective_batch": effective_batch(config), "processes": num_processes()}
            save_clip_refiner(path, refiner, config, record)

        return trained_once(folder, lambda path: load_clip_refiner(path, self.device)[0], train, save)


class _Timed:
    """Measures a refiner, and adds up the seconds that it takes."""

    def __init__(self, measure: Callable[[ClipRefiner], Mapping[str, float]]) -> None:
        self.measure = measure
        self.seconds = 0.0

    def __call__(self, refiner: ClipRefiner) -> Mapping[str, float]:
        started = time.monotonic()
        measures = self.measure(refiner)
        self.seconds += time.monotonic() - started
        return measures


def _digests(config: ClipConfig) -> dict[str, str]:
    """What the files are that the settings name, as others may lie there later."""
    named = {"init_refiner": config.init_refiner, "codebook": config.codebook}
    if compares_frames(config):
        named["feature_checkpoint"] = config.feature_checkpoint
    digests = {f"{name}_content": file_digest(path) for name, path in named.items() if path is not None}
    if config.backbone == "wan":
        digests["transformer"] = fingerprint_transformer(config.ckpt_root or micro_wan_weights())
    return digests


def _scores(held_out: HeldOutClips, place: int, refiners: dict[str, list[ClipRefiner]]) -> LevelScores:
    """Every method at one level, and pictures of it."""
    level = held_out.levels[place]
    shown = held_out.interpolated(level)
    scores = {name: [held_out.score(clips, level)] for name, clips in shown.items()}
    for name, trained in refiners.items():
        for refiner in trained:
            clips = held_out.refined(refiner, level)
            shown.setdefault(name, clips)
            scores.setdefault(name, []).append(held_out.score(clips, level))
    pixels = held_out.score_pixels(shown, level)
    pictures = list(held_out.pictures(level, shown))
    return LevelScores(level.num_given, level.stride, scores, pixels, pictures, is_drawn=level.is_drawn)


def _introduction(config: ClipConfig, data: ClipData) -> str:
    return (
        f"Of each clip a few frames are given, the others are interpolated ({config.interp_mode}), and a refiner "
        f"corrects the whole clip in one step. {len(config.seeds)} seed(s), {config.steps} steps each. Data: "
        f"{data.description}."
    )


def _facts(
    config: ClipConfig,
    data: ClipData,
    classes: Codebook,
    space: ClipSpace | None,
    device: torch.device,
    curves: dict[str, list[dict[str, float]]],
) -> dict[str, Any]:
    facts = {
        "data": data.description,
        "pseudo-classes": classes.num_classes,
        "effective batch": effective_batch(config),
        "processes": num_processes(),
        "device": str(device),
    }
    skipped = data.train.index.skipped
    if skipped:
        facts["clips left out"] = ", ".join(f"{count} ({reason})" for reason, count in sorted(skipped.items()))
    if idle := idle_settings(config):
        facts["settings without effect"] = "; ".join(idle)
    if space is None:
        facts["pictures"] = "none, and wins rest on latents alone: their VAE is not known; ckpt_root names it"
    return facts | {f"seconds, {name}": lines[-1]["seconds"] for name, lines in curves.items()}
