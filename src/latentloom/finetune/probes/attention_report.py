"""How far attention logits drift under an adapter, as a report: ratios by block, type and timestep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from latentloom.finetune.probes.attention import TYPES, AttentionDrift
from latentloom.finetune.probes.report import ProbeReport

SUMMARY_COLUMNS = ("type", "mean ratio", "lowest", "highest", "whole model: mean", "lowest of it", "highest of it")
GUIDE = 0.1
"""Drawn in the picture where no cap is given: logits that spread by a tenth more or less."""
# Okabe and Ito's colours, which people with any colour vision tell apart
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


def write_attention_report(
    drift: AttentionDrift,
    cap: float | None,
    inputs: dict[str, Any],
    settings: dict[str, Any],
    out: Path | None,
) -> tuple[Path, dict[str, Any]]:
    """Write the report; returns the path of report.md and what summary.json holds.

    Args:
        drift: what `attention_drift` measured.
        cap: the largest distance from 1 allowed; None for none.
        inputs, settings: see `ProbeReport.write`; `inputs["adapter"]` lists the adapter's file.
        out: the folder; None makes one below `reports/attention`.

    Raises:
        FileError: the folder cannot be written to.
    """
    adapter = Path(inputs["adapter"][0]["path"])
    report = ProbeReport("attention", f"How far {adapter.name} moves the attention logits")
    report.paragraph(verdict(drift, cap))
    report.table(SUMMARY_COLUMNS, summary_rows(drift))
    limit = "dashed: the cap" if cap is not None else f"dashed: {GUIDE:.0%} off, for orientation"
    report.figure(
        "ratios",
        plot_ratios(drift, cap),
        "Standard deviation of the logits after over before the adapter. Left at the same inputs, the band is over "
        f"heads; right through the whole model. {limit[0].upper()}{limit[1:]}.",
    )
    report.paragraph(
        "A spread is the standard deviation of a query's logits over the keys, averaged over queries, prompts and "
        "heads. In cross-attention all padding counts as one key."
    )
    report.csv("layers", _LAYER_COLUMNS, layer_rows(drift), "every layer at every timestep")
    results = {
        "drift": drift.drift,
        "cap": cap,
        "timesteps": list(drift.timesteps),
        "types": list(TYPES),
        "ratio": drift.ratio.tolist(),
        "through_ratio": drift.through_ratio.tolist(),
        "by_type": type_figures(drift),
    }
    run = adapter.stem if adapter.stem != "adapter_model" else f"{adapter.absolute().parent.name}-{adapter.stem}"
    return report.write(out, run, inputs, settings, results)


def verdict(drift: AttentionDrift, cap: float | None) -> str:
    """What the ratios come to, in a sentence or two."""
    if drift.drift == 0:
        return "The adapter leaves every layer's logits exactly as they were."
    told = f"The logits' spread changes most in {furthest(drift)}, by {drift.drift:.2%}."
    if cap is not None:
        told += f" The cap is {cap:.2%}: " + ("it is exceeded." if drift.drift > cap else "all layers are within it.")
    return told


def furthest(drift: AttentionDrift) -> str:
    """The layer, timestep and kind of ratio that is furthest from 1."""
    same = drift.ratio.sub(1).abs()
    whole = drift.through_ratio.sub(1).abs()
    values, how = (same, "at the same inputs") if same.max() >= whole.max() else (whole, "through the whole model")
    place = int(values.flatten().argmax())
    _, num_blocks, num_types = values.shape
    point, block, kind = place // (num_blocks * num_types), place // num_types % num_blocks, place % num_types
    return f"blocks.{block}.{TYPES[kind]} at timestep {drift.timesteps[point]:.0f} {how}"


def type_figures(drift: AttentionDrift) -> dict[str, dict[str, float]]:
    """Per type of attention, mean, lowest and highest ratio over layers and timesteps, of both kinds."""
    found = {}
    for kind, name in enumerate(TYPES):
        both = {"same_inputs": drift.ratio[..., kind], "whole_model": drift.through_ratio[..., kind]}
        found[name] = {
            f"{how}_{figure}": float(value)
            for how, values in both.items()
            for figure, value in (("mean", values.mean()), ("lowest", values.min()), ("highest", values.max()))
        }
    return found


def summary_rows(drift: AttentionDrift) -> list[list[str]]:
    """One line per type of attention, under `SUMMARY_COLUMNS`."""
    return [[name, *(f"{value:.4f}" for value in each.values())] for name, each in type_figures(drift).items()]


_LAYER_COLUMNS = (
    "timestep",
    "block",
    "type",
    "before",
    "after",
    "ratio",
    "lowest_head",
    "highest_head",
    "whole_model",
    "whole_model_ratio",
)


def layer_rows(drift: AttentionDrift) -> list[list[Any]]:
    """Every layer at every timestep."""
    ratio, through, heads = drift.ratio, drift.through_ratio, drift.head_ratio
    return [
        [
            timestep,
            block,
            name,
            float(drift.before[point, block, kind].mean()),
            float(drift.after[point, block, kind].mean()),
            float(ratio[point, block, kind]),
            float(heads[point, block, kind].min()),
            float(heads[point, block, kind].max()),
            float(drift.through[point, block, kind].mean()),
            float(through[point, block, kind]),
        ]
        for point, timestep in enumerate(drift.timesteps)
        for block in range(drift.before.shape[1])
        for kind, name in enumerate(TYPES)
    ]


def plot_ratios(drift: AttentionDrift, cap: float | None) -> Figure:
    """Ratios over blocks, a row of panels per type; left at the same inputs, right through the whole model."""
    figure = Figure(figsize=(9, 5.2), layout="constrained")
    grid = figure.subplots(len(TYPES), 2, sharex=True, sharey=True)
    limit = GUIDE if cap is None else cap
    for kind, name in enumerate(TYPES):
        for column, (values, how) in enumerate(((drift.ratio, "same inputs"), (drift.through_ratio, "whole model"))):
            axes = grid[kind][column]
            _lines(axes, drift, values[..., kind], kind if column == 0 else None)
            for edge in (1 - limit, 1 + limit):
                axes.axhline(edge, color="0.5", linewidth=0.9, linestyle="--")
            axes.axhline(1, color="0.3", linewidth=0.8)
            axes.set_title(f"{name}, {how}", fontsize=9)
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(axis="y", alpha=0.25)
        grid[kind][0].set_ylabel("after / before", fontsize=9)
    for axes in grid[-1]:
        axes.set_xlabel("block", fontsize=9)
        axes.xaxis.get_major_locator().set_params(integer=True)
    grid[0][0].legend(title="timestep", frameon=False, fontsize=8, title_fontsize=8)
    return figure


def _lines(axes: Axes, drift: AttentionDrift, values: Any, band_of: int | None) -> None:
    blocks = range(values.shape[1])
    for point, timestep in enumerate(drift.timesteps):
        colour = _COLOURS[point % len(_COLOURS)]
        axes.plot(blocks, values[point].numpy(), marker="o", markersize=3, color=colour, label=f"{timestep:.0f}")
        if band_of is not None:
            heads = drift.head_ratio[point, :, band_of]
            axes.fill_between(blocks, heads.amin(1).numpy(), heads.amax(1).numpy(), color=colour, alpha=0.13, lw=0)
