"""`latentloom demo`: the main job on MicroWan."""

from pathlib import Path
from typing import Annotated

import typer

from latentloom.cli.accuracy_table import print_accuracy
from latentloom.cli.options import JsonOption, emit_json
from latentloom.cli.stopwatch import Stopwatch


def command(
    out: Annotated[Path, typer.Option("--out", file_okay=False, help="Folder of the report.")] = Path("reports/demo"),
    num_prompts: Annotated[int, typer.Option("--num-prompts", min=1, help="Prompts of each set.")] = 24,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="Start of all randomness.")] = 0,
    json_file: JsonOption = None,
) -> None:
    """Generate clips for prompts in known and in unknown words, read what they show, and write a report."""
    clock = Stopwatch()
    with clock.time("demo"):
        from latentloom.micro.demo import run_demo

        results = run_demo(out, num_prompts, seed)
    print_accuracy(results)
    typer.echo(f"{clock.seconds['demo']:.0f} s; report: {out / 'report.html'}")
    emit_json(json_file, {"seconds": clock.seconds, "sets": {item.name: item.to_json() for item in results}})
