"""Which model a command runs, where and in what precision."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, overload

import typer

if TYPE_CHECKING:
    import torch

    from latentloom.wan.text_encoder import WanTextEncoder

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


def load_text_encoder(
    root: Path, device: str | None, dtype: Precision | None, trained: Path | None = None
) -> "WanTextEncoder":
    """The text encoder and tokenizer of a checkpoint.

    Args:
        root: the checkpoint.
        device: where it computes; the best there is when None.
        dtype: of its weights; when None, bfloat16 on CUDA and float32 elsewhere.
        trained: a trained encoder's file or folder, whose weights take the place of the checkpoint's.

    Raises:
        CheckpointError: there is no text encoder or no tokenizer, or the trained one is another model's.
        ConfigError: this machine has no such device.
    """
    from latentloom.runs import choose_device
    from latentloom.wan import checkpoints
    from latentloom.wan.text_encoder import WanTextEncoder

    where = choose_device(device)
    precision = torch_dtype(dtype or ("bfloat16" if where.type == "cuda" else "float32"))
    tokenizer = checkpoints.load_tokenizer(root)
    model = checkpoints.load_text_encoder(root, dtype=precision, device=where)
    if trained is not None:
        from latentloom.finetune.encoder_files import load_text_encoder_file

        load_text_encoder_file(model, trained)
    return WanTextEncoder(model, tokenizer)


@overload
def torch_dtype(precision: Precision) -> "torch.dtype": ...
@overload
def torch_dtype(precision: None) -> None: ...
@overload
def torch_dtype(precision: Precision | None) -> "torch.dtype | None": ...
def torch_dtype(precision: Precision | None) -> "torch.dtype | None":
    """The torch dtype of that name; None stays None."""
    if precision is None:
        return None
    import torch

    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]
