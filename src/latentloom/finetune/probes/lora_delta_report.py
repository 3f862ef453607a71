"""The size of an adapter's changes, as a report: a map of layers and blocks, means by type, what is above the cap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from latentloom.finetune.probes.lora_delta import TYPES, Summary, TargetDelta, above, summarise
from latentloom.finetune.probes.report import ProbeReport

SUMMARY_COLUMNS = ("type", "targets", "mean ratio", "max ratio", "largest at")
_MAX_LISTED = 20
_OVER = "#d55e00"


def write_lora_delta_report(
    targets: Sequence[TargetDelta],
    cap: float | None,
    inputs: dict[str, Any],
    settings: dict[str, Any],
    out: Path | None,
) -> tuple[Path, dict[str, Any]]:
    """Write the report; returns the path of report.md and what summary.json holds.

    Args:
        targets: at least one.
        cap: the largest ratio allowed; None for none.
        inputs, settings: see `ProbeReport.write`; `inputs["adapter"]` lists the adapter's file.
        out: the folder; None makes one below `reports/lora-delta`.

    Raises:
        FileError: the folder cannot be written to.
    """
    adapter = Path(inputs["adapter"][0]["path"])
    report = ProbeReport("lora-delta", f"How large the changes of {adapter.name} are")
    report.paragraph(verdict(targets, cap))
    report.table(SUMMARY_COLUMNS, summary_rows(targets))
    report.figure(
        "ratios",
        plot_ratios(targets, cap),
        "‖ΔW‖ / ‖W‖ of every target in percent, layers over blocks" + ("; framed: above the cap" if cap else ""),
    )
    over = above(targets, cap) if cap is not None else []
    if over:
        report.heading("Above the cap")
        report.table(("target", "ratio"), [(target.target, target.ratio) for target in over[:_MAX_LISTED]])
        if len(over) > _MAX_LISTED:
            report.paragraph(f"{len(over) - _MAX_LISTED} more are in targets.csv.")
    report.heading("By layer")
    report.table(("layer", *SUMMARY_COLUMNS[1:]), _rows(summarise(targets, "layer")))
    columns = [*(field.name for field in fields(TargetDelta)), "ratio", "stable_rank"]
    lines = [target.to_json() for target in targets]
    about = "every target with its norms, ratio and stable rank (over how many directions the change is spread)"
    report.csv("targets", columns, [[line[name] for name in columns] for line in lines], about)
    results = {
        "num_targets": len(targets),
        "by_type": {name: asdict(of_type) for name, of_type in _by_type(targets).items()},
        "by_layer": {name: asdict(of_layer) for name, of_layer in summarise(targets, "layer").items()},
        "cap": cap,
        "above_cap": [{"target": target.target, "ratio": target.ratio} for target in over],
    }
    run = adapter.stem if adapter.stem != "adapter_model" else f"{adapter.absolute().parent.name}-{adapter.stem}"
    return report.write(out, run, inputs, settings, results)


def verdict(targets: Sequence[TargetDelta], cap: float | None) -> str:
    """What the ratios come to, in a sentence or two."""
    worst = max(targets, key=lambda target: target.ratio)
    mean = sum(target.ratio for target in targets) / len(targets)
    told = (
        f"{len(targets)} weights change by {mean:.2%} of their norm on average, most {worst.target}: {worst.ratio:.2%}."
    )
    if cap is not None:
        over = above(targets, cap)
        told += (
            f" {len(over)} of them are above the cap of {cap:.2%}."
            if over
            else f" All are within the cap of {cap:.2%}."
        )
    if any(target.type == "self_attn" and target.delta_norm for target in targets):
        told += " Some are in self-attention, where adapters gave artefacts in earlier tests."
    return told


def summary_rows(targets: Sequence[TargetDelta]) -> list[list[Any]]:
    """One line per type, under `SUMMARY_COLUMNS`."""
    return _rows(_by_type(targets))


def plot_ratios(targets: Sequence[TargetDelta], cap: float | None) -> Figure:
    """A map of ratios in percent: layers are rows, blocks are columns; what is outside the blocks has a column too."""
    layers = sorted({target.layer for target in targets}, key=lambda layer: (_type_place(targets, layer), layer))
    numbers = [target.block for target in targets if target.block is not None]
    blocks: list[int | None] = list(range(min(numbers), max(numbers) + 1)) if numbers else []
    if any(target.block is None for target in targets):
        blocks.insert(0, None)
    values = np.full((len(layers), len(blocks)), np.nan)
    for target in targets:
        values[layers.index(target.layer), blocks.index(target.block)] = 100 * target.ratio
    figure = Figure(
        figsize=(max(4.5, min(0.45 * len(blocks) + 2.2, 14)), 1.3 + 0.34 * len(layers)), layout="constrained"
    )
    axes = figure.subplots()
    finite = values[np.isfinite(values)]
    top = max(float(finite.max()) if finite.size else 0.0, 1e-9)
    image = axes.imshow(values, aspect="auto", cmap="viridis", vmin=0, vmax=top)
    for (row, column), value in np.ndenumerate(values):
        if len(blocks) <= 32 and np.isfinite(value):
            # viridis is dark below and light above
            axes.text(column, row, f"{value:.2g}", ha="center", va="center", fontsize=7, color=_ink(value / top))
        if cap is not None and value > 100 * cap:
            axes.add_patch(_frame(column, row))
    axes.set_yticks(range(len(layers)), layers, fontsize=9)
    names = ["none" if block is None else str(block) for block in blocks]
    step = max(1, len(blocks) // 20)
    axes.set_xticks(range(0, len(blocks), step), names[::step], fontsize=9)
    axes.set_xlabel("block", fontsize=9)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, label="‖ΔW‖ / ‖W‖, %", pad=0.02)
    return figure


def _ink(height: float) -> str:
    return "white" if height < 0.6 else "black"


def _frame(column: int, row: int) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((column - 0.47, row - 0.45), 0.94, 0.9, fill=False, edgecolor=_OVER, linewidth=2)


def _by_type(targets: Sequence[TargetDelta]) -> dict[str, Summary]:
    found = summarise(targets, "type")
    return {kind: found[kind] for kind in TYPES if kind in found}


def _type_place(targets: Sequence[TargetDelta], layer: str) -> int:
    return TYPES.index(next(target.type for target in targets if target.layer == layer))


def _rows(summaries: dict[str, Summary]) -> list[list[Any]]:
    return [
        [name, str(each.count), f"{each.mean:.3%}", f"{each.max:.3%}", each.worst] for name, each in summaries.items()
    ]
