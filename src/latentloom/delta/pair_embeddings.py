"""Both sides of prompt pairs, encoded."""

from collections.abc import Hashable
from dataclasses import dataclass

from latentloom.delta.pairs import PromptPair, normalise
from latentloom.delta.pooling import pool
from latentloom.errors import ShapeError
from latentloom.tensors import TextEmbeddings
from latentloom.tensors.rows import RowIndex, row_numbers


@dataclass(frozen=True, eq=False)
class PairEmbeddings:
    """Encoded prompts beside their encoded rewrites; each side has token counts of its own.

    Args:
        base: the B prompts.
        rewritten: their B rewrites, of the same width and dtype.
        pairs: the B texts; None where a file of another program did not keep them.
        encoder: fingerprint of the text encoder; None where it is not known.

    Raises:
        ShapeError: the sides, or the texts, do not belong together.
    """

    base: TextEmbeddings
    rewritten: TextEmbeddings
    pairs: list[PromptPair] | None = None
    encoder: str | None = None

    def __post_init__(self) -> None:
        sizes = [(len(side), side.dim, side.dtype) for side in (self.base, self.rewritten)]
        if sizes[0] != sizes[1]:
            each = " and ".join(f"{num} of {dim} channels in {dtype}" for num, dim, dtype in sizes)
            raise ShapeError(f"prompts and rewrites are {each}; give as many of one as of the other, of one kind")
        if self.pairs is not None and len(self.pairs) != len(self.base):
            raise ShapeError(f"{len(self.pairs)} texts for {len(self.base)} encoded pairs; give one text per pair")

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, index: RowIndex) -> "PairEmbeddings":
        rows = row_numbers(index, len(self), self.base.device)
        pairs = None if self.pairs is None else [self.pairs[row] for row in rows.tolist()]
        return PairEmbeddings(self.base[rows], self.rewritten[rows], pairs, self.encoder)

    def rewrite_labels(self) -> list[Hashable]:
        """One label per pair, equal where the rewrites are one prompt: by their text or, without texts, by their
        pooled embedding.
        """
        if self.pairs is not None:
            return [normalise(pair.rewritten) for pair in self.pairs]
        return list(pool(self.rewritten).unique(dim=0, return_inverse=True)[1].tolist())

    @property
    def dim(self) -> int:
        """Channels per token, D."""
        return self.base.dim
