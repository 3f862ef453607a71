"""The table of `latentloom bridge train --dry-run`."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

import typer

from latentloom.cli.options import emit_json

if TYPE_CHECKING:
    from latentloom.bridge.config import BridgeConfig
    from latentloom.bridge.plan import TrainingPlan


def print_plan(settings: BridgeConfig, gpu_memory: float | None, processes: int, json_file: str | None) -> None:
    """Print the weights of a training and the memory it takes on each GPU, or refuse it.

    Args:
        settings: of the training.
        gpu_memory: of each GPU in GB, 10^9 bytes; None takes this machine's, where it has one.
        processes: GPUs.
        json_file: as `--json`.

    Raises:
        ConfigError: it does not fit, or cannot be planned.
        FileError: the backbone's config is neither here nor known.
    """
    from latentloom.bridge.plan import plan_training

    plan = plan_training(settings, processes)
    available, said = _gpu_bytes(gpu_memory)
    _print_weights(plan)
    _print_memory(plan)
    typer.echo(said)
    fitting = plan.fitting(available) if available is not None else None
    emit_json(json_file, {**plan.to_json(), "gpu_bytes": available, "fitting": fitting})
    if available is None or fitting is None:
        return
    plan.require_fit(available)
    recommended = fitting[0] if processes > 1 else "one process"
    typer.echo(f"fits: {' and '.join(fitting) if processes > 1 else 'yes'}; recommended: {recommended}")


def _gpu_bytes(given: float | None) -> tuple[float | None, str]:
    """Bytes of a GPU, and the line that says whose they are."""
    if given is not None:
        return given * 1e9, f"GPU memory: {given:g} GB, as given"
    import torch

    if torch.cuda.is_available():
        found = torch.cuda.get_device_properties(0)
        return found.total_memory, f"GPU memory: {found.total_memory / 1e9:.1f} GB, of this machine's {found.name}"
    return None, "GPU memory: not known, as this machine has no GPU; nothing is refused (give --gpu-memory GB)"


def _print_weights(plan: TrainingPlan) -> None:
    shape = ", ".join(f"{value:,} {name}" for name, value in plan.shape.items())
    typer.echo(f"backbone: {plan.backbone} ({shape}; {plan.source})")
    typer.echo(f"{'weights of the backbone':32}{plan.num_backbone:>16,}")
    for name, count in plan.trained.items():
        typer.echo(f"{'trained, ' + name:32}{count:>16,}")
    typer.echo(f"{'trained, all':32}{sum(plan.trained.values()):>16,}")


def _print_memory(plan: TrainingPlan) -> None:
    ways = {"ddp" if plan.processes > 1 else "one process": plan.ddp}
    if plan.fsdp is not None:
        ways["fsdp"] = plan.fsdp
    typer.echo(
        f"GB on each of {plan.processes} GPU(s), with {plan.tokens:,} tokens in a batch, every text at its longest"
    )
    typer.echo(f"{'':32}" + "".join(f"{name:>16}" for name in ways))
    for field in fields(plan.ddp):
        row = "".join(f"{getattr(memory, field.name) / 1e9:>16.2f}" for memory in ways.values())
        typer.echo(f"{field.name:32}{row}")
    typer.echo(f"{'all':32}" + "".join(f"{memory.total / 1e9:>16.2f}" for memory in ways.values()))
