"""Clips of the world completed from two keyframes, and read: what a refiner of storyboards is measured by."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from latentloom.drifting.clips.complete import clip_space, complete_storyboard
from latentloom.drifting.clips.config import ClipConfig
from latentloom.drifting.clips.encode import ClipEncoder
from latentloom.drifting.clips.refiner_files import ClipRefiner
from latentloom.drifting.clips.storyboard import Storyboard
from latentloom.errors import ConfigError
from latentloom.micro.evaluate import Evaluation
from latentloom.micro.read import read_clips
from latentloom.micro.score import Question, prompt_set, tally, to_unit_range
from latentloom.micro.world import FRAME_COUNTS, FRAME_SIZES, draw_clips
from latentloom.runs import track
from latentloom.wan.text_encoder import WanTextEncoder


@dataclass(frozen=True)
class Completions:
    """What was read from completed clips.

    Attributes:
        evaluations: of whole clips and of the frame in the middle, of linear interpolation and of the refiner.
        num_kept: clips whose two keyframes came back bit for bit.
        num_clips: of all.
    """

    evaluations: list[Evaluation]
    num_kept: int
    num_clips: int

    def to_json(self) -> dict[str, Any]:
        """Accuracy of every evaluation, and the share of clips that keep their keyframes."""
        read = {evaluation.name: evaluation.to_json() for evaluation in self.evaluations}
        return {"read": read, "keeps_keyframes": self.num_kept / self.num_clips, "num_clips": self.num_clips}


def evaluate_completions(
    refiner: ClipRefiner,
    config: ClipConfig,
    encoder: WanTextEncoder,
    num_clips: int,
    *,
    seed: int = 0,
    vae_root: Path | None = None,
    device: torch.device | str = "cpu",
) -> Completions:
    """Complete drawn clips of held-out contents from their first and last frame, and read what they show.

    Args:
        refiner: of clips of the world: 17 frames of 48 pixels, or another size it is drawn in.
        config: of its training.
        encoder: of the prompts.
        num_clips: how many.
        seed: of contents and geometry.
        vae_root: checkpoint of the VAE; MicroWan when None.
        device: where the VAE computes.

    Raises:
        ConfigError: a refiner of clips that the world does not have.
    """
    device = torch.device(device)
    space = clip_space(refiner, vae_root, device)
    codec = ClipEncoder(space.space, space.frames or "each", vae_root, device)
    _, num_frames, rows, _ = refiner.classes.encoder.clip_shape
    size = rows * codec.multiple
    if num_frames not in FRAME_COUNTS or size not in FRAME_SIZES or space.frames == "clip":
        raise ConfigError(
            f"the refiner completes clips of {num_frames} frames of {size} pixels, which the world has not; give one "
            "trained on `latentloom drift make-shards --world N`"
        )
    questions = prompt_set("verbose", num_clips, seed)
    generator = torch.Generator().manual_seed(seed)
    parts: dict[str, list[UInt8[Tensor, "1 F H W 3"]]] = {"linear interpolation": [], "refiner": []}
    num_kept, seconds = 0, 0.0
    for number in track(num_clips, "complete clips"):
        question = questions[number]
        pixels = draw_clips([question.asked], generator, num_frames=num_frames, frame_size=size) * 2 - 1
        storyboard = _first_and_last(codec.encode(pixels[:, :, [0, -1]]), num_frames)
        text = encoder.encode([question.prompt]) if refiner.classes.encoder.text_width is not None else None
        started = time.monotonic()
        completion = complete_storyboard(refiner, config, storyboard, text)
        seconds += time.monotonic() - started
        ends = [0, num_frames - 1]
        num_kept += torch.equal(completion.clip[:, :, ends].cpu(), storyboard.values[:, :, ends])
        parts["linear interpolation"].append(space.to_frames(completion.interpolated))
        parts["refiner"].append(space.to_frames(completion.clip))
    evaluations = []
    for name, clips in parts.items():
        frames = torch.cat(clips)
        evaluations.append(_read(name, questions, frames, seconds))
        middle = frames[:, num_frames // 2 : num_frames // 2 + 1]
        evaluations.append(_read(f"{name}, middle frame", [_still(question) for question in questions], middle, 0.0))
    return Completions(evaluations, num_kept, num_clips)


def _first_and_last(ends: Float[Tensor, "1 C 2 H W"], num_frames: int) -> Storyboard:
    _, channels, _, rows, columns = ends.shape
    values = torch.zeros(1, channels, num_frames, rows, columns)
    values[:, :, [0, -1]] = ends
    given = torch.zeros(1, num_frames, dtype=torch.bool)
    given[:, [0, -1]] = True
    return Storyboard(values, given)


def _still(question: Question) -> Question:
    """What a single frame can answer."""
    return Question(question.prompt, question.asked.without("motion"))


def _read(name: str, questions: Sequence[Question], frames: UInt8[Tensor, "B F H W 3"], seconds: float) -> Evaluation:
    read = [reading.attributes for reading in read_clips(to_unit_range(frames))]
    return Evaluation(name, list(questions), frames, read, tally(questions, read), seconds)
