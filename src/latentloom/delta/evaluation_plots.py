"""The pictures of an evaluation; every adjustment keeps its colour through all of them."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from latentloom.delta.bootstrap import Estimate
from latentloom.delta.evaluation import Evaluation, GateOutcome

# Okabe and Ito's colours, which people with any colour vision tell apart; the reference is gray
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_GRAY = "0.55"
_PANELS_IN_A_ROW = 3
_LOGARITHMIC_FROM = 30  # ratio of the largest to the smallest drift


def plot_evaluation(evaluation: Evaluation) -> dict[str, Figure]:
    """All pictures by file name, in the order of the page; what has nothing to show is left out."""
    adjusted = len(evaluation.outcomes) > 1
    figures = {"cosines": plot_cosines(evaluation)}
    if adjusted:
        figures["before_after"] = plot_before_after(evaluation)
    figures["retrieval"] = plot_retrieval(evaluation)
    if adjusted:
        figures["gain_by_length"] = plot_gain_by_length(evaluation)
        figures["drift"] = plot_drift(evaluation)
    if evaluation.gates:
        figures["gates"] = plot_gates(evaluation)
    return figures


def plot_cosines(evaluation: Evaluation) -> Figure:
    """How cosines to the rewrite, and gains, are distributed over the pairs."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for name, colour in _colours(evaluation).items():
        left.ecdf(evaluation.outcomes[name].cosine.numpy(), color=colour, label=name)
        if name != evaluation.reference:
            right.ecdf(evaluation.gain(name).numpy(), color=colour)
    right.axvline(0, color="0.3", linewidth=0.8, linestyle="dotted")
    left.set(xlabel="cosine to the rewrite", ylabel="share of pairs at or below")
    right.set(xlabel=f"gain in cosine over {evaluation.reference}")
    for panel in (left, right):
        _plain(panel)
    figure.legend(loc="outside upper center", ncols=min(4, len(evaluation.outcomes)), frameon=False, fontsize=9)
    return figure


