"""A measured prompt pair as a page, its pictures and `measure.json`, and in plain words."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from torch import Tensor

from latentloom.runs import Report
from latentloom.steering.functional import FunctionalEffect, Spread
from latentloom.steering.measure import THRESHOLD, Bottleneck, Figures
from latentloom.storage import atomic_write, write_json
from latentloom.wan.text_encoder import MAX_TOKENS

TITLE = "How far two prompts are apart, and what the model makes of it"
_DOTS_PER_INCH = 140
_MAX_BLOCKS_WITH_NUMBERS = 16
# Okabe and Ito's colours, which people with any colour vision tell apart; what is diluted is gray
_BLUE, _ORANGE, _GREEN, _GRAY = "#0072b2", "#d55e00", "#009e73", "0.62"

_CAPTIONS = {
    "figures": "The pair before and after the text embedder. Left, the relative distance; right, the share of values "
    f"that differ by more than {THRESHOLD}. Gray bars run over {MAX_TOKENS} padded rows and are diluted: the share "
    "says how short the prompts are.",
    "attention": "Relative change of what each block's cross-attention answers, at the same latents, by block and by "
    "timestep; noise is on top. 1 is a change as long as the answer itself.",
    "velocity": "Relative change of the predicted velocity by the other prompt, beside the floor: what another seed "
    "does under the first prompt. Whiskers and bands: 95 % interval of the mean over seeds.",
    "padding": "Share of each block's attention that lands on padding rows under the first prompt.",
}

Measured = tuple[Bottleneck, FunctionalEffect]


def write_measure_report(
    folder: Path | str, prompts: tuple[str, str], measured: Measured, facts: Mapping[str, Any] | None = None
) -> Path:
    """Write `report.html`, `measure.json` and `plots/*.png` into the folder; returns the page's path.

    Args:
        folder: made where it does not exist.
        prompts: the pair, in words.
        measured: the pair (one, not several) before and after the text embedder, and its effect on the model.
        facts: further keys of `measure.json`, such as the model.

    Raises:
        FileError: the folder cannot be written to.
    """
    folder, (bottleneck, effect) = Path(folder), measured
    write_json(folder / "measure.json", measure_json(prompts, measured, facts))
    figures = plot_measure(bottleneck, effect)
    for name, figure in figures.items():
        with atomic_write(folder / "plots" / f"{name}.png") as path:
            figure.savefig(path, dpi=_DOTS_PER_INCH, bbox_inches="tight")
    report = Report(TITLE)
    lengths = bottleneck.raw.lengths[0].tolist()
    report.table(["", "prompt", "tokens"], [list(row) for row in zip("AB", prompts, lengths, strict=True)])
    report.paragraph("\n\n".join(verdict(bottleneck, effect)))
    _add_embeddings(report, bottleneck, figures)
    _add_answers(report, effect, figures)
    page = folder / "report.html"
    report.write(page)
    return page


def measure_json(
    prompts: tuple[str, str], measured: Measured, facts: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """All that was measured, as JSON values."""
    bottleneck, effect = measured
    return {
        **(facts or {}),
        "prompts": list(prompts),
        "verdict": verdict(bottleneck, effect),
        "bottleneck": bottleneck.to_json(),
        "effect": effect.to_json(),
    }


def verdict(bottleneck: Bottleneck, effect: FunctionalEffect) -> list[str]:
    """What the numbers of one pair say, in a few plain sentences each: on the embedder, on padding, on the velocity."""
    raw, projected = bottleneck.raw, bottleneck.projected
    before, after = float(raw.figures.relative_l2), float(projected.figures.relative_l2)
    if before == 0:
        return ["The two prompts are the same to the model: their embeddings are equal, and so is all that follows."]
    ratio, rows = after / before, int(raw.lengths.max())
    if ratio >= 0.9:
        fate = f"The text embedder does not destroy the difference: {100 * ratio:.0f} % of it is there afterwards"
    elif ratio >= 0.5:
        fate = f"The text embedder shrinks the difference to {100 * ratio:.0f} % and does not destroy it"
    else:
        fate = f"The text embedder takes away most of the difference: {100 * ratio:.0f} % of it is left"
    mass = effect.padding_mass.mean
    attention = effect.attention.mean.mean(dim=0)
    return [
        f"{fate} (relative L2 on true tokens {before:.3f} before, {after:.3f} after).",
        f"Over {MAX_TOKENS} padded rows {_percent(float(projected.diluted_share_changed))} of the projected values "
        f"differ, on the {rows} rows that hold a token {_percent(float(projected.share_changed))}. The first figure is "
        f"the second times {rows}/{MAX_TOKENS}: it tells how short the prompts are, not what the embedder does.",
        f"Under A {_percent(float(mass.mean()))} of the attention lands on padding "
        f"({_percent(float(mass.min()))} to {_percent(float(mass.max()))}, by block and timestep). What "
        f"cross-attention answers changes by {float(attention.min()):.2f} (block {int(attention.argmin())}) to "
        f"{float(attention.max()):.2f} times its length (block {int(attention.argmax())}).",
        _against_floor("The predicted velocity", effect.velocity, effect.velocity_floor)
        + " "
        + _against_floor("After guidance it", effect.guided, effect.guided_floor),
    ]


def figures_table(bottleneck: Bottleneck) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows: the pair's figures on true tokens, by place."""
    columns = ["on true tokens", "relative L2", "cosine", "min", "p10", "best match", "norm B / A"]
    places = {
        "raw": bottleneck.raw.figures,
        "projected": bottleneck.projected.figures,
        "projected, less the pad vector": bottleneck.projected.minus_pad or bottleneck.projected.figures,
    }
    return columns, [[name, *_values(figures)] for name, figures in places.items()]


