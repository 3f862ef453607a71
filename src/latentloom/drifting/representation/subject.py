"""What is evaluated: a sample of vectors with their classes, and what can be looked at beside them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from latentloom.drifting.config import DataConfig
from latentloom.drifting.data import load_data
from latentloom.drifting.encoders import FeatureEncoder
from latentloom.drifting.features import feature_groups
from latentloom.drifting.images import bytes_from_pixels
from latentloom.drifting.representation.retrieval import require_pairs
from latentloom.runs import track
from latentloom.runs.randomness import step_generator

MOST_CELLS = 8  # on a side: keyframes are compared as averages over at most so many
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
    rows = sampled_rows(len(images), max_samples, seed, "held-out images")
    parts: dict[str, list[Tensor]] = {}
    keyframes = []
    for part in track(rows.split(_IMAGES_AT_ONCE), "images"):
        values = images.load(part)
        for group, features in global_features(network, values).items():
            parts.setdefault(group, []).append(features)
        keyframes.append(pooled_keyframes(values.unsqueeze(2), (0,)).cpu())

    def pictures(chosen: Int64[Tensor, "M"]) -> UInt8[Tensor, "M 1 H W 3"]:
        pixels = data.to_pixels(images.load(rows[chosen])).expand(-1, 3, -1, -1)
        return bytes_from_pixels(pixels).permute(0, 2, 3, 1).unsqueeze(1).cpu()

    return Subject(
        name=name,
        data=data.description,
        vectors=joined_features(parts),
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


def sampled_rows(number: int, max_samples: int, seed: int, what: str) -> Int64[Tensor, "N"]:
    """Which samples are looked at, in their order.

    Args:
        number: of all samples.
        max_samples: most of them.
        seed: decides which.
        what: they are, in words.

    Raises:
        ConfigError: fewer than two, which cannot be compared.
    """
    require_pairs(number, what)
    return torch.randperm(number, generator=step_generator(seed, 0, "sample"))[:max_samples].sort().values


def pooled_keyframes(values: Float[Tensor, "B C T H W"], frames: Sequence[int]) -> Float[Tensor, "B _"]:
    """Some frames of clips, all values of a clip in a row, averaged to 8 x 8 cells where they are larger."""
    shown = values[:, :, list(frames)].float().transpose(1, 2).flatten(0, 1)
    size = (min(shown.shape[2], MOST_CELLS), min(shown.shape[3], MOST_CELLS))
    return F.adaptive_avg_pool2d(shown, size).reshape(len(values), -1)


@torch.no_grad()
def global_features(encoder: FeatureEncoder, samples: Float[Tensor, "B C H W"]) -> dict[str, Float[Tensor, "B _"]]:
    """The mean and the deviation of every map by name, on the CPU."""
    groups = feature_groups(encoder(samples), global_stats=True, local=False, patch_stats=False)
    return {name: features.flatten(1).cpu() for name, features in groups.items()}


def joined_features(parts: Mapping[str, Sequence[Float[Tensor, "_ _"]]]) -> Float[Tensor, "N D"]:
    """One vector per sample of its features by name, each divided by the root of its total variance."""
    return torch.cat([_equalised(torch.cat(list(features))) for features in parts.values()], dim=1)


def _equalised(features: Float[Tensor, "N S"]) -> Float[Tensor, "N S"]:
    features = features.float()
    spread = features.var(dim=0, correction=0).sum().sqrt()
    return (features - features.mean(dim=0)) / spread.clamp_min(torch.finfo(torch.float32).eps)
