"""What is evaluated: a sample of vectors with their classes, and what can be looked at beside them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from latentloom.drifting.clips.condition_parts import pooled_text
from latentloom.drifting.clips.shard_index import ShardIndex
from latentloom.drifting.config import DataConfig
from latentloom.drifting.data import load_data
from latentloom.drifting.encoders import FeatureEncoder
from latentloom.drifting.features import feature_groups
from latentloom.drifting.images import bytes_from_pixels
from latentloom.drifting.randomness import step_generator
from latentloom.drifting.representation.codebook import Codebook
from latentloom.drifting.representation.decoding import ClipPictures
from latentloom.errors import ConfigError
from latentloom.runs import track

MOST_CELLS = 8  # on a side: keyframes are compared as averages over at most so many
_CLIPS_AT_ONCE = 64
_IMAGES_AT_ONCE = 256

Pictures = Callable[[Int64[Tensor, "M"]], UInt8[Tensor, "M K H W 3"]]


@dataclass(frozen=True, eq=False)
class Subject:
    """A representation on data.

    Attributes:
        name: of the encoder or codebook.
        data: which samples, in words.
        vectors: of a sample of N of them.
        labels: classes of the sample.
        class_names: by class.
        counts: members of each class among all samples.
        texts: pooled prompts of the sample; None without.
        prompts: the same as words; None without.
        keyframes: of the sample, all values of a clip in a row, averaged to 8 x 8 cells where they are larger.
        peak: largest difference of two values; None where it is not known.
        pictures: keyframes of some of the sample, as pixels; K of each.
        clips: decoded clips of some of the sample; None where there are none.
        fps: of those.
        missing: what could not be had, and why.
    """

    name: str
    data: str
    vectors: Float[Tensor, "N D"]
    labels: Int64[Tensor, "N"]
    class_names: tuple[str, ...]
    counts: Int64[Tensor, "K"]
    texts: Float[Tensor, "N E"] | None
    prompts: Sequence[str] | None
    keyframes: Float[Tensor, "N _"]
    peak: float | None
    pictures: Pictures
    clips: Pictures | None
    fps: float
    missing: tuple[str, ...]


def clips_by_codebook(
    codebook: Codebook,
    root: str,
    *,
    name: str,
    max_samples: int,
    seed: int,
    vae_root: Path | None,
    device: torch.device,
) -> Subject:
    """The clips of shards with the pseudo-classes and vectors of a codebook; classes of all clips are counted.

    Args:
        codebook: gives vectors and classes.
        root: folder of shards, or a pattern.
        name: of the codebook.
        max_samples: most clips of the sample.
        seed: decides which.
        vae_root: checkpoint whose VAE decodes latents; None is MicroWan.
        device: where the VAE computes.

    Raises:
        FileError: there are no shards.
        ShapeError: clips of another shape than the codebook's.
    """
    index = ShardIndex.open(root)
    has_text = index.text_width is not None
    rows = torch.randperm(len(index), generator=step_generator(seed, 0, "sample"))[:max_samples].sort().values
    counts = torch.zeros(codebook.num_classes, dtype=torch.int64)
    wanted = torch.zeros(len(index), dtype=torch.bool)
    wanted[rows] = True
    vectors, labels, texts, keyframes = [], [], [], []
    for part in track(torch.arange(len(index)).split(_CLIPS_AT_ONCE), "clips"):
        values = index.load(part)
        text = index.load_text(part) if has_text else None
        of_part = codebook.encoder.embed_clips(values, text)
        classes = codebook.assign(of_part)
        counts += torch.bincount(classes, minlength=len(counts))
        mine = wanted[part]
        vectors.append(of_part[mine])
        labels.append(classes[mine])
        keyframes.append(_pooled_keyframes(values[mine], codebook.encoder.keyframes))
        if text is not None:
            texts.append(pooled_text(text)[mine])
    pictures = ClipPictures(index, rows, codebook.encoder.keyframes, vae_root, device)
    missing = [*pictures.missing, *([] if has_text else ["The shards have no text embeddings: no text agreement."])]
    prompts = index.prompts(rows)
    manifest = index.manifest
    return Subject(
        name=name,
        data=f"{len(index)} clips of {root}" + (f": {manifest.source}" if manifest and manifest.source else ""),
        vectors=torch.cat(vectors),
        labels=torch.cat(labels),
        class_names=tuple(str(number) for number in range(codebook.num_classes)),
        counts=counts,
        texts=torch.cat(texts) if texts else None,
        prompts=prompts if any(prompts) else None,
        keyframes=torch.cat(keyframes),
        peak=2.0 if manifest is not None and manifest.space == "pixel" else None,
        pictures=pictures.keyframes,
        clips=pictures.clips if pictures.is_decoded else None,
        fps=manifest.fps if manifest is not None else 8.0,
        missing=tuple(missing),
    )


def images_by_encoder(
    encoder: Callable[[int], FeatureEncoder], config: DataConfig, *, name: str, max_samples: int, seed: int
) -> Subject:
    """The held-out images of a dataset with their own classes and an encoder's global features.

    The mean and the deviation of every map are divided by the root of their total variance, so that all count alike.

    Args:
        encoder: makes it for so many channels.
        config: which images.
        name: of the encoder.
        max_samples: most images of the sample.
        seed: decides which.

    Raises:
        ConfigError: settings that do not fit the data or the encoder.
        FileError: a folder or file that is missing.
    """
    device = torch.device("cpu")
    data = load_data(config, device)
    images, network = data.held_out, encoder(data.held_out.shape[0])
    rows = torch.randperm(len(images), generator=step_generator(seed, 0, "sample"))[:max_samples].sort().values
    if len(rows) < 2:
        raise ConfigError(f"{len(rows)} held-out images; at least 2 are compared")
    parts: dict[str, list[Tensor]] = {}
    keyframes = []
    for part in track(rows.split(_IMAGES_AT_ONCE), "images"):
        values = images.load(part)
        with torch.no_grad():
            groups = feature_groups(network(values), global_stats=True, local=False, patch_stats=False)
        for group, features in groups.items():
            parts.setdefault(group, []).append(features.flatten(1).cpu())
        keyframes.append(_pooled_keyframes(values.unsqueeze(2), (0,)).cpu())
    vectors = [_equalised(torch.cat(features)) for features in parts.values()]

    def pictures(chosen: Int64[Tensor, "M"]) -> UInt8[Tensor, "M 1 H W 3"]:
        pixels = data.to_pixels(images.load(rows[chosen])).expand(-1, 3, -1, -1)
        return bytes_from_pixels(pixels).permute(0, 2, 3, 1).unsqueeze(1).cpu()

    return Subject(
        name=name,
        data=data.description,
        vectors=torch.cat(vectors, dim=1),
        labels=images.labels[rows].cpu(),
        class_names=images.class_names,
        counts=torch.bincount(images.labels.cpu(), minlength=len(images.class_names)),
        texts=None,
        prompts=None,
        keyframes=torch.cat(keyframes),
        peak=2.0 if config.input_space == "pixel" else None,
        pictures=pictures,
        clips=None,
        fps=1.0,
        missing=("The data are labelled images: no prompts, so no text agreement and no prompt families.",),
    )


def _pooled_keyframes(values: Float[Tensor, "B C T H W"], frames: Sequence[int]) -> Float[Tensor, "B _"]:
    shown = values[:, :, list(frames)].float().transpose(1, 2).flatten(0, 1)
    size = (min(shown.shape[2], MOST_CELLS), min(shown.shape[3], MOST_CELLS))
    return F.adaptive_avg_pool2d(shown, size).reshape(len(values), -1)


def _equalised(features: Float[Tensor, "N S"]) -> Float[Tensor, "N S"]:
    features = features.float()
    spread = features.var(dim=0, correction=0).sum().sqrt()
    return (features - features.mean(dim=0)) / spread.clamp_min(torch.finfo(torch.float32).eps)
