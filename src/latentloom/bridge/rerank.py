"""Best of several drawn texts: the one whose own vector is nearest to the vector it was made from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from latentloom.bridge.decoding import DecodingConfig, decode
from latentloom.bridge.model import LatentBridge
from latentloom.errors import ShapeError
from latentloom.tensors import SentenceVector


@runtime_checkable
class TextEncoder(Protocol):
    """What makes vectors of texts: a `SentenceEncoder`, or a bridge."""

    def encode(self, texts: Sequence[str]) -> SentenceVector: ...


@dataclass(frozen=True, eq=False)
class BestTexts:
    """The text kept for each vector, and what it was chosen from.

    Attributes:
        texts: one for each of B vectors.
        cosines: of each text's own vector to the vector it should say.
        candidates: the n texts of each vector, in the order drawn.
        candidate_cosines: of each of them.
    """

    texts: list[str]
    cosines: Float[Tensor, "B"]
    candidates: list[list[str]]
    candidate_cosines: Float[Tensor, "B n"]


def decode_best_of(
    bridge: LatentBridge,
    vectors: SentenceVector,
    encoder: TextEncoder,
    config: DecodingConfig,
    generator: torch.Generator,
    prompts: str | Sequence[str] = "",
) -> BestTexts:
    """Draw `num_samples` texts per vector, embed them again and keep the nearest; see `decode` for the arguments.

    Args:
        encoder: the one that made the vectors, or another of its space.

    Raises:
        ShapeError: the encoder's vectors are of another width.
    """
    drawn = config if config.mode == "sample" else config.model_copy(update={"mode": "sample"})
    return rerank(vectors, decode(bridge, vectors, drawn, generator, prompts), encoder)


def rerank(vectors: SentenceVector, candidates: Sequence[Sequence[str]], encoder: TextEncoder) -> BestTexts:
    """The candidate nearest to each vector by cosine; of equals the first.

    Args:
        vectors: B of them, at any scale.
        candidates: equally many for each, at least one.
        encoder: makes vectors of the candidates; texts that occur more than once are embedded once.

    Raises:
        ShapeError: the encoder's vectors are of another width, or candidates are missing.
    """
    each = len(candidates[0]) if len(candidates) else 0
    if not each or len(candidates) != len(vectors) or any(len(texts) != each for texts in candidates):
        counts = sorted({len(texts) for texts in candidates})
        raise ShapeError(f"{counts} candidates for {len(candidates)} of {len(vectors)} vectors; give as many for each")
    places = {text: place for place, text in enumerate(dict.fromkeys(text for texts in candidates for text in texts))}
    found = encoder.encode(list(places)).to(vectors.device)
    if found.dim != vectors.dim:
        raise ShapeError(
            f"the encoder makes vectors of {found.dim} channels, and these have {vectors.dim}; "
            "give the encoder that made them"
        )
    rows = torch.tensor([places[text] for texts in candidates for text in texts], device=vectors.device)
    wanted = SentenceVector(vectors.values.repeat_interleave(each, 0))
    cosines = wanted.cosine(found[rows]).view(len(vectors), each)
    best = cosines.argmax(dim=1)
    choices: list[int] = best.tolist()
    kept = [texts[choice] for texts, choice in zip(candidates, choices, strict=True)]
    nearest = cosines.gather(1, best[:, None]).squeeze(1)
    return BestTexts(kept, nearest, [list(texts) for texts in candidates], cosines)
