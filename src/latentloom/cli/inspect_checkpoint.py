"""`latentloom inspect checkpoint PATH`: what a checkpoint is, from its headers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from latentloom.cli.options import JsonOption, emit_json

if TYPE_CHECKING:
    from latentloom.wan.summary import CheckpointSummary, ModelSummary


def command(
    path: Annotated[Path, typer.Argument(help="A checkpoint's folder in any layout, or one weight file.")],
    json: JsonOption = None,
) -> None:
    """Tell layout, models, sizes, types and which known model a checkpoint is; no weights are read."""
    from latentloom.wan.summary import inspect

    summary = inspect(path)
    emit_json(json, summary.as_dict())
    if json != "-":
        _print(summary)


def _print(summary: CheckpointSummary) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    size = f"{summary.num_parameters / 1e9:.3f} B parameters"
    console.print(f"{summary.title}: {summary.layout} layout, {size}", highlight=False, markup=False, soft_wrap=True)
    table = Table("model", "tensors", "parameters", "types", "sizes", box=None)
    for model in summary.models:
        name = f"{model.expert}-noise {model.role}" if model.expert else model.role
        parameters = f"{model.num_parameters:,}"
        table.add_row(name, str(model.num_tensors), parameters, " ".join(model.dtypes), _sizes(model))
    console.print(table)
    if not summary.has_tokenizer:
        console.print("no tokenizer here")
    for model in summary.models:
        if model.left_over:
            console.print(f"{len(model.left_over)} unknown tensors, first {model.left_over[0]}", markup=False)


def _sizes(model: ModelSummary) -> str:
    """The handful of sizes that tell one model from another."""
    shown = {
        "transformer": {
            "ffn_dim": "ffn",
            "num_layers": "layers",
            "num_attention_heads": "heads",
            "in_channels": "in",
            "out_channels": "out",
        },
        "text_encoder": {"d_model": "dim", "num_layers": "layers", "num_heads": "heads", "vocab_size": "vocabulary"},
        "vae": {"base_dim": "dim", "z_dim": "latent channels", "dim_mult": "multipliers"},
    }[model.role]
    sizes = [f"{label} {model.dims[key]}" for key, label in shown.items()]
    if model.role == "transformer":
        sizes.insert(0, f"dim {model.dims['num_attention_heads'] * model.dims['attention_head_dim']}")
    return ", ".join(sizes)