def plot_before_after(evaluation: Evaluation) -> Figure:
    """Each pair's cosine before against after, one panel per adjustment; above the diagonal is a gain."""
    names = [name for name in evaluation.outcomes if name != evaluation.reference]
    columns = min(_PANELS_IN_A_ROW, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(3.1 * columns + 0.4, 3.2 * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat)
    before = evaluation.outcomes[evaluation.reference].cosine.numpy()
    colours = _colours(evaluation)
    cosines = [outcome.cosine.numpy() for outcome in evaluation.outcomes.values()]
    low, high = min(each.min() for each in cosines), max(each.max() for each in cosines)
    margin = 0.04 * (high - low) + 1e-3
    limits = (low - margin, high + margin)
    for panel, name in zip(panels, names, strict=False):
        size = max(3.0, min(18.0, 6000 / len(evaluation)))
        # as pixels: thousands of points as outlines make a page of megabytes
        after = evaluation.outcomes[name].cosine.numpy()
        panel.scatter(before, after, s=size, color=colours[name], alpha=0.55, linewidths=0, rasterized=True)
        panel.plot(limits, limits, color="0.3", linewidth=0.8, linestyle="dotted")
        share = 100 * evaluation.outcomes[name].estimates["share_gaining"].mean
        panel.set_title(f"{name}: {share:.0f} % of pairs gain", fontsize=10)
        panel.set(xlim=limits, ylim=limits, aspect="equal")
        _plain(panel)
    for panel in panels[len(names) :]:
        panel.set_visible(False)
    figure.supxlabel("cosine before", fontsize=10)
    figure.supylabel("cosine after", fontsize=10)
    return figure


def plot_retrieval(evaluation: Evaluation) -> Figure:
    """How often the right rewrite is found first (R@1), and the mean reciprocal rank."""
    figure = Figure(figsize=(9, _bar_height(evaluation)), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for panel, key, label in zip(panels, ("recall_at_1", "mrr"), ("R@1", "mean reciprocal rank"), strict=True):
        values = [outcome.estimates[key] for outcome in evaluation.outcomes.values()]
        panel.set(xlabel=f"{label}, among {_count(len(evaluation), 'rewrite')}")
        panel.set_xlim(0, 1.25 * (max(value.high for value in values) or 1.0))
        form = "{:.1%}" if key == "recall_at_1" else "{:.3f}"
        _bars(panel, evaluation, values, [form.format(value.mean).replace("%", " %") for value in values])
        panel.set_xticks([tick for tick in panel.get_xticks() if tick <= 1])
    panels[0].xaxis.set_major_formatter(PercentFormatter(1))
    return figure


def plot_gain_by_length(evaluation: Evaluation) -> Figure:
    """The gain in cosine by the number of tokens of the base prompt."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    axes = figure.subplots()
    names = [name for name in evaluation.outcomes if name != evaluation.reference]
    buckets = evaluation.outcomes[evaluation.reference].buckets
    colours = _colours(evaluation)
    for number, name in enumerate(names):
        shift = 0.6 * ((number + 0.5) / len(names) - 0.5)
        gains = [bucket.gain for bucket in evaluation.outcomes[name].buckets]
        _marks(axes, np.arange(len(buckets)) + shift, gains, colours[name], name)
    axes.axhline(0, color="0.3", linewidth=0.8, linestyle="dotted")
    labels = [f"{bucket.tokens}\n{_count(bucket.num_pairs, 'pair')}" for bucket in buckets]
    axes.set(xticks=range(len(buckets)), xticklabels=labels, xlim=(-0.6, len(buckets) - 0.4))
    axes.set(xlabel="tokens of the base prompt", ylabel="gain in cosine")
    _plain(axes)
    figure.legend(loc="outside upper center", ncols=min(4, len(names)), frameon=False, fontsize=9)
    return figure


def plot_drift(evaluation: Evaluation) -> Figure:
    """How far each adjustment turns prompts that are already rewritten."""
    figure = Figure(figsize=(9, _bar_height(evaluation)), layout="constrained")
    axes = figure.subplots()
    drifts = [outcome.estimates["drift"] for outcome in evaluation.outcomes.values()]
    worst = [float(outcome.drift.quantile(0.9)) for outcome in evaluation.outcomes.values()]
    positive = [value for drift, p90 in zip(drifts, worst, strict=True) for value in (drift.mean, p90) if value > 0]
    if positive and max(positive) > _LOGARITHMIC_FROM * min(positive):
        axes.set_xscale("log")
        axes.set_xlim(min(positive) / 3, max(positive) * 10)
    else:
        axes.set_xlim(0, 1.3 * max([*positive, *(drift.high for drift in drifts)]) or 1.0)
    labels = [f"mean {drift.mean:.2g}, p90 {p90:.2g}" for drift, p90 in zip(drifts, worst, strict=True)]
    _bars(axes, evaluation, drifts, labels, worst)
    shown = [number for number, p90 in enumerate(worst) if p90 > 0]
    axes.scatter([worst[number] for number in shown], shown, marker="|", s=120, color="0.15")
    axes.set(xlabel="identity drift, 1 - cosine (bar: mean with interval, tick: p90)")
    return figure


def plot_gates(evaluation: Evaluation) -> Figure:
    """How far each gate opens, by the number of tokens of the prompt, for base prompts and for rewrites."""
    columns = min(2, len(evaluation.gates))
    rows = -(-len(evaluation.gates) // columns)
    figure = Figure(figsize=(5.2 * columns + 0.4, 3.2 * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, sharey=True, squeeze=False).flat)
    for panel, (name, gate) in zip(panels, evaluation.gates.items(), strict=False):
        _gate_panel(panel, gate)
        panel.set_title(name, fontsize=10)
    for panel in panels[len(evaluation.gates) :]:
        panel.set_visible(False)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False, fontsize=9)
    return figure


def _gate_panel(panel: Axes, gate: GateOutcome) -> None:
    order = {bucket.tokens: bucket for bucket in (*gate.base_buckets, *gate.rewritten_buckets)}
    names = sorted(order, key=lambda tokens: int(tokens.split("-")[0].rstrip("+")))
    sides = (
        ("base prompts", gate.base_buckets, -0.12, "#0072b2"),
        ("rewrites", gate.rewritten_buckets, 0.12, "#d55e00"),
    )
    for label, buckets, shift, colour in sides:
        places = np.array([names.index(bucket.tokens) + shift for bucket in buckets])
        _marks(panel, places, [bucket.gate for bucket in buckets], colour, label)
        panel.plot(places, [bucket.gate.mean for bucket in buckets], color=colour, linewidth=1, alpha=0.5)
    panel.set(xticks=range(len(names)), xticklabels=names, xlim=(-0.6, len(names) - 0.4), ylim=(-0.04, 1.04))
    panel.set(xlabel="tokens of the prompt", ylabel="gate")
    _plain(panel)


def _bars(
    panel: Axes,
    evaluation: Evaluation,
    values: Sequence[Estimate],
    labels: Sequence[str],
    marks: Sequence[float] | None = None,
) -> None:
    """Horizontal bars with intervals, the first adjustment on top; labels stand clear of intervals and marks."""
    for number, (value, colour) in enumerate(zip(values, _colours(evaluation).values(), strict=True)):
        panel.barh(number, value.mean, 0.62, color=colour)
        panel.errorbar(
            value.mean,
            number,
            xerr=[[value.mean - value.low], [value.high - value.mean]],
            fmt="none",
            ecolor="0.2",
            elinewidth=1,
            capsize=3,
        )
        end = max(value.high, marks[number] if marks else value.high)
        at = end if end > 0 else panel.get_xlim()[0]  # zero has no place on a logarithmic axis
        offset = {"xytext": (6, 0), "textcoords": "offset points"}
        panel.annotate(labels[number], (at, number), **offset, va="center", fontsize=9)
    panel.set_yticks(range(len(values)), list(evaluation.outcomes))
    panel.set_ylim(len(values) - 0.5, -0.5)
    _plain(panel, grid="x")


def _marks(axes: Axes, places: np.ndarray, values: Sequence[Estimate], colour: str, label: str) -> None:
    means = np.array([value.mean for value in values])
    reach = np.array([[value.mean - value.low, value.high - value.mean] for value in values]).T
    axes.errorbar(
        places, means, yerr=reach, fmt="o", markersize=5, color=colour, elinewidth=1.2, capsize=3, label=label
    )


def _colours(evaluation: Evaluation) -> dict[str, str]:
    names = [name for name in evaluation.outcomes if name != evaluation.reference]
    chosen = {name: _COLOURS[number % len(_COLOURS)] for number, name in enumerate(names)}
    return {evaluation.reference: _GRAY} | chosen


def _bar_height(evaluation: Evaluation) -> float:
    return 1.0 + 0.38 * len(evaluation.outcomes)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _plain(axes: Axes, grid: str = "both") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(axis="both" if grid == "both" else "x", alpha=0.25)
