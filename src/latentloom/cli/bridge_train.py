"""`latentloom bridge train`: the parts between sentence vectors and a language model, as settings say."""

import os
from typing import Annotated

import typer

from latentloom.bridge.offline import offline_environment
from latentloom.cli.bridge_plan import print_plan
from latentloom.cli.bridge_settings import ConfigNameOption, ConfigOption, OverridesArgument, bridge_settings
from latentloom.cli.options import JsonOption, emit_json

DryRunOption = Annotated[
    bool,
    typer.Option("--dry-run", help="Print what would be trained and the memory it takes, without weights, and stop."),
]
GpuMemoryOption = Annotated[
    float | None,
    typer.Option("--gpu-memory", metavar="GB", help="Of each GPU in --dry-run; this machine's if left out."),
]
ProcessesOption = Annotated[int, typer.Option("--processes", min=1, help="GPUs in --dry-run.")]


def command(
    overrides: OverridesArgument = None,
    config_name: ConfigNameOption = None,
    config: ConfigOption = None,
    dry_run: DryRunOption = False,
    gpu_memory: GpuMemoryOption = None,
    processes: ProcessesOption = 1,
    json_file: JsonOption = None,
) -> None:
    """Train a bridge between texts and sentence vectors.

    An interrupted run goes on with the same command; at its end it is scored on held-out pairs. Without settings it is
    made on SmolLM2 and MiniLM, offline, from a text file:
    latentloom bridge train data.texts=texts.txt

    Several processes are started with
    torchrun --nproc_per_node N --no-python latentloom bridge train --config-name NAME
    """
    offline_environment()
    settings = bridge_settings(config_name, config, overrides)
    from latentloom.bridge.idle_settings import idle_settings

    if os.environ.get("RANK", "0") == "0":  # of torchrun's processes the first one speaks
        for line in idle_settings(settings):
            typer.echo(line)
    if dry_run:
        print_plan(settings, gpu_memory, processes, json_file)
        return
    if gpu_memory is not None or processes > 1:
        from latentloom.errors import ConfigError

        raise ConfigError("--gpu-memory and --processes belong to --dry-run; start several processes with torchrun")
    from latentloom.bridge.run import train_bridge

    outcome = train_bridge(settings)
    if outcome is None:  # one of torchrun's other processes
        return
    if outcome.scores is not None:
        from latentloom.cli.bridge_evaluate import print_scores

        print_scores(outcome.scores)
    typer.echo(f"export: {outcome.export}\nreport: {outcome.folder / 'report.html'}")
    scores = outcome.scores.to_json() if outcome.scores is not None else None
    emit_json(json_file, {"out_dir": str(outcome.folder), "export": str(outcome.export), "scores": scores})
