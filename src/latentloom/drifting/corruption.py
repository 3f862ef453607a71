"""What a refiner is given: a few patches of an image, and an interpolation of the others."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from latentloom.drifting.config import DriftConfig
from latentloom.errors import ConfigError
from latentloom.keyframes import (
    interpolate_harmonic,
    interpolate_idw,
    level_counts,
    nested_masks,
    patchify,
    unpatchify,
)


@dataclass(frozen=True, eq=False)
class Holes:
    """Which patches of each image are given.

    Attributes:
        given: true where a patch is given.
        level: of corruption, from 0; the last level has the fewest given patches.
        noise: to add to missing patches; None for none.
    """

    given: Bool[Tensor, "B N"]
    level: Int64[Tensor, "B"]
    noise: Float[Tensor, "B N D"] | None

    def __getitem__(self, rows: slice) -> "Holes":
        return Holes(self.given[rows], self.level[rows], None if self.noise is None else self.noise[rows])

    def to(self, device: torch.device) -> "Holes":
        """The same holes on another device."""
        noise = None if self.noise is None else self.noise.to(device)
        return Holes(self.given.to(device), self.level.to(device), noise)


class Keypatches:
    """Cuts images of one size into patches, takes some away and fills them in.

    Args:
        config: patch size, levels, interpolation and noise.
        shape: channels, height and width of the images.

    Raises:
        ConfigError: patches that do not divide the image, or more levels than there are numbers of patches.
    """

    def __init__(self, config: DriftConfig, shape: tuple[int, int, int]) -> None:
        _, height, width = shape
        self.patch = config.patch_size or (2 if config.dataset == "digits" else 4)
        if height % self.patch or width % self.patch:
            raise ConfigError(f"patch_size = {self.patch} does not divide {height}x{width}; give one that does")
        if (height, width) == (self.patch, self.patch):
            raise ConfigError(f"patch_size = {self.patch} makes one patch of {height}x{width}; give a smaller one")
        self.config = config
        self.shape = shape
        self.grid = (height // self.patch, width // self.patch)
        min_given = config.min_key_patches or max(self.num_patches // 4, 1)
        self.counts = level_counts(self.num_patches, config.num_levels, min_given, config.mask_schedule)

    @property
    def num_patches(self) -> int:
        """Patches of an image, N."""
        return self.grid[0] * self.grid[1]

    @property
    def num_values(self) -> int:
        """Numbers in a patch, D."""
        return self.shape[0] * self.patch**2

    def draw_holes(self, num: int, generator: torch.Generator, level: int | None = None) -> "Holes":
        """Draw which patches of `num` images are given.

        Args:
            num: images, B.
            generator: on the CPU, where the holes will lie.
            level: of all images; drawn for each image when None.
        """
        masks = nested_masks(self.counts, self.num_patches, num, generator)
        levels = torch.randint(len(self.counts), (num,), generator=generator)
        if level is not None:
            levels = torch.full_like(levels, level)
        noise = None
        if self.config.noise_std:
            noise = torch.randn(num, self.num_patches, self.num_values, generator=generator) * self.config.noise_std
        return Holes(masks[levels, torch.arange(num)], levels, noise)

    def to_tokens(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N D"]:
        """The images' patches, row by row."""
        return patchify(images, self.patch)

    def to_images(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B C H W"]:
        """The images of these patches."""
        return unpatchify(tokens, self.patch, self.shape[0], *self.grid)

    @torch.no_grad()
    def fill(self, tokens: Float[Tensor, "B N D"], holes: Holes) -> Float[Tensor, "B N D"]:
        """Interpolate the missing patches, and add their noise; given patches stay as they are, bit for bit."""
        config = self.config
        if config.interp_mode == "idw":
            filled = interpolate_idw(tokens, holes.given, self.grid, config.idw_power)
        else:
            filled = interpolate_harmonic(
                tokens,
                holes.given,
                self.grid,
                sigma_feature=config.sigma_feature,
                sigma_space=config.sigma_space,
                lambda_reg=config.lambda_reg,
                power=config.idw_power,
            )
        if holes.noise is not None:
            filled = torch.where(holes.given.unsqueeze(-1), filled, filled + holes.noise.to(filled.dtype))
        return filled
