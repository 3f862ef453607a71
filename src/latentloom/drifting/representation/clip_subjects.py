"""Clips of shards as subjects of the evaluation: with the vectors of a codebook, or of an encoder of frames."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from latentloom.drifting.clips.condition_parts import pooled_text
from latentloom.drifting.clips.shard_index import ShardIndex
from latentloom.drifting.encoders import FeatureEncoder
from latentloom.drifting.representation.codebook import Codebook
from latentloom.drifting.representation.decoding import ClipPictures
from latentloom.drifting.representation.families import prompt_families
from latentloom.drifting.representation.subject import (
    Subject,
    global_features,
    joined_features,
    pooled_keyframes,
    sampled_rows,
)
from latentloom.errors import ConfigError
from latentloom.runs import track

_CLIPS_AT_ONCE = 64
_ENCODED_AT_ONCE = 16  # clips, all of whose frames go through an encoder


@dataclass(frozen=True, eq=False)
class ClipSet:
    """Clips to look at.

    Attributes:
        root: folder of shards, or a pattern.
        max_samples: most clips of the sample.
        seed: decides which.
        vae_root: checkpoint whose VAE decodes latents; None is MicroWan.
        device: where VAE and encoder compute.
    """

    root: str
    max_samples: int
    seed: int
    vae_root: Path | None
    device: torch.device

    def open(self) -> tuple[ShardIndex, Int64[Tensor, "N"]]:
        """The shards, and the numbers of the sample's clips.

        Raises:
            FileError: there are no shards.
            ConfigError: a single clip, which cannot be compared.
        """
        index = ShardIndex.open(self.root)
        return index, sampled_rows(len(index), self.max_samples, self.seed, f"clips in {self.root}")


@dataclass(frozen=True, eq=False)
class _Classes:
    """Classes of a sample; their counts are of all clips, where those have been looked at."""

    labels: Int64[Tensor, "N"]
    names: tuple[str, ...]
    counts: Int64[Tensor, "K"]


def clips_by_codebook(codebook: Codebook, clips: ClipSet, *, name: str) -> Subject:
    """The clips of shards with the pseudo-classes and vectors of a codebook; classes of all clips are counted.

    Args:
        codebook: gives vectors and classes.
        clips: which.
        name: of the codebook.

    Raises:
        FileError: there are no shards.
        ShapeError: clips of another shape than the codebook's.
        ConfigError: a single clip.
    """
    index, rows = clips.open()
    vectors, classes = _classified(codebook, index, rows)
    return _subject(clips, index, rows, codebook.encoder.keyframes, vectors, classes, name)


def clips_by_encoder(
    encoder: Callable[[int], FeatureEncoder], clips: ClipSet, *, codebook: Codebook | None, name: str
) -> Subject:
    """The clips of shards with an encoder's global features of their frames, and classes that it did not make.

    The mean and the deviation of every map are averaged over a clip's frames, and divided by the root of their total
    variance, so that all count alike.

    Args:
        encoder: makes it for so many channels.
        clips: which.
        codebook: classes are its pseudo-classes; None: the families of the sample's prompts.
        name: of the encoder.

    Raises:
        FileError: there are no shards, or no encoder.
        ShapeError: clips of another shape than the codebook's.
        ConfigError: an encoder of other channels, a single clip, or neither a codebook nor prompts with embeddings.
    """
    index, rows = clips.open()
    network = encoder(index.shape[0]).to(clips.device)
    if codebook is None:
        classes, frames = _families(index, rows, clips), (0, index.shape[1] - 1)
    else:
        classes, frames = _classified(codebook, index, rows)[1], codebook.encoder.keyframes
    parts: dict[str, list[Tensor]] = {}
    for part in track(rows.split(_ENCODED_AT_ONCE), "features of frames"):
        images = index.load(part).transpose(1, 2)
        for group, features in global_features(network, images.flatten(0, 1).to(clips.device)).items():
            parts.setdefault(group, []).append(features.unflatten(0, images.shape[:2]).mean(dim=1))
    return _subject(clips, index, rows, frames, joined_features(parts), classes, name)


def _classified(
    codebook: Codebook, index: ShardIndex, rows: Int64[Tensor, "N"]
) -> tuple[Float[Tensor, "N D"], _Classes]:
    """Vectors and pseudo-classes of the sample; the classes of all clips are counted."""
    counts = torch.zeros(codebook.num_classes, dtype=torch.int64)
    wanted = torch.zeros(len(index), dtype=torch.bool)
    wanted[rows] = True
    vectors, labels = [], []
    for part in track(torch.arange(len(index)).split(_CLIPS_AT_ONCE), "clips"):
        text = index.load_text(part) if index.text_width is not None else None
        of_part = codebook.encoder.embed_clips(index.load(part), text)
        classes = codebook.assign(of_part)
        counts += torch.bincount(classes, minlength=len(counts))
        vectors.append(of_part[wanted[part]])
        labels.append(classes[wanted[part]])
    names = tuple(str(number) for number in range(codebook.num_classes))
    return torch.cat(vectors), _Classes(torch.cat(labels), names, counts)


def _families(index: ShardIndex, rows: Int64[Tensor, "N"], clips: ClipSet) -> _Classes:
    prompts = index.prompts(rows)
    if index.text_width is None or not any(prompts):
        raise ConfigError(
            f"{clips.root} has no prompts with embeddings, whose families would be the classes; give --codebook FILE"
        )
    families = prompt_families(_texts(index, rows), prompts, seed=clips.seed)
    counts = torch.bincount(families.labels, minlength=len(families.names))
    return _Classes(families.labels, families.names, counts)


def _texts(index: ShardIndex, rows: Int64[Tensor, "N"]) -> Float[Tensor, "N E"]:
    return torch.cat([pooled_text(index.load_text(part)) for part in rows.split(_CLIPS_AT_ONCE)])


def _subject(
    clips: ClipSet,
    index: ShardIndex,
    rows: Int64[Tensor, "N"],
    frames: Sequence[int],
    vectors: Float[Tensor, "N D"],
    classes: _Classes,
    name: str,
) -> Subject:
    pictures = ClipPictures(index, rows, frames, clips.vae_root, clips.device)
    has_text, prompts, manifest = index.text_width is not None, index.prompts(rows), index.manifest
    missing = [*pictures.missing, *([] if has_text else ["The shards have no text embeddings: no text agreement."])]
    keyframes = [pooled_keyframes(index.load(part), frames) for part in rows.split(_CLIPS_AT_ONCE)]
    return Subject(
        name=name,
        data=f"{len(index)} clips of {clips.root}" + (f": {manifest.source}" if manifest and manifest.source else ""),
        vectors=vectors,
        labels=classes.labels,
        class_names=classes.names,
        counts=classes.counts,
        texts=_texts(index, rows) if has_text else None,
        prompts=prompts if any(prompts) else None,
        keyframes=torch.cat(keyframes),
        peak=2.0 if manifest is not None and manifest.space == "pixel" else None,
        pictures=pictures.keyframes,
        clips=pictures.clips if pictures.is_decoded else None,
        fps=manifest.fps if manifest is not None else 8.0,
        missing=tuple(missing),
    )
