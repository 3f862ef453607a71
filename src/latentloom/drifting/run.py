"""A run of `latentloom drift train`: its refiners, what they reached beside other methods, and its page."""

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from latentloom.drifting.config import DriftConfig
from latentloom.drifting.corruption import Keypatches
from latentloom.drifting.data import ImageData, load_data
from latentloom.drifting.encoders import FeatureEncoder
from latentloom.drifting.evaluate import Scores, aggregate, score_real
from latentloom.drifting.experiment import drift_trainings
from latentloom.drifting.frozen_encoder import encoder_digest, make_encoder, trains_encoder
from latentloom.drifting.held_out import HeldOut
from latentloom.drifting.idle_settings import idle_settings
from latentloom.drifting.judge import train_judge
from latentloom.drifting.refiner_files import Refiner, load_refiner, save_refiner
from latentloom.drifting.report import DriftReport, compare, write_drift_report
from latentloom.drifting.train import CURVE_NAME, effective_batch
from latentloom.drifting.train_images import train_refiner
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
from latentloom.runs import RunFolder, process_rank
from latentloom.runs.claims import claim_folder, samples_digest
from latentloom.runs.process_group import joined_processes, num_processes
from latentloom.runs.randomness import step_generator
from latentloom.storage import write_json
from latentloom.storage.atomic import disk_failures_said
from latentloom.training import read_curve

#: Settings that leave the weights of each training as they are.
CHANGEABLE = {"seeds", "mse_baseline", "eval_images", "eval_alpha", "log_every", "save_every", "device"}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What a run came to: the scores of every seed by method, and the record's results."""

    scores: dict[str, list[Scores]]
    results: dict[str, Any]
    decision: str


def run_drift(config: DriftConfig, out_dir: Path) -> Outcome | None:
    """Train a refiner for each seed, score them on held-out images, and leave everything in `out_dir`.

    Under torchrun every process calls it; the first one writes, and the others are given None. An interrupted run
    goes on exactly where it stopped; finished trainings in the folder are not repeated.

    Args:
        config: the settings.
        out_dir: the run folder: `report.html`, `metrics.json`, and `seedN-drift/refiner.safetensors`.

    Raises:
        LatentLoomError: the user's mistakes, of whichever kind.
    """
    with joined_processes(config.device) as device:
        data = load_data(config, device)
        _refuse_what_does_not_fit(config, data)
        facts = drift_trainings(config, data, effective_batch(config))
        features = out_dir / "features"
        encoder = None if trains_encoder(config) else make_encoder(config, data, features, device)
        settings = config.model_dump(mode="json", exclude=CHANGEABLE) | {"feature_weights": encoder_digest(config)}
        claim_folder(out_dir, identity(settings, data.description, data.train.fingerprint, effective_batch(config)))
        with disk_failures_said(out_dir):
            if trains_encoder(config):
                encoder = make_encoder(config, data, features, device)
            if process_rank() != 0:
                for seed, objective in trainings(config):
                    _train(data, encoder, config, seed, objective, out_dir, device, None)
                return None
            with RunFolder.at(out_dir, config, data=data.description, seeds=config.seeds, trainings=facts) as run:
                return _run(run, data, encoder, config, device)


def _refuse_what_does_not_fit(config: DriftConfig, data: ImageData) -> None:
    """Fill one image: what does not fit the data must not take a folder first.

    Raises:
        LatentLoomError: from whichever part the settings do not fit.
    """
    keypatches = Keypatches(config, data.train.shape)
    image = keypatches.to_tokens(data.train.load(torch.zeros(1, dtype=torch.int64)))
    keypatches.fill(image, keypatches.draw_holes(1, step_generator(0, 0, "trial")).to(image.device))


