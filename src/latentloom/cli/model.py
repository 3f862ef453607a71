"""Which model a command runs, where and in what precision."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    import torch

Precision = Literal["float32", "bfloat16", "float16"]

DeviceOption = Annotated[
    str | None, typer.Option("--device", help="Such as cpu, cuda or cuda:1; the best there is when not given.")
]
DtypeOption = Annotated[
    Precision | None,
    typer.Option("--dtype", help="Precision of the weights; bfloat16 on CUDA and float32 elsewhere when not given."),
]


def checkpoint_or_default(ckpt_root: Path | None) -> Path:
    """The checkpoint asked for, or MicroWan's."""
    if ckpt_root is not None:
        return ckpt_root
    from latentloom.micro import default_checkpoint

    return default_checkpoint()


def torch_dtype(precision: Precision | None) -> "torch.dtype | None":
    """The torch dtype of that name; None stays None."""
    if precision is None:
        return None
    import torch

    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]
