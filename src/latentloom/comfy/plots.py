"""What nodes draw: edits over blocks and schedule, and how far two prompts are apart."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from latentloom.comfy.differences import Apart
from latentloom.comfy.edits import Edit
from latentloom.comfy.trial import Trial

WIDTH = 7.2
"""Inches, at 100 dots each."""
# of Okabe and Ito's colours, for people with any colour vision
BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "0.55"
STEPS = 50
"""Columns of a map of the schedule."""


def plot_edits(edits: Sequence[Edit]) -> Figure:
    """A panel per edit: blocks up, share of the schedule to the right, strength as colour.

    Args:
        edits: at least one.
    """
    figure = Figure(figsize=(WIDTH, 0.4 + 2.1 * len(edits)), dpi=100, layout="constrained")
    panels = figure.subplots(len(edits), 1, squeeze=False)[:, 0]
    for axes, edit in zip(panels, edits, strict=True):
        _draw_edit(axes, edit)
    panels[-1].set_xlabel("percent of the schedule: noise at 0, the clip at 100")
    return figure


def _draw_edit(axes: Axes, edit: Edit) -> None:
    """One map with a scale of its own: a vector's strength of 4 would leave nothing of an injection's 0.5."""
    at = (np.arange(STEPS) + 0.5) / STEPS
    acts = (at >= edit.window[0]) & (at <= edit.window[1]) & (edit.state != "not active")
    strengths, num_blocks = np.array(edit.strengths), len(edit.strengths)
    top, is_signed = max(1.0, float(np.abs(strengths).max())), bool((strengths < 0).any())
    scale = Normalize(-top if is_signed else 0, top)
    colours = "RdBu_r" if is_signed else "Blues"
    values = np.where(strengths[:, None] * acts == 0, np.nan, strengths[:, None] * acts)
    axes.set_facecolor("0.93")
    extent = (0, 100, -0.5, num_blocks - 0.5)
    axes.imshow(values, cmap=colours, norm=scale, aspect="auto", origin="lower", extent=extent)
    axes.hlines(np.arange(num_blocks - 1) + 0.5, 0, 100, colors="white", linewidth=0.8)
    side = "" if edit.state == "pattern" else f", side {edit.side}"
    axes.set_title(f"{edit.what}{side}: {edit.state}", fontsize=10)
    axes.set_ylabel("block")
    _mark_blocks(axes, num_blocks, along_y=True)
    figure = axes.get_figure()
    if figure is not None:
        figure.colorbar(ScalarMappable(scale, colours), ax=axes, label="strength")


def plot_differences(places: Sequence[Apart], trial: Trial | None = None) -> Figure:
    """Two prompts at each place: how far apart per token, and how the difference spreads over channels.

    Args:
        places: the encoder's rows, and where they are known those after the projection.
        trial: what edits changed in one step, below.
    """
    changes = None if trial is None else trial.changes
    num_rows = len(places) + (changes is not None)
    figure = Figure(figsize=(WIDTH, 2.7 * num_rows), dpi=100, layout="constrained")
    rows = figure.add_gridspec(num_rows, 2)
    grid = [[figure.add_subplot(rows[row, column]) for column in range(2)] for row in range(len(places))]
    if trial is not None and changes is not None:
        _draw_trial(figure.add_subplot(rows[-1, :]), trial, changes)
    for (tokens, channels), apart, colour in zip(grid, places, (BLUE, ORANGE), strict=False):
        tokens.bar(range(len(apart.per_token)), apart.per_token.numpy(), color=colour, width=0.9)
        tokens.set_title(f"{apart.place}: per token", fontsize=10)
        tokens.set(xlabel="token", ylabel="difference / mean length")
        _draw_channels(channels, apart, colour)
    return figure


def _draw_trial(axes: Axes, trial: Trial, changes: Sequence[float]) -> None:
    axes.bar(trial.called, [100 * change for change in changes], color=GREEN, width=0.9)
    axes.set_title(f"trial run at {trial.percent:.0%} of the schedule: what the edits change", fontsize=10)
    axes.set(xlabel="block", ylabel="change of its input, %", xlim=(-0.7, trial.num_blocks - 0.3))
    _mark_blocks(axes, trial.num_blocks)
    _plain(axes)


def _draw_channels(axes: Axes, apart: Apart, colour: str) -> None:
    """Every channel, and the numbers of those that differ most."""
    values = apart.per_channel
    axes.plot(values.numpy(), color=colour, linewidth=0.7)
    for channel in apart.top_channels[:3]:
        axes.annotate(
            str(channel),
            (channel, float(values[channel])),
            textcoords="offset points",
            xytext=(3, 2),
            fontsize=8,
            color=GREY,
        )
    axes.set(xlabel="channel", ylabel="mean |difference|", ylim=(0, 1.12 * float(values.max()) or 1))
    axes.set_title(f"{apart.place}: per channel", fontsize=10)
    _plain(axes)


def _mark_blocks(axes: Axes, num_blocks: int, along_y: bool = False) -> None:
    ticks = range(0, num_blocks, 1 if num_blocks <= 10 else 5)
    (axes.set_yticks if along_y else axes.set_xticks)(list(ticks))


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
