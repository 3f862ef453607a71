"""Operands of different true lengths, brought side by side; what was done is said in the result."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from latentloom.errors import ConfigError, ShapeError
from latentloom.tensors import TextEmbeddings

AlignMethod = Literal["pad", "truncate"]
COMPUTABLE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Alignment:
    """How the operands of one operation were brought to common lengths.

    Args:
        method: `pad` adds zero tokens up to the longest operand, `truncate` cuts to the shortest.
        before: true lengths of each operand, one per prompt of the result.
        after: the common length of each prompt of the result.
    """

    method: AlignMethod
    before: tuple[tuple[int, ...], ...]
    after: tuple[int, ...]

    @property
    def changed(self) -> bool:
        """Whether any operand had another length than the result."""
        return any(lengths != self.after for lengths in self.before)

    def __str__(self) -> str:
        if not self.changed:
            return "lengths agree"
        done = "padded with zeros" if self.method == "pad" else "cut"
        rows = list(zip(*self.before, self.after, strict=True))
        if len(rows) > 1:
            return f"lengths differ in {sum(len(set(row)) > 1 for row in rows)} of {len(rows)} prompts: {done}"
        *given, common = rows[0]
        return f"{_listed(given)} tokens {done} to {common}"


@dataclass(frozen=True, eq=False)
class AlignedOperands:
    """Operands as equal blocks in float32 (float64 if one was), ready for arithmetic.

    Args:
        rows: one block per operand; zeros after each prompt's common length.
        alignment: how they came to their length.
        dtype: of the result.
    """

    rows: list[Float[Tensor, "B P D"]]
    alignment: Alignment
    dtype: torch.dtype

    def to_embeddings(self, result: Float[Tensor, "B P D"]) -> TextEmbeddings:
        """A result at the common lengths and in the operands' dtype; see `in_dtype`."""
        return in_dtype(TextEmbeddings.from_padded(result, self.alignment.after), self.dtype)


def align_operands(operands: Sequence[TextEmbeddings], method: AlignMethod = "pad") -> AlignedOperands:
    """Prompts row by row, at one length per row; an operand of one prompt serves every row.

    Args:
        operands: at least one, of one width, with the same number of prompts B or a single one.
        method: `pad` up to the longest with zeros, or `truncate` to the shortest.

    Raises:
        ShapeError: widths or numbers of prompts that do not fit, or an operand (or what is left of it) without tokens.
        ConfigError: an unknown method, or values that are not finite.
    """
    if method not in ("pad", "truncate"):
        raise ConfigError(f"align={method!r} is unknown; use pad or truncate")
    matched = match_prompts(operands)
    before = torch.stack([operand.lengths for operand in matched])
    after = before.amax(dim=0) if method == "pad" else before.amin(dim=0)
    if int(after.max()) == 0:
        raise ShapeError("cutting to the shortest leaves no token; align by padding, or give prompts with tokens")
    kept = (torch.arange(int(after.max()), device=after.device) < after.unsqueeze(1)).unsqueeze(-1)
    dtype = matched[0].dtype
    for operand in matched[1:]:
        dtype = torch.promote_types(dtype, operand.dtype)
    rows = []
    for operand in matched:
        padded = operand.padded(int(before.max()))[:, : kept.shape[1]]
        rows.append((padded * kept).to(torch.promote_types(dtype, torch.float32)))
    lengths = tuple(tuple(row) for row in before.tolist())
    return AlignedOperands(rows, Alignment(method, lengths, tuple(after.tolist())), dtype)


def match_prompts(operands: Sequence[TextEmbeddings]) -> list[TextEmbeddings]:
    """The operands with B prompts each, on the first one's device; a single prompt is repeated.

    Raises:
        ShapeError: no operand, one without tokens, or widths or numbers of prompts that do not fit.
        ConfigError: an operand with values that are not finite.
    """
    if not operands:
        raise ShapeError("no operand was given; give at least one TextEmbeddings")
    for number, operand in enumerate(operands, start=1):
        require_usable(operand, f"operand {number}")
    widths = {operand.dim for operand in operands}
    if len(widths) > 1:
        raise ShapeError(
            f"operands of widths {_listed([operand.dim for operand in operands])}; give embeddings of one encoder"
        )
    num_prompts = max(len(operand) for operand in operands)
    if any(len(operand) not in (1, num_prompts) for operand in operands):
        counts = _listed([len(operand) for operand in operands])
        raise ShapeError(f"operands of {counts} prompts; give as many in each, or a single one")
    on_device = [operand.to(operands[0].device) for operand in operands]
    return [each if len(each) == num_prompts else each[[0] * num_prompts] for each in on_device]


def require_usable(embeddings: TextEmbeddings, name: str) -> None:
    """Refuse embeddings that arithmetic would turn into nothing or into NaN.

    Args:
        embeddings: what was given.
        name: what to call it in the message.

    Raises:
        ShapeError: there are no tokens.
        ConfigError: a value is NaN or infinite, or the dtype is one that nothing is computed in.
    """
    if embeddings.dtype not in COMPUTABLE:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in COMPUTABLE)
        raise ConfigError(f"{name} is of {str(embeddings.dtype).removeprefix('torch.')}; give one of {names}")
    if embeddings.tokens.numel() == 0:
        raise ShapeError(f"{name} holds no tokens; give embeddings of at least one prompt")
    num_bad = int((~embeddings.tokens.isfinite()).any(dim=1).sum())
    if num_bad:
        num_tokens = len(embeddings.tokens)
        raise ConfigError(f"{name} holds NaN or infinite values in {num_bad} of {num_tokens} tokens; encode it anew")


def in_dtype(exact: TextEmbeddings, dtype: torch.dtype) -> TextEmbeddings:
    """A result that was computed in float32, in the dtype of its operands.

    Raises:
        ConfigError: the dtype cannot hold a value.
    """
    result = exact.to(dtype=dtype)
    if not bool(result.tokens.isfinite().all()):
        largest, limit = float(exact.tokens.abs().max()), torch.finfo(dtype).max
        name = str(dtype).removeprefix("torch.")
        raise ConfigError(f"the result reaches {largest:.3g} and {name} ends at {limit:.3g}; use smaller weights")
    return result


def _listed(numbers: Sequence[int]) -> str:
    *head, last = map(str, numbers)
    return f"{', '.join(head)} and {last}" if head else last
