"""What a payload comes to for the clips of one call, alike in every host."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from latentloom.steering.inject import of_clips
from latentloom.steering.plan import PromptPayload, RowsPayload
from latentloom.steering.text_rows import TextRows

Project = Callable[[Tensor], Tensor]
"""Padded rows of the text encoder [B, K, T] -> [B, K, D], by the model's own text embedding, where it computes."""


def payload_rows(
    payload: PromptPayload | RowsPayload,
    clips: tuple[int, ...],
    project: Project,
    *,
    text_dim: int,
    padded_to: int,
    folded: bool = False,
) -> TextRows:
    """A payload's rows as the host's own context has them: padded with zeros before they are projected.

    Args:
        payload: one prompt for all clips, or one per clip.
        clips: of the call.
        project: takes rows on any device and in any dtype.
        text_dim: channels of the text encoder.
        padded_to: rows that the host pads each text to.
        folded: one row for all padding; see `wan.folded_padding`.

    Raises:
        ConfigError: a clip beyond the payload's prompts.
        ShapeError: a prompt of more rows than the host pads to.
    """
    text = of_clips(payload.text if isinstance(payload, PromptPayload) else payload.rows, clips)
    longest = int(text.lengths.max())
    num_rows = longest + 1 if folded and longest <= padded_to else padded_to
    if isinstance(payload, PromptPayload):
        rows = project(text.padded(num_rows))
    else:
        given, is_true = text.padded(num_rows), text.mask(num_rows).unsqueeze(-1)
        padding = project(given.new_zeros(1, 1, text_dim))
        rows = torch.where(is_true.to(padding.device), given.to(padding), padding)
    return TextRows(rows, text.lengths.to(rows.device), padded_to if folded else None)


def activations_of(values: Float[Tensor, "N S D"], clips: tuple[int, ...]) -> Float[Tensor, "B S D"]:
    """Recorded activations for the clips of a call: those of the only clip for all, or each clip's own."""
    if len(values) == 1:
        return values.expand(len(clips), -1, -1)
    # clips that were not recorded are left to the check of shapes
    return values[list(clips)] if max(clips) < len(values) else values
