"""The held-out clips of a run: completed from their keyframes, scored and shown beside what they were made from."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from numpy import ndarray
from torch import Tensor

from latentloom.drifting.clips.config import ClipConfig
from latentloom.drifting.clips.corruption import FrameHoles, Keyframes
from latentloom.drifting.clips.data import ClipData, Clips
from latentloom.drifting.clips.pictures import contact_sheet
from latentloom.drifting.clips.pixels import ClipSpace
from latentloom.drifting.clips.random_features import RandomFeatures
from latentloom.drifting.clips.refiner_files import ClipRefiner
from latentloom.drifting.clips.scores import PIXEL_PEAK, ClipScores, score_clips
from latentloom.drifting.images import pixels_from_bytes
from latentloom.keyframes import interpolate_frames
from latentloom.runs.randomness import step_generator

LINEAR = "linear interpolation"
UNIT_CLIPS = 512
DECODED_CLIPS = 128  # a VAE on a CPU takes a fifth of a second for each
DECODED_VALUES = 2**29  # of them, 2 GiB in float32: fewer clips where they are long and large
CLIPS_SHOWN = 3
_CLIPS_AT_ONCE = 64


@dataclass(frozen=True, eq=False)
class Level:
    """Held-out clips at one level.

    Attributes:
        number: of the level.
        holes: which frames are given.
        is_drawn: whether inner keyframes are drawn for each clip.
    """

    number: int
    holes: FrameHoles
    is_drawn: bool

    @property
    def num_given(self) -> int:
        """Given frames of a clip."""
        return int(self.holes.given[0].sum())

    @property
    def stride(self) -> float:
        """Frames from one keyframe to the next: the most, or the mean where they are drawn; all T of a lone one."""
        given = self.holes.given[0]
        if self.num_given == 1:
            return len(given)
        gaps = given.nonzero().flatten().diff()
        return float(gaps.float().mean()) if self.is_drawn else int(gaps.max())  # both ends are given in every clip


class HeldOutClips:
    """Held-out clips with holes that are the same in every run.

    They lie on the CPU; a part of them at a time is completed on the device.

    Args:
        data: whose held-out clips are taken.
        config: the settings.
        keyframes: makes the holes and fills them.
        space: turns clips into frames that can be looked at; None where that is not known.
        device: where refiners compute.
    """

    def __init__(
        self, data: ClipData, config: ClipConfig, keyframes: Keyframes, space: ClipSpace | None, device: torch.device
    ) -> None:
        self.data = data
        self.config = config
        self.keyframes = keyframes
        self.space = space
        self.device = device
        self.numbers = _some(len(data.held_out), config.eval_clips, config.split_seed, "held-out clips shown")
        self.clips = _loaded(data.held_out, self.numbers)
        known = _some(len(data.train), UNIT_CLIPS, config.split_seed, "clips of the unit")
        self.features = RandomFeatures(data.train.shape[0]).to(device).fit_unit(_loaded(data.train, known))
        self.levels = [self._level(number) for number in config.eval_levels or range(config.num_levels)]
        self._true_pixels: Float[Tensor, "M 3 F rows columns"] | None = None

    def interpolated(self, level: Level) -> dict[str, Float[Tensor, "N C T H W"]]:
        """The clips as interpolation alone completes them, by name; the linear one always among them."""
        methods = {LINEAR: self._in_parts(level, _linear)}
        if self.config.interp_mode != "linear":
            name = f"{self.config.interp_mode} interpolation"
            methods[name] = self._in_parts(
                level, lambda clips, holes, _: self.keyframes.interpolate(clips, holes.given)
            )
        return methods

    @torch.no_grad()
    def refined(self, refiner: ClipRefiner, level: Level) -> Float[Tensor, "N C T H W"]:
        """The clips as a refiner completes them."""

        def refine(clips: Tensor, holes: FrameHoles, numbers: Tensor) -> Tensor:
            labels = self.data.held_out.labels[numbers].to(self.device)
            alpha = torch.full((len(labels),), self.config.eval_alpha, device=self.device)
            text = self.data.held_out.load_text(numbers) if self.data.text_width is not None else (None, None)
            return refiner.complete(self.keyframes.fill(clips, holes), holes.masks, labels, alpha, *text)

        return self._in_parts(level, refine)

    def score_pixels(self, methods: Mapping[str, Float[Tensor, "N C T H W"]], level: Level) -> dict[str, ClipScores]:
        """Scores of the first clips as video frames, where they are latents whose VAE is known; else nothing.

        Where the VAE compressed time, the video frames that a given latent was made of are given.
        """
        if self.space is None or self.space.space == "pixel":
            return {}
        if self._true_pixels is None:
            each = self.to_pixels(self.clips[:1]).numel()
            self._true_pixels = self.to_pixels(self.clips[: max(2, min(DECODED_CLIPS, DECODED_VALUES // each))])
            self._pixel_features = RandomFeatures(3).fit_unit(self._true_pixels)
        rows = slice(0, len(self._true_pixels))
        given = self._given_pictures(level, self._true_pixels.shape[2])[rows]
        return {
            name: score_clips(
                self._pixel_features, self.to_pixels(clips[rows]), self._true_pixels, given, peak=PIXEL_PEAK
            )
            for name, clips in methods.items()
        }

    def score(self, clips: Float[Tensor, "N C T H W"], level: Level) -> ClipScores:
        """How close to the true ones these versions of the held-out clips are."""
        peak = PIXEL_PEAK if self.data.space == "pixel" else None
        return score_clips(self.features, clips, self.clips, level.holes.given, peak=peak)

    def measure(self, refiner: ClipRefiner) -> dict[str, float]:
        """The error of a refiner at every level, for a curve."""
        measures = {}
        for level in self.levels:
            squared = (self.refined(refiner, level) - self.clips).square().mean(dim=(1, 3, 4))
            missing = ~level.holes.given
            measures[f"eval/mse_missing_{level.num_given}"] = float((squared * missing).sum() / missing.sum())
        return measures

    def pictures(
        self, level: Level, methods: Mapping[str, Float[Tensor, "N C T H W"]]
    ) -> Iterator[tuple[str, UInt8[ndarray, "_ _ 3"]]]:
        """For a few clips the prompt, and their frames: true ones, and as each method completes them.

        None where nothing is known of how clips become frames.
        """
        if self.space is None:
            return
        chosen = torch.arange(min(CLIPS_SHOWN, len(self.clips)))
        shown = {"true": self.to_pixels(self.clips[chosen])}
        shown |= {name: self.to_pixels(clips[chosen]) for name, clips in methods.items()}
        prompts = self.data.held_out.prompts(self.numbers[chosen])
        given = self._given_pictures(level, shown["true"].shape[2])
        for place in chosen.tolist():
            rows = {name: clips[place] for name, clips in shown.items()}
            yield prompts[place], contact_sheet(list(rows.values()), list(rows), given[place])

    def to_pixels(self, clips: Float[Tensor, "N C T H W"]) -> Float[Tensor, "N 3 F rows columns"]:
        """Video frames of clips from -1 to 1, on the CPU; the space must be known."""
        assert self.space is not None
        return pixels_from_bytes(self.space.to_frames(clips)).permute(0, 4, 1, 2, 3)

    def _given_pictures(self, level: Level, num_pictures: int) -> Bool[Tensor, "N F"]:
        """True where a video frame is given; all those that the VAE made one given frame of are."""
        given = level.holes.given
        if num_pictures == given.shape[1]:
            return given
        each = (num_pictures - 1) // max(given.shape[1] - 1, 1)  # a VAE keeps the first one apart
        return torch.cat([given[:, :1], given[:, 1:].repeat_interleave(each, dim=1)], dim=1)

    def _level(self, number: int) -> Level:
        generator = step_generator(self.config.split_seed, number, "held-out frames")
        holes = self.keyframes.draw_holes(len(self.clips), generator, number)
        has_drawn = self.config.keyframe_schedule == "random" and int(holes.given[0].sum()) > 2  # the ends are not
        return Level(number, holes, has_drawn)

    def _in_parts(
        self, level: Level, complete: Callable[[Tensor, FrameHoles, Tensor], Tensor]
    ) -> Float[Tensor, "N C T H W"]:
        """All clips as `complete` makes them out of clips, holes and their numbers, a part at a time."""
        parts = []
        for start in range(0, len(self.clips), _CLIPS_AT_ONCE):
            rows = slice(start, start + _CLIPS_AT_ONCE)
            clips, holes = self.clips[rows].to(self.device), level.holes[rows].to(self.device)
            parts.append(complete(clips, holes, self.numbers[rows]).cpu())
        return torch.cat(parts)


def _linear(clips: Tensor, holes: FrameHoles, _: Tensor) -> Tensor:
    return interpolate_frames(clips, holes.given, "linear")


def _loaded(clips: Clips, numbers: Int64[Tensor, "M"]) -> Float[Tensor, "M C T H W"]:
    """Clips on the CPU, of which a part at a time is on their device."""
    return torch.cat([clips.load(part).cpu() for part in numbers.split(_CLIPS_AT_ONCE)])


def _some(num: int, most: int, seed: int, stream: str) -> Int64[Tensor, "M"]:
    order = torch.randperm(num, generator=step_generator(seed, 0, stream))
    return order[:most].sort().values
