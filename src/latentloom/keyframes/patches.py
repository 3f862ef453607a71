"""Images as patch tokens and back, without loss."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from latentloom.errors import ShapeError


def patchify(images: Float[Tensor, "B C H W"], patch: int) -> Float[Tensor, "B N D"]:
    """Cut images into square patches, one token each; `unpatchify` gives the images back bit for bit.

    Args:
        images: B images of C channels, H rows and W columns.
        patch: side of a patch, in pixels or cells of the latent grid; H and W are multiples of it.

    Returns:
        N = (H / patch) * (W / patch) tokens row by row, of D = C * patch * patch values: channel, row, column.

    Raises:
        ShapeError: the patch does not divide the height and the width.
    """
    height, width = images.shape[-2:]
    if patch < 1 or height % patch or width % patch:
        raise ShapeError(f"patches of side {patch} do not tile images of {height}x{width}; give a divisor of both")
    return F.pixel_unshuffle(images, patch).flatten(2).mT.contiguous()


def unpatchify(
    tokens: Float[Tensor, "B N D"], patch: int, channels: int, rows: int, columns: int
) -> Float[Tensor, "B {channels} {rows*patch} {columns*patch}"]:
    """Put patch tokens back together as images.

    Args:
        tokens: as `patchify` gives them.
        patch: side of a patch, as it was cut.
        channels: channels of the image, C.
        rows: patches from top to bottom.
        columns: patches from left to right.

    Raises:
        ShapeError: the tokens are not rows * columns of channels * patch * patch values.
    """
    if tokens.shape[1:] != (rows * columns, channels * patch * patch):
        raise ShapeError(
            f"{tokens.shape[1]} tokens of {tokens.shape[2]} values are not {rows}x{columns} patches "
            f"of {channels}x{patch}x{patch}; give the numbers that the image was cut with"
        )
    return F.pixel_shuffle(tokens.mT.unflatten(2, (rows, columns)), patch)
