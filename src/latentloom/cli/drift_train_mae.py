"""`latentloom drift train-mae`: the masked autoencoder whose encoder gives drifting its features."""

from pathlib import Path
from typing import Annotated

import typer

from latentloom.cli.config_options import config_command
from latentloom.cli.options import JsonOption, emit_json
from latentloom.drifting.config import MaeConfig

RUN_FOLDER = Path("runs/drift_mae")


def train_mae(
    config: MaeConfig,
    *,
    out_dir: Annotated[
        Path, typer.Option("--out-dir", file_okay=False, help="Folder of the run; an interrupted one continues.")
    ] = RUN_FOLDER,
    json_file: JsonOption = None,
) -> None:
    """Train a masked autoencoder on images or latents; its encoder gives the features that drifting compares.

    Under torchrun several processes train together, each on `batch-size` images at a time.
    """
    from latentloom.drifting.idle_settings import idle_settings
    from latentloom.drifting.train_mae import run_train_mae
    from latentloom.storage import read_module

    for line in idle_settings(config):
        typer.echo(line)
    weights = run_train_mae(config, out_dir)
    if weights is None:  # one of torchrun's other processes
        return
    record = read_module(weights).record or {}
    typer.echo(f"held-out loss {record['held_out_loss']:.4f}, effective batch {record['effective_batch']}")
    typer.echo(f"autoencoder: {weights}; report: {out_dir / 'report.html'}")
    emit_json(json_file, {**record, "weights": str(weights)})


command = config_command(MaeConfig, train_mae)
