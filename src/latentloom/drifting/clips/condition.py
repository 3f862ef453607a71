"""What a clip is conditioned on as one vector, h = g(text, keyframes): clips alike in both lie close together."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from pydantic import ValidationError
from torch import Tensor

from latentloom.drifting.clips.clip_sample import ClipSample
from latentloom.drifting.clips.condition_parts import ConditionParts, ConditionSettings
from latentloom.drifting.encoders import FeatureEncoder
from latentloom.drifting.representation.reservoir import Reservoir
from latentloom.errors import CheckpointError, ConfigError
from latentloom.tensors import TextEmbeddings
from latentloom.wan.fingerprint import fingerprint

SAMPLE_SIZE = 32768  # clips that g and 1024 centroids are fitted to: more do not change its 64 directions
_CLIPS_AT_ONCE = 64
_LEAST_DEVIATION = 1e-4  # of the largest one of a part; a channel below it is constant but for rounding
TENSOR_NAMES = ("mean", "scale", "basis")


class ConditionEncoder:
    """Joins the pooled prompt and the keyframes of a clip in one vector: standardised, weighted, and projected (PCA).

    The parts are the mean of the prompt's true tokens, the keyframes averaged to a small grid, and, with a feature
    encoder, the means and deviations of its maps of every keyframe. Every channel is divided by its deviation, and
    every part has its weight squared as total variance, however many channels it has. Made by `fit_condition_encoder`.

    Args:
        settings: what goes in.
        clip_shape: channels, frames, rows and columns of the clips it takes.
        text_width: channels of their text tokens; None leaves the prompt out.
        tensors: "mean" [R] and "scale" [R] of the R channels of all parts, "basis" [R, D] of the projection.
        features: gives the maps of single frames [B, C, H, W]; None leaves them out.

    Attributes:
        keyframes: numbers of the frames that it looks at.
        fingerprint: sixteen hex digits that tell this encoder from every other one.

    Source: the document, "Representation Plan": h = g(text, keyframes).
    """

    def __init__(
        self,
        settings: ConditionSettings,
        clip_shape: tuple[int, int, int, int],
        text_width: int | None,
        tensors: Mapping[str, Tensor],
        features: FeatureEncoder | None = None,
    ) -> None:
        self.parts = ConditionParts(settings, clip_shape, text_width, features)
        self.settings = settings
        self.clip_shape = clip_shape
        self.text_width = self.parts.text_width
        self.features = features
        self.keyframes = self.parts.keyframes
        self.mean, self.scale, self.basis = (tensors[name].float() for name in TENSOR_NAMES)
        self.fingerprint = fingerprint([self.config()], self.state_dict().items())

    @property
    def width(self) -> int:
        """Numbers of a vector, D."""
        return self.basis.shape[1]

    def embed(self, samples: Sequence[ClipSample]) -> Float[Tensor, "B D"]:
        """The vectors of clips out of shards, on the CPU.

        Raises:
            ShapeError: clips or texts of another shape than it was fitted to, or a clip without text.
        """
        return self._project(self.parts.of_samples(samples))

    def embed_clips(
        self, values: Float[Tensor, "B C T H W"], text: TextEmbeddings | None = None
    ) -> Float[Tensor, "B D"]:
        """The vectors of a batch of clips and their prompts, on the device of the clips; see `embed`."""
        return self._project(self.parts.of_clips(values, text))

    def state_dict(self) -> dict[str, Tensor]:
        """What `__init__` takes as `tensors`."""
        return {"mean": self.mean, "scale": self.scale, "basis": self.basis}

    def config(self) -> dict[str, object]:
        """All but the tensors, as JSON values; a feature encoder is in it by its fingerprint."""
        return {
            "settings": self.settings.model_dump(mode="json"),
            "clip_shape": list(self.clip_shape),
            "text_width": self.text_width,
            "features": None if self.features is None else feature_fingerprint(self.features),
        }

    def _project(self, raw: Float[Tensor, "B R"]) -> Float[Tensor, "B D"]:
        mean, scale, basis = (tensor.to(raw.device) for tensor in (self.mean, self.scale, self.basis))
        return ((raw - mean) * scale) @ basis


def fit_condition_encoder(
    clips: Iterable[ClipSample],
    settings: ConditionSettings | None = None,
    *,
    features: FeatureEncoder | None = None,
    sample_size: int = SAMPLE_SIZE,
    seed: int = 0,
) -> tuple[ConditionEncoder, Float[Tensor, "N D"], int]:
    """An encoder fitted to a stream of clips in one pass, the vectors of the N clips it was fitted to, and their total.

    It is fitted to `sample_size` clips that are drawn from the stream with equal chances, so that the memory it takes
    does not depend on the number of clips.

    Args:
        clips: of one shape.
        settings: what goes in; the defaults when None.
        features: see ConditionEncoder.
        sample_size: most clips that are held at a time.
        seed: decides which.

    Raises:
        ConfigError: no clips.
        ShapeError: clips that differ in shape, or a clip without text beside others that have one.
    """
    settings = settings or ConditionSettings()
    reservoir, parts = Reservoir(sample_size, seed), None
    for batch in batches_of(clips, _CLIPS_AT_ONCE):
        if parts is None:
            text = batch[0].text
            channels, num_frames, height, width = batch[0].values.shape
            shape = (channels, num_frames, height, width)
            parts = ConditionParts(settings, shape, None if text is None else text.shape[1], features)
        reservoir.add(parts.of_samples(batch))
    if parts is None:
        raise ConfigError("there are no clips to fit to; give shards that hold some")
    raw = reservoir.rows()
    tensors = _fit(raw, parts.layout, settings.width)
    encoder = ConditionEncoder(settings, parts.clip_shape, parts.text_width, tensors, features)
    return encoder, ((raw - encoder.mean) * encoder.scale) @ encoder.basis, reservoir.num_seen


def load_condition_encoder(
    config: Mapping[str, object], tensors: Mapping[str, Tensor], features: FeatureEncoder | None = None
) -> ConditionEncoder:
    """The encoder of `config()` and `state_dict()`.

    Args:
        config, tensors: what those gave.
        features: the feature encoder it was fitted with; None if with none.

    Raises:
        CheckpointError: they do not belong together, or it was fitted with another feature encoder.
    """
    wanted = config.get("features")
    given = None if features is None else feature_fingerprint(features)
    if wanted != given:
        raise CheckpointError(
            f"the condition encoder looks at features of the encoder {wanted or 'none'}, and the one given is "
            f"{given or 'none'}; give the feature encoder it was fitted with"
        )
    try:
        settings = ConditionSettings.model_validate(config["settings"])
        shape, text_width = config["clip_shape"], config["text_width"]
        if not isinstance(shape, list) or not isinstance(text_width, int | None):
            raise TypeError(f"clip_shape {shape}, text_width {text_width}")
        channels, num_frames, height, width = (int(size) for size in shape)
        encoder = ConditionEncoder(settings, (channels, num_frames, height, width), text_width, tensors, features)
    except (KeyError, TypeError, ValueError, ValidationError) as error:
        raise CheckpointError("the settings are those of no known condition encoder; fit it again") from error
    num_channels = encoder.parts.num_channels(encoder.mean.shape[0])
    if {len(encoder.mean), len(encoder.scale), len(encoder.basis)} != {num_channels}:
        raise CheckpointError("the condition encoder's tensors are not those of its settings; fit it again")
    return encoder


def feature_fingerprint(encoder: FeatureEncoder) -> str:
    """Sixteen hex digits of a feature encoder's weights."""
    return fingerprint([encoder.channels], encoder.network.state_dict().items())


def batches_of(clips: Iterable[ClipSample], size: int) -> Iterator[list[ClipSample]]:
    """Clips in lists of `size`; the last one may be shorter."""
    batch: list[ClipSample] = []
    for clip in clips:
        batch.append(clip)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _fit(raw: Float[Tensor, "N R"], layout: Sequence[tuple[float, int]], width: int) -> dict[str, Tensor]:
    from sklearn.decomposition import PCA  # seconds to import

    mean, deviation = raw.mean(dim=0), raw.std(dim=0, correction=0)
    scales = []
    for (weight, _), own in zip(layout, deviation.split([size for _, size in layout]), strict=True):
        varies = own > _LEAST_DEVIATION * own.max()
        weight_per_channel = weight / max(int(varies.sum()), 1) ** 0.5
        scales.append(torch.where(varies, weight_per_channel / own.where(varies, own.new_ones(())), 0.0))
    scale = torch.cat(scales)
    scaled = (raw - mean) * scale
    pca = PCA(min(width, *scaled.shape), random_state=0).fit(scaled.numpy())
    basis = np.ascontiguousarray(np.asarray(pca.components_, dtype=np.float32).T)
    return {"mean": mean, "scale": scale, "basis": torch.from_numpy(basis)}
