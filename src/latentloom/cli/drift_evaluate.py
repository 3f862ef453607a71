"""`latentloom drift evaluate`: what a trained refiner reaches on held-out images."""

from pathlib import Path
from typing import Annotated

import typer

from latentloom.cli.drift_train import print_scores
from latentloom.cli.options import JsonOption, emit_json
from latentloom.errors import ConfigError


def command(
    refiner: Annotated[
        Path, typer.Argument(help="File that `latentloom drift train` wrote: seed0-drift/refiner.safetensors.")
    ],
    alpha: Annotated[str, typer.Option("--alpha", metavar="NUMBER,...", help="Guidance strengths to try.")] = "1",
    data_root: Annotated[
        Path | None, typer.Option("--data-root", help="Where the data lies now; where it lay in training if not given.")
    ] = None,
    device: Annotated[str | None, typer.Option("--device", help="cpu, cuda or cuda:N.")] = None,
    json_file: JsonOption = None,
) -> None:
    """Score a refiner on the images that its training did not see, at one or more guidance strengths."""
    from latentloom.drifting.evaluate_refiner import evaluate_refiner

    results = evaluate_refiner(refiner, read_strengths(alpha), data_root=data_root, device=device)
    print_scores(results)
    emit_json(json_file, results)


def read_strengths(text: str) -> list[float]:
    """The numbers of a list with commas.

    Raises:
        ConfigError: something else, or a number below 1.
    """
    try:
        strengths = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--alpha {text} is not understood; give numbers such as 1,1.5,2") from error
    if not all(1 <= strength < float("inf") for strength in strengths):
        raise ConfigError(f"--alpha {text}; give numbers of 1 or more, 1 is no guidance")
    return strengths