def _run(
    run: RunFolder, data: ImageData, encoder: FeatureEncoder | None, config: DriftConfig, device: torch.device
) -> Outcome:
    judge = train_judge(data.train, device=device) if len(data.train.class_names) > 1 else None
    held_out = HeldOut(data, config, judge, device)
    images = held_out.interpolated()
    scores = {name: [held_out.score(filled)] for name, filled in images.items()} if judge is not None else {}
    curves = {}
    for seed, objective in trainings(config):
        started, num_steps = time.monotonic(), steps_to_do(training_folder(run.path, seed, objective), config.steps)
        refiner = _train(data, encoder, config, seed, objective, run.path, device, held_out)
        logger.info("%s, seed %d: %.1f s", objective, seed, time.monotonic() - started)
        run.count(effective_batch(config) * num_steps, "images")
        name = METHODS[objective]
        refined = held_out.refined(refiner)
        images.setdefault(name, refined)
        if judge is not None:
            scores.setdefault(name, []).append(held_out.score(refined))
        curve = training_folder(run.path, seed, objective) / CURVE_NAME
        if curve.exists() and (lines := read_curve(curve)):  # a finished training may have lost its curve
            curves[f"{name}, seed {seed}"] = lines
    write_curves(run, curves)
    real = score_real(judge, data.train, data.held_out, rows=held_out.rows) if judge is not None else None
    page = DriftReport(
        introduction=_introduction(config, held_out),
        settings=config.model_dump(mode="json"),
        facts=_facts(config, held_out, curves),
        methods=scores,
        real=real,
        baseline=METHODS["mse"] if METHODS["mse"] in scores else None,
        subject=METHODS[config.objective],
        curves=curves,
        grids=[("Held-out images, the first seed's refiners.", held_out.picture(images))],
        diagnostics=last_measures(curves),
    )
    write_drift_report(run.path / "report.html", page)
    decision = compare(page) or "one class: nothing to tell images apart by; see the report's pictures"
    results: dict[str, Any] = {name: aggregate(found).to_json() for name, found in scores.items()}
    if real is not None:
        results["real images"] = real.to_json()
    results |= {"effective_batch": effective_batch(config), "processes": num_processes()}
    write_json(run.path / "metrics.json", {**results, "decision": decision, "data": data.description})
    run.finish(results, decision=decision)
    return Outcome(scores, results, decision)


def _train(
    data: ImageData,
    encoder: FeatureEncoder | None,
    config: DriftConfig,
    seed: int,
    objective: str,
    out_dir: Path,
    device: torch.device,
    held_out: HeldOut | None,
) -> Refiner:
    """The refiner of a seed and an objective, from its file where that training is finished."""
    config = config.model_copy(update={"objective": objective})
    folder, evaluate = training_folder(out_dir, seed, objective), held_out.measure if held_out else None

    def save(path: Path, refiner: Refiner) -> None:
        record = {"seed": seed, "data": data.description, "images": samples_digest(data.train.fingerprint)}
        record |= {"effective_batch": effective_batch(config), "processes": num_processes()}
        save_refiner(path, refiner, config, record)

    return trained_once(
        folder,
        lambda path: load_refiner(path, device)[0],
        lambda: train_refiner(data, encoder, config, seed, folder, device, evaluate),
        save,
    )


def _facts(config: DriftConfig, held_out: HeldOut, curves: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    keypatches = held_out.keypatches
    facts = {
        "data": held_out.data.description,
        "given patches": f"{keypatches.counts[-1]} of {keypatches.num_patches}",
        "effective batch": effective_batch(config),
        "processes": num_processes(),
        "device": str(held_out.device),
    }
    if idle := idle_settings(config):
        facts["settings without effect"] = "; ".join(idle)
    return facts | {f"seconds, {name}": lines[-1]["seconds"] for name, lines in curves.items()}


def _introduction(config: DriftConfig, held_out: HeldOut) -> str:
    keypatches = held_out.keypatches
    return (
        f"Of each image {keypatches.counts[-1]} of {keypatches.num_patches} patches are given, the others are "
        f"interpolated, and a refiner corrects the whole image in one step. {len(config.seeds)} seed(s), "
        f"{config.steps} steps each. Data: {held_out.data.description}."
    )
