"""A page on the control vectors of one attribute: what they move, what they leave, and the clips."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from latentloom.micro.attributes import VALUES
from latentloom.micro.report import format_accuracy
from latentloom.micro.score import chance
from latentloom.micro.steering_control import AblationScore, Gallery, ValueScore
from latentloom.runs import Report
from latentloom.steering.control.vector import ControlVector


def write_control_report(
    path: Path,
    family: Mapping[str, ControlVector],
    scores: Sequence[ValueScore],
    ablation: AblationScore,
    gallery: Gallery,
) -> None:
    """Write the page.

    Args:
        path: of the page.
        family: the attribute's control vectors by value.
        scores: of the same values.
        ablation: of their span.
        gallery: what people look at first.
    """
    attribute = ablation.attribute
    report = Report(f"Control vectors: {attribute}")
    report.paragraph(
        f"One vector per {attribute}, fitted on pairs of sentences that differ in the {attribute} word alone. "
        f"To set the {attribute} of a clip, all that the vectors tell apart is taken out of the prompt's rows, then "
        "one vector is added. The prompts below ask for combinations that MicroWan never saw, and for another value."
    )
    report.paragraph(verdict(scores, ablation))
    report.heading("Clips")
    for index, prompt in enumerate(gallery.prompts):
        report.clips(
            [
                (f"{name}: {prompt}" if name == "plain" else name, clips[index], gallery.fps)
                for name, clips in gallery.clips.items()
            ]
        )
    report.heading(f"Setting the {attribute}")
    report.table(*moved_table(scores))
    report.paragraph(
        "Percent of clips, with 95 % Wilson intervals. Moved: the clip shows the value. The other columns: the clip "
        "still shows what its prompt asked for; in parentheses the same clips without the vector."
    )
    report.figure(plot_moved(scores), "Held-out clips that show the value that was set, and what else they kept.")
    report.heading(f"Taking the {attribute} out")
    report.table(*ablation_table(ablation))
    report.paragraph(
        f"With the span taken out of the prompt's rows, the {attribute} asked for is read from "
        f"{100 * ablation.ablated[attribute].share:.1f} % of clips; a guess reads {100 * chance(attribute):.1f} %."
    )
    report.heading("How alike the vectors are")
    values = list(family)
    cosines = [[float(family[a].cosine(family[b]).mean()) for b in values] for a in values]
    report.figure(plot_cosines(values, cosines), "Cosine between the vectors, averaged over blocks.")
    report.write(path)


def verdict(scores: Sequence[ValueScore], ablation: AblationScore) -> str:
    """What was found, in two sentences."""
    right, total = sum(score.moved.right for score in scores), sum(score.moved.total for score in scores)
    least = min(scores, key=lambda score: score.moved.share)
    return (
        f"Setting a value moves {100 * right / total:.1f} % of {total} held-out clips to it (least: {least.value}, "
        f"{100 * least.moved.share:.1f} %). Taking the span out leaves {ablation.times_chance:.2f} times what a guess "
        f"reads of the {ablation.attribute}."
    )


def moved_table(scores: Sequence[ValueScore]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: per value, clips moved and other attributes kept."""
    others = list(scores[0].kept)
    rows = [
        [
            score.value,
            f"{score.strength:g}",
            str(score.moved.total),
            format_accuracy(score.moved),
            *(f"{100 * score.kept[name].share:.1f} ({100 * score.kept_plain[name].share:.1f})" for name in others),
        ]
        for score in scores
    ]
    return ["value", "strength", "n", "moved %", *(f"{name} %" for name in others)], rows


def ablation_table(ablation: AblationScore) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: every attribute without and with the ablation."""
    rows = [
        [label, *(format_accuracy(table[name]) for name in VALUES)]
        for label, table in (("plain", ablation.plain), ("taken out", ablation.ablated))
    ]
    rows.append(["a guess", *(f"{100 * chance(name):.1f}" for name in VALUES)])
    return ["prompts", *(f"{name} %" for name in VALUES)], rows


def plot_moved(scores: Sequence[ValueScore]) -> Figure:
    """Bars per value: moved, and the other attributes kept."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    axes = figure.subplots()
    series = {"moved": [score.moved for score in scores]}
    series |= {f"{name} kept": [score.kept[name] for score in scores] for name in scores[0].kept}
    width = 0.8 / len(series)
    for number, (name, accuracies) in enumerate(series.items()):
        shares = np.array([accuracy.share for accuracy in accuracies])
        low, high = np.array([accuracy.interval for accuracy in accuracies]).T
        place = np.arange(len(scores)) - 0.4 + width * (number + 0.5)
        axes.bar(place, 100 * shares, width * 0.92, label=name)
        axes.errorbar(
            place, 100 * shares, 100 * np.abs([shares - low, high - shares]), fmt="none", ecolor="black", lw=0.8
        )
    axes.set_xticks(range(len(scores)), [score.value for score in scores])
    axes.set_ylabel("clips, %")
    axes.set_ylim(0, 105)
    figure.legend(loc="outside upper center", ncols=len(series), frameon=False)
    return figure


def plot_cosines(values: Sequence[str], cosines: Sequence[Sequence[float]]) -> Figure:
    """A heat map of the cosines between vectors."""
    figure = Figure(figsize=(4.8, 4), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(np.array(cosines), vmin=-1, vmax=1, cmap="RdBu_r")
    axes.set_xticks(range(len(values)), values, rotation=30, ha="right")
    axes.set_yticks(range(len(values)), values)
    for row, line in enumerate(cosines):
        for column, cosine in enumerate(line):
            axes.text(
                column,
                row,
                f"{cosine:.2f}",
                ha="center",
                va="center",
                fontsize=8,
                color="white" if abs(cosine) > 0.7 else "black",
            )
    figure.colorbar(image, ax=axes, shrink=0.8)
    return figure
