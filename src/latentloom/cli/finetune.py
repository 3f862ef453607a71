"""`latentloom finetune`: train the text encoder or a LoRA of the DiT, as a TOML file says, in one process."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer.core import TyperCommand

from latentloom.cli.extras import require_extra
from latentloom.cli.options import JsonOption, emit_json

if TYPE_CHECKING:
    from typer._click.core import Context

    from latentloom.finetune.config import FinetuneConfig

RESUME = "--resume-from-checkpoint"

ConfigOption = Annotated[Path, typer.Option("--config", metavar="FILE", help="The run's settings, a TOML file.")]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="[section.key=value]...", help="Changes to the settings.", show_default=False),
]
ResumeOption = Annotated[
    str | None,
    typer.Option(RESUME, metavar="[NAME]", help="Go on with the newest run; with RUN, or RUN/global_stepN, with that."),
]
CacheOnlyOption = Annotated[bool, typer.Option("--cache-only", help="Make the cache and stop.")]
TrustOption = Annotated[bool, typer.Option("--trust-cache", help="Take the cache as it is; media are not looked at.")]
RegenerateOption = Annotated[bool, typer.Option("--regenerate-cache", help="Make the cache anew.")]
PlanOption = Annotated[
    bool, typer.Option("--plan", help="Print how the model is cut into stages, with the memory of each, and stop.")
]
PlanForOption = Annotated[
    str | None,
    typer.Option(
        "--plan-for", metavar="MODEL", help="The same for ti2v-5b, t2v-a14b or t2v-1.3b, without its weights."
    ),
]


class OptionalValueCommand(TyperCommand):
    """Lets the resume option stand without its value, which typer does not know."""

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        given: list[str] = []
        for place, argument in enumerate(args):
            given.append(argument)
            following = args[place + 1] if place + 1 < len(args) else "-"
            if argument.replace("_", "-") == RESUME and (following.startswith("-") or "=" in following):
                given.append("")
        return super().parse_args(ctx, given)


command_class = OptionalValueCommand


def command(
    config: ConfigOption,
    overrides: OverridesArgument = None,
    resume_from_checkpoint: ResumeOption = None,
    cache_only: CacheOnlyOption = False,
    trust_cache: TrustOption = False,
    regenerate_cache: RegenerateOption = False,
    plan: PlanOption = False,
    plan_for: PlanForOption = None,
    json_file: JsonOption = None,
) -> None:
    """Train the text encoder, or a LoRA of the DiT, as a TOML file says.

    Several processes are started with
    deepspeed --num_gpus=N --module latentloom.finetune.train --deepspeed --config FILE
    """
    require_extra("finetune")
    from latentloom.finetune.config import FinetuneConfig
    from latentloom.runs import load_config

    settings = load_config(FinetuneConfig, config, overrides or [])
    if plan or plan_for is not None:
        print_plans(settings, plan_for, json_file)
        return
    from latentloom.finetune.train import Options, run_finetune

    options = Options(
        resume=resume_from_checkpoint is not None,
        resume_name=resume_from_checkpoint or None,
        cache_only=cache_only,
        trust_cache=trust_cache,
        regenerate_cache=regenerate_cache,
    )
    runs = run_finetune(settings, options)
    for run in runs:
        typer.echo(f"report: {run / 'report.html'}")
    emit_json(json_file, {"runs": [str(run) for run in runs]})


def print_plans(settings: FinetuneConfig, model: str | None, json_file: str | None) -> None:
    """Tables of the stages, one for each transformer that would be trained.

    Args:
        settings: the run's.
        model: a known model's key; None is the checkpoint of the settings.
        json_file: as of `--json`.
    """
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table

    from latentloom.finetune.plan import PLAN_COLUMNS, known_costs, layer_costs, plan_rows
    from latentloom.finetune.plan import plan as plan_stages
    from latentloom.finetune.train import target_of
    from latentloom.wan import facts

    changes: tuple[str, ...] = ()
    if model is not None:
        costs = {facts.get(model).title: known_costs(settings, model)}
    else:
        target = target_of(settings)
        settings, changes = target.config, target.changes
        costs = {
            target.facts.title + (f", {expert} noise" if expert else ""): layer_costs(settings, target.root, expert)
            for expert in target.experts
        }
    plans = {name: plan_stages(settings, layers) for name, layers in costs.items()}
    for change in changes:
        typer.echo(change)
    for name, stages in plans.items():
        table = Table(*PLAN_COLUMNS, box=None, title=name, title_justify="left")
        for row in plan_rows(stages):
            table.add_row(*row)
        Console().print(table)
    emit_json(json_file, {name: [asdict(stage) for stage in stages] for name, stages in plans.items()})
