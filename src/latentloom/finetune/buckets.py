"""Which size an image or video is brought to, so that items of one size can be trained on together."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from latentloom.errors import ConfigError
from latentloom.wan.clip_size import ClipSize, LatentGrid
from latentloom.wan.facts import ModelFacts


@dataclass(frozen=True)
class Buckets:
    """The sizes of one folder's items.

    Args:
        frame_sizes: per resolution, the (width, height) in pixels of each aspect-ratio bucket.
        frame_counts: numbers of frames, ascending.
    """

    frame_sizes: tuple[tuple[tuple[int, int], ...], ...]
    frame_counts: tuple[int, ...]

    @classmethod
    def of(
        cls,
        resolutions: Sequence[int | tuple[int, int]],
        ratios: Sequence[float] | None,
        frame_counts: Sequence[int],
        facts: ModelFacts,
    ) -> "Buckets":
        """Buckets that the model can take: sides are rounded to the nearest that its latents and patches divide.

        Args:
            resolutions: sides of the square of equal area, or (width, height).
            ratios: width / height of the buckets; None: one bucket per resolution, of its own shape.
            frame_counts: numbers of frames.
            facts: of the model.

        Raises:
            ConfigError: a number of frames that the model cannot take.
        """
        grid = LatentGrid.of(facts)
        sizes = []
        for resolution in resolutions:
            width, height = (resolution, resolution) if isinstance(resolution, int) else resolution
            shapes = [width / height] if ratios is None else ratios
            in_pixels = (_frame_size(width * height, ratio, grid) for ratio in shapes)
            sizes.append(tuple(dict.fromkeys(in_pixels)))
        buckets = cls(tuple(dict.fromkeys(sizes)), tuple(sorted(set(frame_counts))))
        for num_frames in buckets.frame_counts:
            grid.check(ClipSize(num_frames, sizes[0][0][1], sizes[0][0][0]))
        return buckets

    def assign(self, width: float, height: float, num_frames: int) -> list[ClipSize]:
        """The size of an item in each resolution: the nearest aspect ratio, and as many frames as it can fill.

        Args:
            width, height: as shown, in pixels.
            num_frames: frames that it has; 1 for an image.

        Raises:
            ConfigError: no bucket has so few frames.
        """
        fitting = [count for count in self.frame_counts if count <= num_frames]
        if not fitting:
            raise ConfigError(
                f"it has {num_frames} frame{'s' * (num_frames != 1)} and the smallest frame bucket "
                f"{self.frame_counts[0]}; add {_largest_of_4n_plus_1(num_frames)} to frame_buckets"
            )
        chosen = []
        for sizes in self.frame_sizes:
            best = min(sizes, key=lambda size: abs(math.log(size[0] / size[1]) - math.log(width / height)))
            chosen.append(ClipSize(fitting[-1], height=best[1], width=best[0]))
        return list(dict.fromkeys(chosen))


def aspect_ratios(low: float, high: float, num: int) -> list[float]:
    """`num` values of width / height from `low` to `high`, each the same factor above the one before.

    A single one lies in the middle.
    """
    if num == 1:
        return [math.sqrt(low * high)]
    return [low * (high / low) ** (index / (num - 1)) for index in range(num)]


def _frame_size(area: int, ratio: float, grid: LatentGrid) -> tuple[int, int]:
    """(width, height) of about that area and ratio, in whole tokens."""
    width = _nearest(math.sqrt(area * ratio), grid.spatial_stride * grid.patch[2])
    height = _nearest(math.sqrt(area / ratio), grid.spatial_stride * grid.patch[1])
    return width, height


def _nearest(pixels: float, multiple: int) -> int:
    return max(multiple, round(pixels / multiple) * multiple)


def _largest_of_4n_plus_1(num_frames: int) -> int:
    return (num_frames - 1) // 4 * 4 + 1
