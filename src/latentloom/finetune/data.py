"""What training reads: cached clips with their captions, one at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from latentloom.wan.clip_size import ClipSize


@dataclass(frozen=True, eq=False)
class Example:
    """One clip or image of a dataset.

    Args:
        latents: normalised, on the CPU, in float32; an image has T = 1.
        caption: as the side-car file has it, without the line's end; may be empty.
        text: what the frozen encoder made of the caption, L tokens; None where text is not cached.
    """

    latents: Float[Tensor, "C T H W"]
    caption: str
    text: Float[Tensor, "L D"] | None


@runtime_checkable
class ExampleStore(Protocol):
    """Items that can be read in any order, each with a size that is known without reading it.

    `sizes` and `names` have one entry per item; an item whose folder has `num_repeats = 3` is three items. `names` are
    the same on every machine and from run to run.
    """

    @property
    def sizes(self) -> Sequence[ClipSize]: ...
    @property
    def names(self) -> Sequence[str]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Example: ...
