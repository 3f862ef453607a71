"""A refiner's file, scored on the images that were held out from its training."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from latentloom.drifting.data import ImageData, load_data
from latentloom.drifting.evaluate import score_real
from latentloom.drifting.held_out import HeldOut
from latentloom.drifting.judge import train_judge
from latentloom.drifting.refiner_files import Refiner, load_refiner
from latentloom.errors import CheckpointError, ConfigError
from latentloom.runs import choose_device
from latentloom.runs.claims import samples_digest
from latentloom.storage import read_module


def evaluate_refiner(
    path: Path, strengths: Sequence[float], *, data_root: Path | None = None, device: str | None = None
) -> dict[str, dict[str, Any]]:
    """The scores of interpolation, of a refiner at each guidance strength, and of real images, by name.

    Args:
        path: of the refiner; it holds the settings that say which images were held out.
        strengths: guidance strengths, 1 or more.
        data_root: where the data lies, if not where it lay in training.
        device: as in the settings.

    Raises:
        FileError: no such file, or no data.
        ConfigError: images of a single class, by which no refiner can be judged, or a place for data that has none.
        CheckpointError: images that the refiner was not trained on.
    """
    place = choose_device(device)
    refiner, config = load_refiner(path, place)
    if data_root is not None:
        if config.data_root is None:
            raise ConfigError(
                f"{path} was trained on dataset = {config.dataset!r}, which has no data_root; leave it out"
            )
        config = config.model_copy(update={"data_root": data_root})
    data = load_data(config, place)
    _require_its_images(path, refiner, data)
    if len(data.train.class_names) < 2:
        raise ConfigError(f"{data.description}: a judge needs two classes or more")
    judge = train_judge(data.train, device=place)
    held_out = HeldOut(data, config, judge, place)
    scores = {name: held_out.score(images) for name, images in held_out.interpolated().items()}
    for strength in strengths:
        scores[f"refiner, alpha {strength:g}"] = held_out.score(held_out.refined(refiner, strength))
    scores["real images"] = score_real(judge, data.train, data.held_out, rows=held_out.rows)
    return {name: found.to_json() for name, found in scores.items()}


def _require_its_images(path: Path, refiner: Refiner, data: ImageData) -> None:
    """Return if the images are those of the training: of others, it is unknown which of them the training has seen.

    Raises:
        CheckpointError: they are not, as far as the refiner's file tells.
    """
    if data.held_out.shape != refiner.keypatches.shape:
        raise CheckpointError(
            f"{path} refines images of {refiner.keypatches.shape}, and these have {data.held_out.shape}; give the data "
            "of its training"
        )
    if len(data.train.class_names) != refiner.network.shape.num_classes:
        raise CheckpointError(
            f"{path} knows {refiner.network.shape.num_classes} classes, and the data has "
            f"{len(data.train.class_names)}; give the data of its training"
        )
    trained_on = (read_module(path).record or {}).get("images", samples_digest(data.train.fingerprint))
    if trained_on != samples_digest(data.train.fingerprint):
        raise CheckpointError(
            f"{path} was trained on other images, or names, sizes or times of their files have changed, so that the "
            "held-out ones cannot be told; give the data of its training, or a copy that keeps the times (cp -a)"
        )