def diluted_table(bottleneck: Bottleneck) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows: figures over padded rows beside those on true tokens."""
    columns = [
        "",
        "values changed, true tokens",
        f"{MAX_TOKENS} rows (diluted)",
        f"relative L2, {MAX_TOKENS} rows (diluted)",
    ]
    rows = []
    for name, place in (("raw", bottleneck.raw), ("projected", bottleneck.projected)):
        shares = (_percent(float(share)) for share in (place.share_changed, place.diluted_share_changed))
        rows.append([name, *shares, f"{float(place.diluted_relative_l2):.3f}"])
    return columns, rows


def effect_table(effect: FunctionalEffect) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows: change of velocity and attention by timestep."""
    columns = ["timestep", "velocity", "floor", "after guidance", "floor", "attention", "padding"]
    spreads = (effect.velocity, effect.velocity_floor, effect.guided, effect.guided_floor)
    rows = [
        [
            f"{timestep:.0f}",
            *(_with_interval(spread, index) for spread in spreads),
            f"{float(effect.attention.mean[index].mean()):.2f}",
            _percent(float(effect.padding_mass.mean[index].mean())),
        ]
        for index, timestep in enumerate(effect.timesteps)
    ]
    return columns, rows


def _add_embeddings(report: Report, bottleneck: Bottleneck, figures: Mapping[str, Figure]) -> None:
    report.heading("Before and after the text embedder")
    report.table(*figures_table(bottleneck))
    report.paragraph(
        "Position by position over the tokens that either prompt has; one inserted word shifts all that follow, and "
        "the best match does without order. The last row takes off the pad vector, which every padding row is after "
        "the embedder, so that what all rows have in common does not count as likeness."
    )
    report.figure(figures["figures"], _CAPTIONS["figures"])
    report.table(*diluted_table(bottleneck))


def _add_answers(report: Report, effect: FunctionalEffect, figures: Mapping[str, Figure]) -> None:
    report.heading("What the model makes of it")
    report.paragraph(
        f"Asked along the trajectories on which {len(effect.seeds)} seeds sample A. The floor is what another seed "
        "does to the predicted clip under A alone, in the same unit. Late in the schedule the latents have all but "
        "decided the clip: seeds are far apart then, and the floor stands high."
    )
    report.table(*effect_table(effect))
    report.paragraph(
        "Attention: relative change of its answers. Padding: the share of it that lands there. Means of the blocks."
    )
    for name in ("velocity", "attention", "padding"):
        report.figure(figures[name], _CAPTIONS[name])


def plot_measure(bottleneck: Bottleneck, effect: FunctionalEffect) -> dict[str, Figure]:
    """All pictures by file name."""
    return {
        "figures": plot_figures(bottleneck),
        "velocity": plot_velocity(effect),
        "attention": plot_map(effect, effect.attention.mean, "relative change"),
        "padding": plot_map(effect, 100 * effect.padding_mass.mean, "% of the attention", top=100.0, colours="Blues"),
    }


