"""What a refiner of clips is given: keyframes, an interpolation of the other frames, and how far to trust each."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from latentloom.drifting.clips.config import ClipConfig
from latentloom.keyframes import (
    add_frame_noise,
    adjacent_targets,
    frame_confidence,
    interpolate_frames,
    moving_share,
    nested_frame_masks,
    replace_keyframes,
)
from latentloom.keyframes.sinkhorn import SinkhornWarper


@dataclass(frozen=True, eq=False)
class FrameHoles:
    """Which frames of each clip are given, at every level.

    Attributes:
        masks: true where a frame is given; a level has fewer than the one before.
        level: of corruption of each clip.
        seed: of each clip's noise and replaced keyframes.
    """

    masks: Bool[Tensor, "L B T"]
    level: Int64[Tensor, "B"]
    seed: Int64[Tensor, "B"]

    def __getitem__(self, rows: slice) -> "FrameHoles":
        return FrameHoles(self.masks[:, rows], self.level[rows], self.seed[rows])

    def to(self, device: torch.device) -> "FrameHoles":
        """The same holes on another device; seeds stay on the CPU."""
        return FrameHoles(self.masks.to(device), self.level.to(device), self.seed)

    @property
    def given(self) -> Bool[Tensor, "B T"]:
        """True where a frame is given at the clip's own level."""
        return self.masks[self.level, torch.arange(len(self.level), device=self.level.device)]


@dataclass(frozen=True, eq=False)
class FilledClips:
    """What goes into a refiner.

    Attributes:
        values: clips whose missing frames are interpolated.
        given: true where a frame is the true one; not where another model's keyframe stands.
        confidence: from 0 to 1 how far each frame is to be trusted; 1 where it is given.
        level: of corruption.
        known: true where a keyframe stands, the true one or another model's.
    """

    values: Float[Tensor, "B C T H W"]
    given: Bool[Tensor, "B T"]
    confidence: Float[Tensor, "B T"]
    level: Int64[Tensor, "B"]
    known: Bool[Tensor, "B T"]

    def __getitem__(self, rows: slice) -> "FilledClips":
        return FilledClips(
            self.values[rows], self.given[rows], self.confidence[rows], self.level[rows], self.known[rows]
        )


@dataclass(frozen=True, eq=False)
class StudentFrames:
    """Keyframes that another model made for a batch.

    Attributes:
        values: read only where `has_frame` is true.
        has_frame: true where there is one.
    """

    values: Float[Tensor, "B C T H W"]
    has_frame: Bool[Tensor, "B T"]


class Keyframes:
    """Takes frames away from clips of T frames and fills them in.

    Args:
        config: levels, interpolation, noise and replacement.
        num_frames: T.
        warper: of learned interpolation.

    Raises:
        ConfigError: more levels than the frames can be halved into.
    """

    def __init__(self, config: ClipConfig, num_frames: int, warper: SinkhornWarper | None = None) -> None:
        self.config = config
        self.num_frames = num_frames
        self.warper = warper
        self.draw_holes(1, torch.Generator())

    def draw_holes(self, num: int, generator: torch.Generator, level: int | None = None) -> FrameHoles:
        """Draw which frames of `num` clips are given.

        Args:
            num: clips, B.
            generator: on the CPU, where the holes will lie.
            level: of all clips; drawn for each clip when None.
        """
        config = self.config
        masks = nested_frame_masks(
            self.num_frames,
            config.num_levels,
            num,
            generator,
            min_given=config.min_keyframes,
            schedule=config.keyframe_schedule,
        )
        levels = torch.randint(config.num_levels, (num,), generator=generator)
        seeds = torch.randint(2**62, (num,), generator=generator)
        if level is not None:
            levels = torch.full_like(levels, level)
        return FrameHoles(masks, levels, seeds)

    @torch.no_grad()
    def fill(
        self, clips: Float[Tensor, "B C T H W"], holes: FrameHoles, student: StudentFrames | None = None
    ) -> FilledClips:
        """Interpolate the missing frames and add their noise; given frames stay as they are, bit for bit.

        Args:
            clips: their missing frames are never read.
            holes: which those are.
            student: takes the place of some keyframes, by `student_replace_prob`; none does without it.
        """
        given, config = holes.given, self.config
        replaced = torch.zeros_like(given)
        if student is not None and config.student_replace_prob:
            clips, replaced = self._replaced(clips, given, holes.seed, student)
        values = self.interpolate(clips, given)
        if config.corrupt_mode != "none":
            values = self._with_noise(values, given, holes.seed)
        return FilledClips(values, given & ~replaced, frame_confidence(given, replaced=replaced), holes.level, given)

    def interpolate(self, clips: Float[Tensor, "B C T H W"], given: Bool[Tensor, "B T"]) -> Float[Tensor, "B C T H W"]:
        """Missing frames out of the given ones, in the way of the settings and without noise."""
        return interpolate_frames(clips, given, self.config.interp_mode, self.warper)

    def hold_still(self, refined: Float[Tensor, "B C T H W"], filled: FilledClips) -> Float[Tensor, "B C T H W"]:
        """Refined clips, with what does not move as the keyframes have it.

        A refiner that is a little wrong everywhere makes still clips flicker. Where the keyframes before and after
        agree, the clip is theirs; given frames, and those with a keyframe on one side alone, are as they were refined.
        """
        if not self.config.still_tolerance:
            return refined
        share = moving_share(filled.values, filled.known, self.config.still_tolerance)
        still = interpolate_frames(filled.values, filled.known, "linear")
        return torch.lerp(still, refined, share.to(refined.dtype))

    @torch.no_grad()
    def target(self, clips: Float[Tensor, "B C T H W"], holes: FrameHoles) -> Float[Tensor, "B C T H W"]:
        """What the clips are refined to: themselves, or what the next denser level makes of them."""
        if self.config.target == "clean":
            return clips
        return adjacent_targets(clips, holes.masks, holes.level, self.config.interp_mode, self.warper)

    def _replaced(
        self, clips: Tensor, given: Tensor, seeds: Tensor, student: StudentFrames
    ) -> tuple[Float[Tensor, "B C T H W"], Bool[Tensor, "B T"]]:
        probability = self.config.student_replace_prob
        parts = [
            replace_keyframes(
                clips[row : row + 1],
                given[row : row + 1],
                student.values[row : row + 1],
                student.has_frame[row : row + 1],
                probability,
                _generator(seeds, row, 0),
            )
            for row in range(len(clips))
        ]
        return torch.cat([values for values, _ in parts]), torch.cat([replaced for _, replaced in parts])

    def _with_noise(self, values: Tensor, given: Tensor, seeds: Tensor) -> Float[Tensor, "B C T H W"]:
        mode, sigma = self.config.corrupt_mode, self.config.corrupt_sigma
        # one generator for each clip: whichever process has it, it gets the same noise
        parts = [
            add_frame_noise(values[row : row + 1], given[row : row + 1], mode, sigma, _generator(seeds, row, 1))
            for row in range(len(values))
        ]
        return torch.cat(parts)


def _generator(seeds: Int64[Tensor, "B"], row: int, stream: int) -> torch.Generator:
    return torch.Generator().manual_seed(int(seeds[row]) ^ stream)
