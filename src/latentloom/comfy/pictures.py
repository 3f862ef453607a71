"""Plots as the pictures that a node shows on itself and hands on."""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = "viridis"
MOST_APART = 64
"""Tokens that can still be told from each other in a plot; with more, lines and gaps between them only blur it."""


def figure_picture(figure: "Figure") -> Float[Tensor, "H W 3"]:
    """The figure drawn at its own size and resolution, values from 0 to 1.

    Args:
        figure: made as `matplotlib.figure.Figure(...)`, without pyplot, which would keep state between nodes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = torch.frombuffer(bytearray(canvas.buffer_rgba()), dtype=torch.uint8)
    width, height = canvas.get_width_height()
    return pixels.view(height, width, 4)[..., :3].float() / 255


def draw_tokens(tokens: Float[Tensor, "L D"], title: str) -> "Figure":
    """The tokens of one prompt along their first two principal components, and beside them their norms.

    Args:
        tokens: L tokens of D channels; L may be 0.
        title: of the figure.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), dpi=100, layout="constrained")
    figure.suptitle(title, fontsize=11)
    plane, bars = figure.subplots(1, 2)
    places, shares = principal_plane(tokens)
    _draw_plane(plane, places, shares)
    order = range(len(tokens))
    width = 0.8 if len(tokens) <= MOST_APART else 1.0
    bars.bar(order, tokens.float().norm(dim=1).tolist(), color=_colours(len(tokens)), width=width)
    bars.set(title="norm of each token", xlabel="token", ylabel="L2 norm", xlim=(-0.5, max(len(tokens), 1) - 0.5))
    bars.margins(y=0.1)
    bars.spines[["top", "right"]].set_visible(False)
    return figure


def principal_plane(tokens: Float[Tensor, "L D"]) -> tuple[Float[Tensor, "L 2"], tuple[float, float]]:
    """Places of the tokens along the two directions in which they vary most, and these directions' shares of variance.

    The token farthest along a direction lies at its positive end, so that the same tokens always give the same picture.

    Args:
        tokens: L tokens of D channels; fewer than three have nothing in one or both directions.
    """
    values = tokens.float()
    places = values.new_zeros(len(values), 2)
    if not len(values):
        return places, (0.0, 0.0)
    centred = values - values.mean(dim=0)
    # of the L x L inner products, which are never more than 512: the same as of the D x D covariance
    variances, vectors = torch.linalg.eigh(centred @ centred.T)
    variances = variances.clamp_min(0).flip(0)
    found = vectors.flip(1)[:, :2] * variances[:2].sqrt()
    farthest = found.gather(0, found.abs().argmax(dim=0, keepdim=True))
    places[:, : found.shape[1]] = torch.where(farthest < 0, -found, found)
    total = max(float(variances.sum()), 1e-30)
    first, second, *_ = [*(variances / total).tolist(), 0.0]
    return places, (first, second)


def _draw_plane(axes: "Axes", places: Float[Tensor, "L 2"], shares: tuple[float, float]) -> None:
    from matplotlib.patheffects import withStroke
    from matplotlib.ticker import MaxNLocator

    x, y = places.T.tolist()
    few = len(x) <= MOST_APART
    if few:
        axes.plot(x, y, color="0.85", linewidth=0.7, zorder=1)
    points = axes.scatter(
        x, y, c=list(range(len(x))), cmap=COLOURS, s=36 if few else 14, edgecolors="white", linewidths=0.4, zorder=2
    )
    if x:
        axes.figure.colorbar(points, ax=axes, label="token", shrink=0.8, ticks=MaxNLocator(integer=True))
        for place, name in ((0, "first"), (len(x) - 1, "last")):
            label = axes.annotate(name, (x[place], y[place]), xytext=(6, 6), textcoords="offset points", fontsize=9)
            label.set_path_effects([withStroke(linewidth=3, foreground="white")])
    axes.set(
        title="tokens in their principal plane",
        xlabel=f"component 1 ({shares[0]:.0%} of variance)",
        ylabel=f"component 2 ({shares[1]:.0%})",
    )
    axes.margins(0.12)
    axes.spines[["top", "right"]].set_visible(False)


def _colours(count: int) -> list[tuple[float, ...]]:
    import matplotlib

    scale = matplotlib.colormaps[COLOURS]
    return [scale(place / max(count - 1, 1)) for place in range(count)]
