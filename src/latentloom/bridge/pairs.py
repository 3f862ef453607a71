"""Texts with their vectors, out of files that may hold more than memory does."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from latentloom.bridge.pair_cache import PairFacts, read_cached
from latentloom.bridge.pair_readers import find_pair_files
from latentloom.errors import FileError, ShapeError

ROWS_AT_ONCE = 65536


@dataclass(frozen=True, eq=False)
class PairSet:
    """Texts, each with the vector of its meaning.

    Args:
        texts: N of them.
        stored: vectors, which may be mapped from a file; those of the texts, or more of which `rows` are theirs.
        fingerprint: 16 hex digits of the texts and vectors.
        skipped: by reason, how many bad rows of the files were left out.
        rows: place in `stored` of each text's vector; None where they are in the same order.

    Raises:
        ShapeError: not one vector per text.
    """

    texts: Sequence[str]
    stored: Float32[np.ndarray, "M D"]
    fingerprint: str
    skipped: Counter[str] = field(default_factory=Counter)
    rows: Int64[np.ndarray, "N"] | None = None

    def __post_init__(self) -> None:
        num_vectors = len(self.stored) if self.rows is None else len(self.rows)
        if num_vectors != len(self.texts):
            raise ShapeError(f"{len(self.texts)} texts and {num_vectors} vectors; give one vector per text")

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def dim(self) -> int:
        """Channels of a vector."""
        return self.stored.shape[1]

    @property
    def vectors(self) -> Float32[np.ndarray, "N D"]:
        """All vectors; mapped where the whole set is, copied into memory where it is a selection of one."""
        return self.stored if self.rows is None else self.stored[self.rows]

    def load(self, rows: Sequence[int]) -> tuple[list[str], Float[Tensor, "B D"]]:
        """The texts and the vectors of some rows, in float32 on the CPU."""
        places = np.asarray(rows, dtype=np.int64)
        found = self.stored[places if self.rows is None else self.rows[places]]
        return [self.texts[row] for row in rows], torch.from_numpy(np.array(found, dtype=np.float32))

    def select(self, rows: Sequence[int]) -> "PairSet":
        """These rows as a set of their own; the vectors stay where they are."""
        places = np.asarray(rows, dtype=np.int64)
        chosen = places if self.rows is None else self.rows[places]
        print_of_rows = hashlib.sha256(self.fingerprint.encode() + places.tobytes()).hexdigest()[:16]
        return PairSet([self.texts[row] for row in rows], self.stored, print_of_rows, Counter(self.skipped), chosen)

    def moments(self) -> tuple[Float[Tensor, "D"], Float[Tensor, "D"]]:
        """Mean and standard deviation (of the population) of every channel, from parts that fit into memory."""
        total = np.zeros(self.dim)
        squares = np.zeros(self.dim)
        parts = range(0, len(self), ROWS_AT_ONCE)
        for start in parts:
            total += self._part(start).sum(axis=0)
        mean = total / max(1, len(self))
        for start in parts:
            squares += ((self._part(start) - mean) ** 2).sum(axis=0)
        std = np.sqrt(squares / max(1, len(self)))
        return torch.from_numpy(mean).float(), torch.from_numpy(std).float()

    def _part(self, start: int) -> np.ndarray:
        end = start + ROWS_AT_ONCE
        part = self.stored[start:end] if self.rows is None else self.stored[self.rows[start:end]]
        return part.astype(np.float64)


def read_pairs(source: str, root: Path, *, latent_dim: int | None, cache: Path, max_bad_share: float) -> PairSet:
    """The pairs of some files, without the bad rows, which are named in the log and counted.

    Read once: the vectors go into a file in `cache`, which is mapped and used again until one of the files changes.
    Several processes may ask at the same time; one of them reads.

    Args:
        source: a .json list of `{"text", "latent_path"}` as in the document; .jsonl of the same rows, or with the list
            itself under `vector`; .safetensors with `vectors` [N, D] and a .jsonl of texts of the same name; webdataset
            .tar with `.txt` and `.npy` or `.latent.pt`; shards with braces, `x-{00000..00007}.tar`; or a folder of one
            of these.
        root: what `source` is relative to.
        latent_dim: channels that vectors should have; None takes what most have.
        cache: folder for the vectors.
        max_bad_share: share of bad rows above which the set is refused.

    Raises:
        FileError: no such file, one of another kind or damaged, no sound row, or too many bad ones.
        ConfigError: vectors of another width than `latent_dim`.
    """
    files = find_pair_files(source, root)
    facts, texts, vectors = read_cached(files, latent_dim, cache, str(root / source))
    _refuse_bad(facts, str(root / source), max_bad_share)
    return PairSet(texts, vectors, facts.fingerprint, Counter(facts.skipped))


def _refuse_bad(facts: PairFacts, source: str, max_bad_share: float) -> None:
    num_bad = sum(facts.skipped.values())
    if num_bad > max_bad_share * facts.num_rows:
        raise FileError(
            f"{source}: {num_bad} of {facts.num_rows} rows are bad and max_bad_share is {max_bad_share:g} "
            f"({facts.counts}); the first is {facts.first_bad}; mend them, or raise data.max_bad_share"
        )
