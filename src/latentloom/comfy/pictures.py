"""Plots as the pictures that a node shows on itself and hands on."""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
