"""What nodes draw: strengths over blocks, edits over the schedule, and how far two prompts are apart."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from latentloom.comfy.differences import Apart
from latentloom.comfy.edits import Edit

WIDTH = 7.2
"""Inches, at 100 dots each."""
BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "0.55"  # of Okabe and Ito's colours, for people with any colour vision
STEPS = 50
"""Columns of a map of the schedule."""


def plot_strengths(strengths: Sequence[float], title: str) -> Figure:
    """A bar per block, and the line through them.

    Args:
        strengths: one per block, 0 to 1.
        title: above it.
    """
    figure = Figure(figsize=(WIDTH, 2.6), dpi=100, layout="constrained")
    axes = figure.subplots()
    blocks = range(len(strengths))
    axes.bar(blocks, strengths, color=BLUE, alpha=0.45, width=0.9)
    axes.plot(blocks, strengths, color=BLUE, marker="o", markersize=3, linewidth=1.2)
    axes.set(title=title, xlabel="block", ylabel="strength", ylim=(0, 1.05), xlim=(-0.7, len(strengths) - 0.3))
    _mark_blocks(axes, len(strengths))
    _plain(axes)
    return figure


def plot_edits(edits: Sequence[Edit]) -> Figure:
    """A panel per edit: blocks up, share of the schedule to the right, strength as colour.

    Args:
        edits: at least one.
    """
    figure = Figure(figsize=(WIDTH, 0.7 + 2.2 * len(edits)), dpi=100, layout="constrained")
    panels = figure.subplots(len(edits), 1, squeeze=False)[:, 0]
    top = max(1.0, *(abs(strength) for edit in edits for strength in edit.strengths))
    signed = any(strength < 0 for edit in edits for strength in edit.strengths)
    scale = Normalize(-top if signed else 0, top)
    colours = "RdBu_r" if signed else "Blues"
    at = (np.arange(STEPS) + 0.5) / STEPS
    for axes, edit in zip(panels, edits, strict=True):
        acts = (at >= edit.window[0]) & (at <= edit.window[1]) & (edit.state != "not active")
        values = np.array(edit.strengths)[:, None] * acts
        num_blocks = len(edit.strengths)
        axes.imshow(
            values, cmap=colours, norm=scale, aspect="auto", origin="lower", extent=(0, 100, -0.5, num_blocks - 0.5)
        )
        axes.set_title(f"{edit.what}: {edit.state}", fontsize=10)
        axes.set_ylabel("block")
        _mark_blocks(axes, num_blocks, along_y=True)
    panels[-1].set_xlabel("percent of the schedule: noise at 0, the clip at 100")
    figure.colorbar(ScalarMappable(scale, colours), ax=panels.tolist(), label="strength", shrink=0.9)
    return figure


def plot_differences(places: Sequence[Apart]) -> Figure:
    """Two prompts at each place: how far apart per token, and how the difference spreads over channels.

    Args:
        places: the encoder's rows, and where they are known those after the projection.
    """
    figure = Figure(figsize=(WIDTH, 2.7 * len(places)), dpi=100, layout="constrained")
    grid = figure.subplots(len(places), 2, squeeze=False)
    for (tokens, channels), apart, colour in zip(grid, places, (BLUE, ORANGE), strict=False):
        tokens.bar(range(len(apart.per_token)), apart.per_token.numpy(), color=colour, width=0.9)
        tokens.set_title(f"{apart.place}: per token", fontsize=10)
        tokens.set(xlabel="token", ylabel="difference / mean length")
        _draw_channels(channels, apart, colour)
    return figure


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
