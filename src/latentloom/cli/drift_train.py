"""`latentloom drift train`: a one-step refiner of interpolated images or clips."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from latentloom.cli.config_options import choosing_command
from latentloom.cli.options import JsonOption, emit_json
from latentloom.drifting.clips.config import ClipConfig
from latentloom.drifting.config import DriftConfig

RUN_FOLDER = Path("runs/drift")


def train(
    config: DriftConfig | ClipConfig,
    *,
    out_dir: Annotated[
        Path, typer.Option("--out-dir", file_okay=False, help="Folder of the run; an interrupted one continues.")
    ] = RUN_FOLDER,
    json_file: JsonOption = None,
) -> None:
    """Train a refiner that turns an interpolation into an image or a clip in one step, by drifting in feature space.

    Of images a few patches are given; of clips, with `--dataset shards`, a few frames. Under torchrun several processes
    train together, each on `n-classes-step` classes at a time.
    """
    from latentloom.drifting.idle_settings import idle_settings

    for line in idle_settings(config):
        typer.echo(line)
    if isinstance(config, ClipConfig):
        _train_clips(config, out_dir, json_file)
    else:
        _train_images(config, out_dir, json_file)


def _train_images(config: DriftConfig, out_dir: Path, json_file: str | None) -> None:
    from latentloom.drifting.run import run_drift

    outcome = run_drift(config, out_dir)
    if outcome is None:  # one of torchrun's other processes
        return
    if outcome.scores:  # images of a single class have none
        print_scores(outcome.results)
    typer.echo(f"{outcome.decision}\nreport: {out_dir / 'report.html'}")
    emit_json(json_file, {**outcome.results, "decision": outcome.decision, "out_dir": str(out_dir)})


def _train_clips(config: ClipConfig, out_dir: Path, json_file: str | None) -> None:
    from latentloom.drifting.clips.run import run_clips

    outcome = run_clips(config, out_dir)
    if outcome is None:  # one of torchrun's other processes
        return
    print_levels(outcome.results)
    typer.echo(f"{outcome.decision}\nreport: {out_dir / 'report.html'}")
    emit_json(json_file, {**outcome.results, "decision": outcome.decision, "out_dir": str(out_dir)})


def print_levels(results: Mapping[str, Any]) -> None:
    """A table of levels and methods; the page and the JSON have the intervals too."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None)
    for column in ("every", "method", "PSNR", "gain, dB", "KID", "FD", "beats linear"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for level in results.values():
        if not isinstance(level, Mapping):
            continue
        for name, scores in level["methods"].items():
            gain = level["gains"].get(name)
            decoded = level["decoded"].get(name, scores)["psnr"]
            closer = (gain["pixel_psnr"] or gain["psnr"])["value"] if gain else None
            table.add_row(
                f"{level['stride']:.3g}{' (mean)' if level['stride_is_mean'] else ''}",
                name,
                "" if decoded is None else f"{decoded['value']:.2f}",
                "" if closer is None else f"{closer:+.2f}",
                f"{scores['kid']['value']:.3g}",
                f"{scores['fd']['value']:.3g}",
                "" if gain is None else "yes" if gain["wins"] else "no",
            )
    Console().print(table)


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


command = choosing_command("dataset", {"images": DriftConfig, "shards": ClipConfig}, "images", train)
