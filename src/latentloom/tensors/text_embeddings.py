"""What the text encoder says about a batch of prompts, without padding."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from latentloom.errors import ShapeError
from latentloom.tensors.rows import RowIndex, row_numbers

PADDED_LENGTH = 512  # every Wan 2.x DiT attends to 512 text positions, zeros after the prompt's end


@dataclass(frozen=True, eq=False)
class TextEmbeddings:
    """A batch of prompts as one run of tokens; padded forms are views made on demand.

    Args:
        tokens: the tokens of all prompts one after the other; N = sum(lengths) tokens of D channels.
        lengths: number of tokens of each of the B prompts, zero allowed; it follows the tokens' device.

    Raises:
        ShapeError: the lengths do not sum to the number of tokens, or a dimension is missing.
    """

    tokens: Float[Tensor, "N D"]
    lengths: Int[Tensor, "B"]

    def __post_init__(self) -> None:
        if self.tokens.ndim != 2 or self.lengths.ndim != 1:
            raise ShapeError(
                f"tokens {tuple(self.tokens.shape)} and lengths {tuple(self.lengths.shape)}; give [N, D] and [B]"
            )
        object.__setattr__(self, "lengths", self.lengths.to(self.tokens.device, torch.long))
        if self.tokens.is_meta:
            return
        if self.lengths.numel() and int(self.lengths.min()) < 0:
            raise ShapeError(f"a length is {int(self.lengths.min())}; lengths are 0 or more")
        if int(self.lengths.sum()) != self.tokens.shape[0]:
            raise ShapeError(f"lengths sum to {int(self.lengths.sum())} but there are {self.tokens.shape[0]} tokens")

    @classmethod
    def from_list(cls, prompts: Sequence[Float[Tensor, "_ D"]]) -> "TextEmbeddings":
        """Join prompts of [L_i, D] each.

        Raises:
            ShapeError: the list is empty (its width D would be unknown) or the widths differ.
        """
        if not prompts:
            raise ShapeError("an empty list of prompts has no width; give at least one tensor [L, D]")
        if len({(prompt.ndim, prompt.shape[-1]) for prompt in prompts}) != 1:
            raise ShapeError(f"prompts of shapes {[tuple(p.shape) for p in prompts]}; give [L_i, D] with one D")
        return cls(torch.cat(list(prompts)), torch.tensor([len(prompt) for prompt in prompts]))

    @classmethod
    def from_padded(
        cls,
        padded: Float[Tensor, "B P D"],
        lengths: Int[Tensor, "B"] | Sequence[int] | None = None,
        mask: Bool[Tensor, "B P"] | Int[Tensor, "B P"] | None = None,
    ) -> "TextEmbeddings":
        """Cut padded prompts to their true lengths.

        Args:
            padded: B prompts of P positions; what lies after each length is dropped.
            lengths: true lengths, or
            mask: true where a token is; every row is ones, then zeros.

        Raises:
            ShapeError: not exactly one of lengths and mask, a length outside 0..P, or a mask with a hole.
        """
        if (lengths is None) == (mask is None):
            raise ShapeError("padded prompts need their true lengths: give either lengths or mask")
        positions = torch.arange(padded.shape[1], device=padded.device)
        if mask is not None:
            lengths = mask.to(padded.device).bool().sum(dim=1)
        lengths = torch.as_tensor(lengths, device=padded.device)
        if lengths.shape != padded.shape[:1] or (lengths < 0).any() or (lengths > padded.shape[1]).any():
            raise ShapeError(f"lengths {lengths.tolist()} for padded prompts {tuple(padded.shape)}")
        prefix = positions < lengths.unsqueeze(1)
        if mask is not None and not torch.equal(prefix, mask.to(padded.device).bool()):
            raise ShapeError("a mask has zeros before a one; only padding after the last token can be cut")
        return cls(padded[prefix], lengths)

    @classmethod
    def from_prompt_embeds(
        cls, prompt_embeds: Float[Tensor, "B P D"], mask: Bool[Tensor, "B P"] | Int[Tensor, "B P"]
    ) -> "TextEmbeddings":
        """Cut diffusers' `prompt_embeds` to their true lengths."""
        return cls.from_padded(prompt_embeds, mask=mask)

    @classmethod
    def cat(cls, items: Sequence["TextEmbeddings"]) -> "TextEmbeddings":
        """Join batches into one, in order.

        Raises:
            ShapeError: no batches, or different widths.
        """
        if not items:
            raise ShapeError("nothing to join; give at least one TextEmbeddings")
        if len({item.dim for item in items}) != 1:
            raise ShapeError(f"batches of widths {[item.dim for item in items]} cannot be joined")
        return cls(torch.cat([item.tokens for item in items]), torch.cat([item.lengths for item in items]))

    def to_list(self) -> list[Float[Tensor, "_ D"]]:
        """One tensor [L_i, D] per prompt."""
        return list(self.tokens.split(self.lengths.tolist()))

    def padded(self, length: int = PADDED_LENGTH) -> Float[Tensor, "B {length} D"]:
        """All prompts at one length, zeros after each prompt's end; gradients flow back to the tokens.

        Raises:
            ShapeError: a prompt is longer than `length`.
        """
        padded = self.tokens.new_zeros(len(self), length, self.dim)
        padded[self.mask(length)] = self.tokens
        return padded

    def mask(self, length: int = PADDED_LENGTH) -> Bool[Tensor, "B {length}"]:
        """True where `padded(length)` holds a token.

        Raises:
            ShapeError: a prompt is longer than `length`.
        """
        if len(self) and int(self.lengths.max()) > length:
            raise ShapeError(f"a prompt has {int(self.lengths.max())} tokens; the padded length is {length}")
        return torch.arange(length, device=self.device) < self.lengths.unsqueeze(1)

    def prompt_embeds(self, length: int = PADDED_LENGTH) -> Float[Tensor, "B {length} D"]:
        """The padded prompts under diffusers' name."""
        return self.padded(length)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "TextEmbeddings":
        """The same prompts on another device or in another dtype."""
        return TextEmbeddings(self.tokens.to(device=device, dtype=dtype), self.lengths.to(device=device))

    def __len__(self) -> int:
        return self.lengths.shape[0]

    def __getitem__(self, index: RowIndex) -> "TextEmbeddings":
        prompts = self.to_list()
        rows = row_numbers(index, len(self), self.device)
        chosen = [prompts[row] for row in rows.tolist()]
        return TextEmbeddings(torch.cat([self.tokens[:0], *chosen]), self.lengths[rows])

    @property
    def dim(self) -> int:
        """Channels per token, D."""
        return self.tokens.shape[1]

    @property
    def device(self) -> torch.device:
        return self.tokens.device

    @property
    def dtype(self) -> torch.dtype:
        return self.tokens.dtype
