"""Vectors in the plane, class sizes, and kernel distances, as figures."""

import importlib
import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_POINTS = 1500
MAX_COLOURS = 10  # more cannot be told apart; the largest groups have one each, the rest is grey
_GREY = "#c4c8cf"


def has_umap() -> bool:
    """True where umap-learn is installed."""
    return importlib.util.find_spec("umap") is not None


def tsne(vectors: Float[Tensor, "N D"], seed: int = 0) -> Float[Tensor, "N 2"]:
    """Vectors laid out in the plane by t-SNE, so that near ones stay near; at least four.

    Source: van der Maaten and Hinton 2008, "Visualizing Data using t-SNE".
    """
    from sklearn.manifold import TSNE  # seconds to import

    perplexity = min(30.0, (len(vectors) - 1) / 3)
    layout = TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(vectors.float().numpy())
    return torch.from_numpy(np.asarray(layout, dtype=np.float32))


def umap(vectors: Float[Tensor, "N D"], seed: int = 0) -> Float[Tensor, "N 2"]:
    """Vectors laid out in the plane by UMAP; only where umap-learn is installed.

    Source: McInnes et al. 2018, arXiv:1802.03426.
    """
    library = importlib.import_module("umap")
    mapper = library.UMAP(n_neighbors=min(15, len(vectors) - 1), random_state=seed, n_jobs=1)
    return torch.from_numpy(np.asarray(mapper.fit_transform(vectors.float().numpy()), dtype=np.float32))


def plane_figure(
    layout: Float[Tensor, "N 2"], groups: Sequence[tuple[str, Int64[Tensor, "N"], Sequence[str]]]
) -> "Figure":
    """The same points once per grouping, side by side, each coloured by its groups.

    Args:
        layout: places of the points.
        groups: (title, group of each point, names by group); only the ten largest groups have a colour.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(groups), 5.4), layout="constrained")
    for place, (title, labels, names) in enumerate(groups, start=1):
        axes = figure.add_subplot(1, len(groups), place)
        _scatter(axes, layout, labels, names)
        axes.set_title(title)
        axes.set_xticks([])
        axes.set_yticks([])
    return figure


def occupancy_figure(counts: Int64[Tensor, "K"]) -> "Figure":
    """Members per class: by rank, and how many classes have how many."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    members = counts.sort(descending=True).values.numpy()
    left.fill_between(np.arange(1, len(members) + 1), members, step="mid", color="#4c78a8")
    left.axhline(members.mean(), color="#b03a2e", linewidth=1)
    left.annotate(
        f"mean {members.mean():.1f}", (len(members), members.mean()), ha="right", va="bottom", color="#b03a2e"
    )
    left.set(xlabel="class, by size", ylabel="members", ylim=(0, None))
    top = int(members.max())
    right.hist(members, bins=np.linspace(-0.5, top + 0.5, min(top + 2, 41)).tolist(), color="#4c78a8")
    right.set(xlabel="members", ylabel="classes")
    return figure


def distance_figure(within: Float[Tensor, "W"], across: Float[Tensor, "A"], temperatures: Sequence[float]) -> "Figure":
    """Distances to samples of the same and of other classes, and the affinity of each temperature over them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 3.4), layout="constrained")
    axes = figure.add_subplot()
    end = float(torch.cat([within, across]).max())
    bins = np.linspace(0, end, 50).tolist()
    for values, name, colour in ((across, "other classes", "#c4c8cf"), (within, "same class", "#4c78a8")):
        axes.hist(values.numpy(), bins=bins, density=True, alpha=0.75, label=name, color=colour)
    axes.set(xlabel="distance, in mean distances (the logit is its negative over the temperature)", ylabel="density")
    other = axes.twinx()
    grid = np.linspace(0, end, 400)
    for number, temperature in enumerate(temperatures):
        nearest = float(torch.cat([within, across]).min())
        style = ("-", "--", ":", "-.")[number % 4]
        line = np.exp(-np.maximum(grid - nearest, 0) / temperature)
        other.plot(grid, line, style, color="#b03a2e", linewidth=1, label=f"temperature {temperature:g}")
    other.set(ylabel="pull, over that of the nearest", ylim=(0, 1.02))
    handles = [*axes.get_legend_handles_labels()[0], *other.get_legend_handles_labels()[0]]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=8)
    return figure


def _scatter(axes: "Axes", layout: Tensor, labels: Tensor, names: Sequence[str]) -> None:
    import matplotlib as mpl

    colours = mpl.colormaps["tab10"](range(MAX_COLOURS))
    counts = torch.bincount(labels, minlength=len(names))
    largest = counts.argsort(descending=True, stable=True)[:MAX_COLOURS].tolist()
    is_other = torch.ones(len(labels), dtype=torch.bool)
    for number in largest:
        is_other &= labels != number
    points = layout.numpy()
    if is_other.any():
        rest = is_other.numpy()
        name = f"{int((counts > 0).sum()) - len(largest)} others"
        axes.scatter(points[rest, 0], points[rest, 1], s=7, color=_GREY, linewidths=0, label=name)
    for number, colour in zip(largest, colours, strict=False):
        if counts[number]:
            mine = (labels == number).numpy()
            axes.scatter(points[mine, 0], points[mine, 1], s=11, color=colour, linewidths=0, label=names[number])
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.01), ncols=3, frameon=False, fontsize=8, markerscale=1.6)
