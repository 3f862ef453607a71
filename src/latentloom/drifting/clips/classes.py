"""The pseudo-classes of a run's clips: of a codebook that is given, or of one that is fitted to the training clips."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from jaxtyping import Int64
from torch import Tensor

from latentloom.drifting.clips.clip_sample import ClipSample
from latentloom.drifting.clips.condition import fit_condition_encoder
from latentloom.drifting.clips.condition_parts import ConditionSettings
from latentloom.drifting.clips.config import ClipConfig
from latentloom.drifting.clips.data import ClipData, Clips
from latentloom.drifting.representation.codebook import Codebook, load_codebook
from latentloom.drifting.representation.kmeans import fit_kmeans
from latentloom.errors import ConfigError, ShapeError
from latentloom.runs import process_rank, track
from latentloom.runs.claims import samples_digest
from latentloom.runs.process_group import wait_for_all
from latentloom.storage import save_module
from latentloom.storage.modules import read_origin, read_tensors

CODEBOOK_FILE = "codebook.safetensors"
LABELS_FILE = "labels.safetensors"
_CLIPS_AT_ONCE = 64


def make_classes(config: ClipConfig, data: ClipData, folder: Path) -> tuple[Codebook, ClipData]:
    """The codebook of the settings, and the data with the label of every clip.

    Classes without a training clip are left out. A codebook that is fitted here is kept in `folder`, and so are the
    labels: the first process finds them once, as a clip between two centroids may get another one elsewhere.

    Raises:
        ConfigError: more classes than training clips, or a codebook for other clips.
        FileError: no such codebook, or damaged labels (CorruptFileError).
    """
    path = folder / CODEBOOK_FILE
    if config.codebook is not None:
        codebook = load_codebook(config.codebook)
    else:
        _refuse_too_many(config, data)
        if not path.exists() and process_rank() == 0:
            _fit(config, data).save(path)
        wait_for_all()  # else a slower process would not find what the first one writes
        codebook = load_codebook(path)
    found, about = folder / LABELS_FILE, _about_labels(codebook, data)
    if process_rank() == 0 and not (found.exists() and read_origin(found).config == about):
        with _other_clips_said(config.codebook or path):
            save_module(found, _labels(codebook, data), "ClipLabels", about)
    wait_for_all()
    labels = read_tensors(found)
    present = labels["train"].unique()
    train = data.train.labelled(torch.searchsorted(present, labels["train"]))
    return _only(codebook, present), data.labelled(train, data.held_out.labelled(labels["held_out"]))


def refuse_classes_that_do_not_fit(config: ClipConfig, data: ClipData) -> None:
    """Return if `make_classes` will not refuse the settings; writes nothing and labels one clip.

    Raises:
        ConfigError, FileError: as `make_classes`.
    """
    if config.codebook is None:
        _refuse_too_many(config, data)
        return
    with _other_clips_said(config.codebook):
        load_codebook(config.codebook).classify([data.train.index.sample(int(data.train.rows[0]))])


def classify(codebook: Codebook, clips: Clips) -> Int64[Tensor, "N"]:
    """The pseudo-class of every clip."""
    labels = [
        codebook.classify([clips.index.sample(row) for row in part.tolist()])
        for part in track(clips.rows.split(_CLIPS_AT_ONCE), "pseudo-classes")
    ]
    return torch.cat(labels)


@contextmanager
def _other_clips_said(path: Path) -> Iterator[None]:
    try:
        yield
    except ShapeError as error:
        raise ConfigError(f"{path} is of other clips: {error}") from error


def _refuse_too_many(config: ClipConfig, data: ClipData) -> None:
    if config.num_pseudo_classes > len(data.train):
        raise ConfigError(
            f"num_pseudo_classes = {config.num_pseudo_classes} for {len(data.train)} training clips; give at most as "
            "many"
        )


def _labels(codebook: Codebook, data: ClipData) -> dict[str, Int64[Tensor, "_"]]:
    """Of the training clips by the whole codebook, of the held-out ones by the classes that those have."""
    train = classify(codebook, data.train)
    return {"train": train, "held_out": classify(_only(codebook, train.unique()), data.held_out)}


def _only(codebook: Codebook, present: Int64[Tensor, "_"]) -> Codebook:
    return Codebook(codebook.centroids[present], codebook.encoder, codebook.record)


def _about_labels(codebook: Codebook, data: ClipData) -> dict[str, str]:
    """What labels belong to: the clips of both parts, and the codebook."""
    clips = [f"{part.fingerprint} {part.rows.tolist()}" for part in (data.train, data.held_out)]
    numbers = hashlib.sha256(codebook.centroids.contiguous().numpy().tobytes()).hexdigest()
    return {"data": samples_digest(" ".join(clips)), "codebook": f"{codebook.encoder.fingerprint} {numbers[:16]}"}


def _fit(config: ClipConfig, data: ClipData) -> Codebook:
    settings = ConditionSettings(min_given=config.min_keyframes, text_weight=1.0 if data.text_width else 0.0)
    encoder, vectors, num_clips = fit_condition_encoder(_samples(data.train), settings, seed=config.split_seed)
    clusters = fit_kmeans(vectors, config.num_pseudo_classes, seed=config.split_seed)
    return Codebook(clusters.centroids, encoder, {"data": data.description, "num_clips": num_clips})


def _samples(clips: Clips) -> Iterator[ClipSample]:
    for row in clips.rows.tolist():
        yield clips.index.sample(row)
