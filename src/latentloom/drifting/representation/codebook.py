"""The pseudo-classes of clips: centroids of condition vectors, in one file with the encoder that makes the vectors."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from latentloom.drifting.clips.clip_sample import ClipSample
from latentloom.drifting.clips.condition import ConditionEncoder, load_condition_encoder
from latentloom.drifting.encoders import FeatureEncoder
from latentloom.drifting.representation.kmeans import Backend, nearest_centroids
from latentloom.errors import CheckpointError, FileError, ShapeError
from latentloom.storage import read_module, save_module

_PREFIX = "encoder."


class Codebook:
    """K pseudo-classes of clips.

    Args:
        centroids: one per class.
        encoder: g, whose vectors they are centroids of.
        record: how they came about, JSON values.
        counts: members of each class among the clips it was made from; None where they were not counted.

    Raises:
        ShapeError: centroids of another width than g's vectors, or not a count for each.
    """

    def __init__(
        self,
        centroids: Float[Tensor, "K _"],
        encoder: ConditionEncoder,
        record: Mapping[str, Any] | None = None,
        counts: Int64[Tensor, "_"] | None = None,
    ) -> None:
        if counts is not None and len(counts) != len(centroids):
            raise ShapeError(f"{len(counts)} counts for {len(centroids)} centroids; give one each")
        if centroids.shape[1] != encoder.width:
            raise ShapeError(f"centroids of {centroids.shape[1]} numbers for an encoder of {encoder.width}")
        self.centroids = centroids.float()
        self.encoder = encoder
        self.record = dict(record or {})
        self.counts = counts

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.centroids)

    def assign(
        self, vectors: Float[Tensor, "B _"], fingerprint: str | None = None, backend: Backend | None = "torch"
    ) -> Int64[Tensor, "B"]:
        """The class of each vector: that of the nearest centroid.

        Args:
            vectors: from g, on any device.
            fingerprint: of the encoder that made them, where that is not certain to be g.
            backend: see `nearest_centroids`.

        Raises:
            ShapeError: vectors of another width.
            CheckpointError: vectors of another encoder.
        """
        if fingerprint is not None and fingerprint != self.encoder.fingerprint:
            raise CheckpointError(
                f"the vectors are from the condition encoder {fingerprint}, the codebook is of "
                f"{self.encoder.fingerprint}; embed the clips with the codebook's own encoder"
            )
        return nearest_centroids(vectors, self.centroids.to(vectors.device), backend)[0]

    def classify(self, samples: Sequence[ClipSample]) -> Int64[Tensor, "B"]:
        """The class of each clip."""
        return self.assign(self.encoder.embed(samples))

    def save(self, path: Path | str) -> None:
        """Write centroids, encoder and record to a safetensors file."""
        tensors = {"centroids": self.centroids}
        if self.counts is not None:
            tensors["counts"] = self.counts
        tensors |= {f"{_PREFIX}{name}": tensor for name, tensor in self.encoder.state_dict().items()}
        config = {"encoder": self.encoder.config(), "fingerprint": self.encoder.fingerprint}
        save_module(path, tensors, Codebook.__name__, config, self.record)


def load_codebook(path: Path | str, features: FeatureEncoder | None = None) -> Codebook:
    """A codebook from its file.

    Args:
        path: that `latentloom drift quantize` wrote.
        features: the feature encoder that g looks through; None if it does not.

    Raises:
        FileError: no such file, or a file of something else.
        CheckpointError: tensors that are not those of its settings, or another feature encoder.
    """
    stored = read_module(path)
    if stored.kind != Codebook.__name__:
        raise FileError(f"{path} holds {stored.kind}; give a codebook that `latentloom drift quantize` wrote")
    tensors = {
        name.removeprefix(_PREFIX): tensor for name, tensor in stored.tensors.items() if name.startswith(_PREFIX)
    }
    try:
        encoder = load_condition_encoder(stored.config["encoder"], tensors, features)
        centroids = stored.tensors["centroids"]
        codebook = Codebook(centroids, encoder, stored.record, stored.tensors.get("counts"))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (KeyError, AttributeError, IndexError, ShapeError) as error:
        raise CheckpointError(f"{path} does not hold the tensors of a codebook; quantize again") from error
    if encoder.fingerprint != stored.config.get("fingerprint"):
        raise CheckpointError(
            f"{path} was made with the condition encoder {stored.config.get('fingerprint')} and holds "
            f"{encoder.fingerprint}; quantize again"
        )
    if not bool(torch.isfinite(centroids).all()):
        raise CheckpointError(f"{path} holds centroids that are not finite; quantize again")
    return codebook