def plot_figures(bottleneck: Bottleneck) -> Figure:
    """Raw, projected and diluted figures of one pair as bars."""
    raw, projected = bottleneck.raw, bottleneck.projected
    less_pad = projected.minus_pad or projected.figures
    figure = Figure(figsize=(9, 2.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    rows = f"{MAX_TOKENS} rows"
    distances = {
        "raw": (raw.figures.relative_l2, _BLUE),
        "projected": (projected.figures.relative_l2, _ORANGE),
        "projected, less pad": (less_pad.relative_l2, _GREEN),
        f"projected, {rows}": (projected.diluted_relative_l2, _GRAY),
    }
    shares = {
        "raw": (raw.share_changed, _BLUE),
        "projected": (projected.share_changed, _ORANGE),
        f"raw, {rows}": (raw.diluted_share_changed, _GRAY),
        f"projected, {rows}": (projected.diluted_share_changed, _GRAY),
    }
    for panel, bars, form in ((left, distances, "{:.3f}"), (right, shares, "{:.1%}")):
        values = [float(value) for value, _ in bars.values()]
        drawn = panel.barh(range(len(bars)), values, 0.62, color=[colour for _, colour in bars.values()])
        panel.bar_label(drawn, [form.format(value).replace("%", " %") for value in values], padding=4, fontsize=9)
        panel.set_yticks(range(len(bars)), list(bars))
        panel.invert_yaxis()
        panel.set_xlim(0, 1.2 * max(*values, 1e-6))
        _plain(panel)
    left.set_xlabel("relative L2")
    right.set_xlabel(f"values that differ by more than {THRESHOLD}")
    right.set_xlim(0, 1.2)
    right.set_xticks(np.linspace(0, 1, 5))
    right.xaxis.set_major_formatter(PercentFormatter(1))
    return figure


def plot_velocity(effect: FunctionalEffect) -> Figure:
    """Change of the velocity by timestep beside the floor, as predicted and after guidance."""
    figure = Figure(figsize=(9, 3.3), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    places = np.arange(len(effect.timesteps))
    sides = ((effect.velocity, effect.velocity_floor), (effect.guided, effect.guided_floor))
    for panel, title, (spread, floor) in zip(panels, ("as predicted", "after guidance"), sides, strict=True):
        panel.fill_between(places, *_ends(floor), color=_GRAY, alpha=0.3, linewidth=0)
        panel.plot(places, floor.mean.numpy(), color="0.4", linewidth=1.2, linestyle="--", label="floor: another seed")
        means, (low, high) = spread.mean.numpy(), _ends(spread)
        panel.errorbar(
            places, means, yerr=[means - low, high - means], color=_ORANGE, marker="o", capsize=3, label="other prompt"
        )
        panel.set_xticks(places, [f"{timestep:.0f}" for timestep in effect.timesteps])
        panel.set_title(title, fontsize=10)
        panel.set(xlabel="timestep", ylim=(0, None))
        _plain(panel, grid="y")
    panels[0].set_ylabel("relative change")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False, fontsize=9)
    return figure


def plot_map(
    effect: FunctionalEffect,
    values: Float[Tensor, "T N"],
    label: str,
    top: float | None = None,
    colours: str = "viridis",
) -> Figure:
    """Values by timestep and block as a heat map, with numbers where the model has few blocks."""
    num_points, num_blocks = values.shape
    figure = Figure(figsize=(9, 1.1 + 0.42 * num_points), layout="constrained")
    axes = figure.subplots()
    top = max(float(values.max()), 1e-6) if top is None else top
    image = axes.imshow(values.numpy(), aspect="auto", cmap=colours, vmin=0, vmax=top)
    figure.colorbar(image, ax=axes, label=label, pad=0.01)
    if num_blocks <= _MAX_BLOCKS_WITH_NUMBERS:
        for (row, column), value in np.ndenumerate(values.numpy()):
            is_dark = sum(image.cmap(value / top)[:3]) < 1.5
            text = f"{value:.2f}" if top < 10 else f"{value:.0f}"
            axes.text(column, row, text, ha="center", va="center", color="white" if is_dark else "black", fontsize=9)
    axes.set_yticks(range(num_points), [f"{timestep:.0f}" for timestep in effect.timesteps])
    axes.set_xticks(range(0, num_blocks, max(1, num_blocks // 20)))
    axes.set(xlabel="block", ylabel="timestep")
    axes.spines[:].set_visible(False)
    return figure


def _against_floor(what: str, spread: Spread, floor: Spread) -> str:
    above = (spread.low > floor.high).tolist()
    low, high = float(spread.mean.min()), float(spread.mean.max())
    return (
        f"{what} changes by {low:.2f} to {high:.2f} of its length, surely more than by another seed at {sum(above)} of "
        f"{len(above)} points of the schedule."
    )


def _values(figures: Figures) -> list[str]:
    order = ("relative_l2", "cosine_mean", "cosine_min", "cosine_p10", "best_match", "norm_ratio")
    return [f"{float(getattr(figures, name)):.3f}" for name in order]


def _with_interval(spread: Spread, index: int) -> str:
    mean, low, high = (float(values[index]) for values in (spread.mean, spread.low, spread.high))
    return f"{mean:.2f} [{low:.2f}, {high:.2f}]"


def _ends(spread: Spread) -> tuple[np.ndarray, np.ndarray]:
    return spread.low.numpy(), spread.high.numpy()


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _plain(axes: Axes, grid: str = "x") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(axis="y" if grid == "y" else "x", alpha=0.25)
