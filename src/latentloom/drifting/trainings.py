"""The trainings of a run: which they are, where each lies, and what their curves leave in the run's folder."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from latentloom.drifting.config import FieldConfig
from latentloom.drifting.train import STATE_NAME, saved_step
from latentloom.runs import RunFolder, process_rank
from latentloom.runs.claims import samples_digest
from latentloom.runs.process_group import wait_for_all

REFINER_NAME = "refiner.safetensors"
METHODS = {"drift": "drifting refiner", "mse": "MSE refiner"}

RefinerT = TypeVar("RefinerT")
Curves = Mapping[str, list[dict[str, float]]]


def trainings(config: FieldConfig) -> list[tuple[int, str]]:
    """Seed and objective of every training of a run, in order."""
    objectives = ["mse"] if config.mse_baseline and config.objective != "mse" else []
    return [(seed, objective) for seed in config.seeds for objective in (*objectives, config.objective)]


def training_folder(out_dir: Path, seed: int, objective: str) -> Path:
    """Where a training lies in the folder of its run."""
    return out_dir / f"seed{seed}-{objective}"


def identity(settings: Mapping[str, Any], description: str, fingerprint: str, effective_batch: int) -> dict[str, Any]:
    """What makes a run the one it is, as JSON values.

    Args:
        settings: those that its weights depend on.
        description: of its data, in a line.
        fingerprint: of the samples that it is trained on.
        effective_batch: samples per optimizer step, which follows from the number of processes too.
    """
    about = {"effective_batch": effective_batch, "data": description, "images": samples_digest(fingerprint)}
    return {**settings, **about}


def trained_once(
    folder: Path,
    load: Callable[[Path], RefinerT],
    train: Callable[[], RefinerT],
    save: Callable[[Path, RefinerT], None],
) -> RefinerT:
    """The refiner in a training's folder, trained and saved first where that training is not finished.

    Every process calls it, and the first one alone saves.

    Args:
        folder: of the training.
        load: reads a refiner from its file.
        train: trains it.
        save: writes it.
    """
    path = folder / REFINER_NAME
    is_finished = path.exists()
    wait_for_all()  # else a slower process would find what the first one writes
    if is_finished:
        if process_rank() == 0:
            (folder / STATE_NAME).unlink(missing_ok=True)  # of a run that was killed between the two
        return load(path)
    folder.mkdir(parents=True, exist_ok=True)
    refiner = train()
    if process_rank() == 0:
        save(path, refiner)
        (folder / STATE_NAME).unlink()
    wait_for_all()
    return refiner


def steps_to_do(folder: Path, num_steps: int) -> int:
    """Steps that a training of so many still needs."""
    if (folder / REFINER_NAME).exists():
        return 0
    state = folder / STATE_NAME
    return num_steps - (saved_step(state) if state.exists() else 0)


def write_curves(run: RunFolder, curves: Curves) -> None:
    """Write the lines of every training's curve to the run's TensorBoard."""
    shutil.rmtree(run.path / "tensorboard", ignore_errors=True)  # an earlier sitting's, which these lines contain
    writer = run.tensorboard()
    for name, lines in curves.items():
        for line in lines:
            for key, value in line.items():
                if key != "step":
                    writer.add_scalar(f"{name}/{key}", value, int(line["step"]))


def last_measures(curves: Curves) -> dict[str, float]:
    """What the last training's last logged step says about kernel, queues and features."""
    if not curves:
        return {}
    lines = list(curves.values())[-1]
    kinds = ("kernel/", "queue/", "separation/")
    return {key: value for key, value in lines[-1].items() if key.startswith(kinds)}
