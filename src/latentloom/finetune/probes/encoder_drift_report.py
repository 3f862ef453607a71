"""How far a tuned encoder is from its base, as a report: prompts in the order of their drift."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from latentloom.finetune.probes.encoder_drift import EncoderDrift
from latentloom.finetune.probes.report import ProbeReport

SUMMARY_COLUMNS = ("figure", "mean", "lowest", "highest")
_MOST_SHOWN = 40
_MOST_LETTERS = 60
# Okabe and Ito's colours, which people with any colour vision tell apart
_BLUE, _ORANGE, _GREEN = "#0072b2", "#d55e00", "#009e73"


def write_encoder_drift_report(
    drift: EncoderDrift,
    prompts: Sequence[str],
    inputs: dict[str, Any],
    settings: dict[str, Any],
    out: Path | None,
) -> tuple[Path, dict[str, Any]]:
    """Write the report; returns the path of report.md and what summary.json holds.

    Args:
        drift: what `encoder_drift` measured.
        prompts: in its order.
        inputs, settings: see `ProbeReport.write`; `inputs["encoder"]` lists the tuned encoder's file.
        out: the folder; None makes one below `reports/encoder-drift`.

    Raises:
        FileError: the folder cannot be written to.
    """
    encoder = Path(inputs["encoder"][0]["path"])
    report = ProbeReport("encoder-drift", f"How far {encoder.name} is from its base")
    report.paragraph(verdict(drift))
    report.table(SUMMARY_COLUMNS, summary_rows(drift))
    order = drift.token_cosine.argsort().tolist()
    shown = order[:_MOST_SHOWN]
    least = f", the {_MOST_SHOWN} that drift most of {len(order)}" if len(order) > _MOST_SHOWN else ""
    report.figure(
        "prompts",
        plot_prompts(drift, prompts, shown),
        f"Prompts by drift{least}. Left, cosine between base and tuned encoder; middle, how much longer or shorter "
        "tokens are; right, share of a prompt's neighbours that it keeps.",
    )
    report.csv(
        "prompts",
        ("prompt", *_FIGURES),
        [[prompts[index], *(float(getattr(drift, name)[index]) for name in _FIGURES)] for index in order],
        "every prompt, the one that drifts most first",
    )
    results = {
        "num_prompts": len(prompts),
        "num_neighbours": drift.num_neighbours,
        **{name: _spread(getattr(drift, name)) for name in _FIGURES},
    }
    run = encoder.stem if encoder.stem != "text_encoder" else f"{encoder.absolute().parent.name}-{encoder.stem}"
    return report.write(out, run, inputs, settings, results)


_FIGURES = {
    "token_cosine": "cosine of tokens",
    "lowest_token_cosine": "lowest cosine of a token",
    "pooled_cosine": "cosine of mean tokens",
    "relative_change": "relative change",
    "norm_change": "change of length",
    "overlap": "neighbours kept",
}


def verdict(drift: EncoderDrift) -> str:
    """What the figures come to, in a sentence or two."""
    if bool((drift.relative_change == 0).all()):
        return "The encoder gives every prompt exactly what its base gives."
    told = (
        f"Tokens keep a cosine of {float(drift.token_cosine.mean()):.4f} with the base on average "
        f"(lowest {float(drift.lowest_token_cosine.min()):.4f}) and change their length by "
        f"{float(drift.norm_change.mean()):+.2%}."
    )
    if drift.num_neighbours:
        told += f" Of its {drift.num_neighbours} nearest prompts a prompt keeps {float(drift.overlap.mean()):.0%}."
    return told


def summary_rows(drift: EncoderDrift) -> list[list[str]]:
    """One line per figure, under `SUMMARY_COLUMNS`."""
    spreads = {words: _spread(getattr(drift, name)) for name, words in _FIGURES.items()}
    return [[words, *(f"{value:.4f}" for value in each.values())] for words, each in spreads.items()]


def plot_prompts(drift: EncoderDrift, prompts: Sequence[str], shown: Sequence[int]) -> Figure:
    """Dots over prompts, the one that drifts most on top."""
    figure = Figure(figsize=(10, 1.4 + 0.23 * len(shown)), layout="constrained")
    cosines, lengths, kept = figure.subplots(1, 3, sharey=True, width_ratios=(2, 1.2, 1.2))
    places, chosen = list(range(len(shown))), torch.tensor(shown)
    for values, colour, words in (
        (drift.token_cosine, _BLUE, "tokens, mean"),
        (drift.lowest_token_cosine, _ORANGE, "lowest token"),
        (drift.pooled_cosine, _GREEN, "mean token"),
    ):
        cosines.plot(values[chosen].numpy(), places, "o", markersize=4, color=colour, label=words)
    cosines.set_xlabel("cosine with the base", fontsize=9)
    figure.legend(frameon=False, fontsize=8, loc="outside upper center", ncols=3)
    lengths.plot(100 * drift.norm_change[chosen].numpy(), places, "o", markersize=4, color=_BLUE)
    lengths.axvline(0, color="0.3", linewidth=0.8)
    lengths.set_xlabel("length, %", fontsize=9)
    if drift.num_neighbours:
        kept.barh(places, 100 * drift.overlap[chosen].numpy(), color=_BLUE, height=0.6)
    kept.set_xlim(0, 100)
    kept.set_xlabel(f"kept of {drift.num_neighbours}, %", fontsize=9)
    cosines.set_yticks(places, [_shortened(prompts[index]) for index in shown], fontsize=8, parse_math=False)
    cosines.set_ylim(len(shown) - 0.4, -0.6)
    for axes in (cosines, lengths, kept):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="both", alpha=0.2)
        axes.set_axisbelow(True)
    return figure


def _shortened(prompt: str) -> str:
    return prompt if len(prompt) <= _MOST_LETTERS else prompt[: _MOST_LETTERS - 3].rstrip() + "..."


def _spread(values: Float[Tensor, "B"]) -> dict[str, float]:
    return {"mean": float(values.mean()), "lowest": float(values.min()), "highest": float(values.max())}
