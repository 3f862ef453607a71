"""One pair of a text and its vector, as a file gives it, and what makes it unfit for training."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Shaped

MAX_VECTORS = 4096


class PairRow(NamedTuple):
    """A row that is still to be read.

    Attributes:
        name: where it is, for a message.
        read: text and array as they stand there; raises BadRowError.
    """

    name: str
    read: Callable[[], tuple[object, Shaped[np.ndarray, "..."]]]


class BadRowError(Exception):
    """A row that is left out.

    Args:
        reason: under which it is counted, in a few words.
        detail: what is wrong with this one.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def require_text(text: object) -> str:
    """The text, if it is one that a model can read.

    Raises:
        BadRowError: it is none, it is empty, or it is no Unicode.
    """
    if not isinstance(text, str):
        raise BadRowError("no text", f"the text is {'missing' if text is None else f'a {type(text).__name__}'}")
    if not text.strip():
        raise BadRowError("empty text", "the text is empty")
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise BadRowError("not Unicode", "the text holds half of a surrogate pair")
    return text


def sentence_vector(array: Shaped[np.ndarray, "..."]) -> Float32[np.ndarray, "D"]:
    """A sentence's vector out of what is stored for it.

    A single vector comes back as it is. Several are averaged, padding left out: the mean of the vectors that are finite
    and not zero, brought back to the mean length of these, as a mean of vectors is shorter than they are. So vectors
    of length 1 give a vector of length 1.

    Args:
        array: [D], [1, D] or [K, D], of a floating type.

    Raises:
        BadRowError: another type or shape, or no vector among them that is finite and not zero.
    """
    if array.dtype.kind != "f":
        raise BadRowError("wrong dtype", f"the vector is of dtype {array.dtype}, not of a floating type")
    if array.ndim not in (1, 2) or 0 in array.shape or (array.ndim == 2 and len(array) > MAX_VECTORS):
        raise BadRowError("wrong shape", f"the vector is of shape {list(array.shape)}, not [D] or [K, D]")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, which is told below
        vectors = np.atleast_2d(array).astype(np.float32)
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    is_valid = np.isfinite(lengths) & (lengths > 0)
    if not is_valid.any():
        if np.isfinite(lengths).any():
            raise BadRowError("zero vector", "the vector is zero")
        raise BadRowError("NaN or infinite", "the vector holds a NaN or an infinite value")
    if is_valid.sum() == 1:
        return vectors[is_valid][0]
    mean = vectors[is_valid].astype(np.float64).mean(axis=0)
    wanted, length = lengths[is_valid].mean(), np.linalg.norm(mean)
    if length <= 1e-6 * wanted:
        raise BadRowError("zero vector", f"its {is_valid.sum()} vectors cancel out")
    return (mean * (wanted / length)).astype(np.float32)
