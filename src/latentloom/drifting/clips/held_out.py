"""The held-out clips of a run: completed from their keyframes, scored and shown beside what they were made from."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from numpy import ndarray
from torch import Tensor

from latentloom.drifting.clips.config import ClipConfig
from latentloom.drifting.clips.corruption import FilledClips, FrameHoles, Keyframes
from latentloom.drifting.clips.data import ClipData
from latentloom.drifting.clips.pictures import contact_sheet
from latentloom.drifting.clips.pixels import ClipSpace
from latentloom.drifting.clips.random_features import RandomFeatures
from latentloom.drifting.clips.refiner_files import ClipRefiner
from latentloom.drifting.clips.scores import PIXEL_PEAK, ClipScores, score_clips
from latentloom.drifting.images import pixels_from_bytes
from latentloom.drifting.randomness import step_generator
from latentloom.keyframes import interpolate_frames

LINEAR = "linear interpolation"
UNIT_CLIPS = 512
DECODED_CLIPS = 128  # a VAE on a CPU takes a fifth of a second for each
CLIPS_SHOWN = 3
_CLIPS_AT_ONCE = 64


@dataclass(frozen=True, eq=False)
class Level:
    """Held-out clips at one level.

    Attributes:
        number: of the level.
        holes: which frames are given.
        filled: what a refiner is given.
    """

    number: int
    holes: FrameHoles
    filled: FilledClips

    @property
    def num_given(self) -> int:
        """Given frames of a clip."""
        return int(self.holes.given[0].sum())

    @property
    def stride(self) -> int:
        """The largest number of frames from one keyframe to the next."""
        return int(self.holes.given[0].nonzero().flatten().diff().max())


class HeldOutClips:
    """Held-out clips with holes that are the same in every run.

    Args:
        data: whose held-out clips are taken.
        config: the settings.
        keyframes: makes the holes and fills them.
        space: turns clips into frames that can be looked at.
        device: where refiners compute.
    """

    def __init__(
        self, data: ClipData, config: ClipConfig, keyframes: Keyframes, space: ClipSpace, device: torch.device
    ) -> None:
        self.data = data
        self.config = config
        self.keyframes = keyframes
        self.space = space
        self.device = device
        self.numbers = _some(len(data.held_out), config.eval_clips, config.split_seed, "held-out clips shown")
        self.clips = data.held_out.load(self.numbers)
        self.labels = data.held_out.labels[self.numbers].to(device)
        self.text = data.held_out.load_text(self.numbers) if data.text_width is not None else (None, None)
        known = _some(len(data.train), UNIT_CLIPS, config.split_seed, "clips of the unit")
        self.features = RandomFeatures(data.train.shape[0]).to(device).fit_unit(data.train.load(known))
        self.levels = [self._level(number) for number in config.eval_levels or range(config.num_levels)]
        self._true_pixels: Float[Tensor, "M 3 F rows columns"] | None = None

    def interpolated(self, level: Level) -> dict[str, Float[Tensor, "N C T H W"]]:
        """The clips as interpolation alone completes them, by name; the linear one always among them."""
        given, clips = level.holes.given, self.clips
        methods = {LINEAR: interpolate_frames(clips, given, "linear")}
        if self.config.interp_mode != "linear":
            methods[f"{self.config.interp_mode} interpolation"] = self.keyframes.interpolate(clips, given)
        return methods

    @torch.no_grad()
    def refined(self, refiner: ClipRefiner, level: Level) -> Float[Tensor, "N C T H W"]:
        """The clips as a refiner completes them."""
        alpha = torch.tensor(self.config.eval_alpha, device=self.device)
        parts = []
        for start in range(0, len(self.clips), _CLIPS_AT_ONCE):
            rows = slice(start, start + _CLIPS_AT_ONCE)
            holes, labels = level.holes[rows], self.labels[rows]
            text = tuple(None if part is None else part[rows] for part in self.text)
            parts.append(refiner.complete(level.filled[rows], holes.masks, labels, alpha.expand(len(labels)), *text))
        return torch.cat(parts)

    def score_pixels(self, methods: Mapping[str, Float[Tensor, "N C T H W"]], level: Level) -> dict[str, ClipScores]:
        """Scores of the first clips as video frames, where they are latents; nothing where they are pixels anyway."""
        if self.space.space == "pixel" or self.space.frames != "each":
            return {}
        rows = slice(0, DECODED_CLIPS)
        if self._true_pixels is None:
            self._true_pixels = self.to_pixels(self.clips[rows])
            self._pixel_features = RandomFeatures(3).fit_unit(self._true_pixels)
        given = level.holes.given[rows]
        return {
            name: score_clips(
                self._pixel_features, self.to_pixels(clips[rows]), self._true_pixels, given, peak=PIXEL_PEAK
            )
            for name, clips in methods.items()
        }

    def score(self, clips: Float[Tensor, "N C T H W"], level: Level) -> ClipScores:
        """How close to the true ones these versions of the held-out clips are."""
        peak = PIXEL_PEAK if self.space.space == "pixel" else None
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
        """For a few clips the prompt, and their frames: true ones, and as each method completes them."""
        chosen = torch.arange(min(CLIPS_SHOWN, len(self.clips)))
        shown = {"true": self.to_pixels(self.clips[chosen])}
        shown |= {name: self.to_pixels(clips[chosen]) for name, clips in methods.items()}
        prompts = self.data.held_out.prompts(self.numbers[chosen])
        given = self._given_pictures(level, shown["true"].shape[2])
        for place in chosen.tolist():
            rows = {name: clips[place] for name, clips in shown.items()}
            yield prompts[place], contact_sheet(list(rows.values()), list(rows), given[place])

    def to_pixels(self, clips: Float[Tensor, "N C T H W"]) -> Float[Tensor, "N 3 F rows columns"]:
        """Video frames of clips from -1 to 1, on the CPU."""
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
        holes = self.keyframes.draw_holes(len(self.clips), generator, number).to(self.device)
        return Level(number, holes, self.keyframes.fill(self.clips, holes))


def _some(num: int, most: int, seed: int, stream: str) -> Int64[Tensor, "M"]:
    order = torch.randperm(num, generator=step_generator(seed, 0, stream))
    return order[:most].sort().values
