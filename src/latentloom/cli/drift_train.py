"""`latentloom drift train`: a one-step refiner of interpolated images."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from latentloom.cli.config_options import config_command
from latentloom.cli.options import JsonOption, emit_json
from latentloom.drifting.config import DriftConfig

RUN_FOLDER = Path("runs/drift")


def train(
    config: DriftConfig,
    *,
    out_dir: Annotated[
        Path, typer.Option("--out-dir", file_okay=False, help="Folder of the run; an interrupted one continues.")
    ] = RUN_FOLDER,
    json_file: JsonOption = None,
) -> None:
    """Train a refiner that turns interpolated patches into an image in one step, by drifting in feature space.

    Under torchrun several processes train together, each on `n-classes-step` classes at a time.
    """
    from latentloom.drifting.idle_settings import idle_settings
    from latentloom.drifting.run import run_drift

    for line in idle_settings(config):
        typer.echo(line)
    outcome = run_drift(config, out_dir)
    if outcome is None:  # one of torchrun's other processes
        return
    if outcome.scores:  # images of a single class have none
        print_scores(outcome.results)
    typer.echo(f"{outcome.decision}\nreport: {out_dir / 'report.html'}")
    emit_json(json_file, {**outcome.results, "decision": outcome.decision, "out_dir": str(out_dir)})


def print_scores(results: Mapping[str, Any]) -> None:
    """A table of methods and their scores on held-out images; the page and the JSON have the intervals too."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None)
    for column in ("method", "FD", "KID", "accuracy", "MSE missing"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for name, scores in results.items():
        if not isinstance(scores, Mapping):
            continue
        fd, kid, accuracy, missing = (scores[key] for key in ("fd", "kid", "accuracy", "mse_missing"))
        error = "" if missing is None else f"{missing['value']:.3g}"
        table.add_row(name, f"{fd['value']:.3g}", f"{kid['value']:.3g}", f"{100 * accuracy['value']:.1f} %", error)
    Console().print(table)


command = config_command(DriftConfig, train)
