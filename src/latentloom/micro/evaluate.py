"""Generates a clip for every question and scores it: the measurement behind `micro score`, the demo and the systems."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from latentloom.micro.attributes import Attributes
from latentloom.micro.read import read_clips
from latentloom.micro.score import Accuracy, Question, tally, to_unit_range
from latentloom.micro.world import draw_clips
from latentloom.runs import track
from latentloom.wan.pipeline import Adjust, WanPipeline
from latentloom.wan.vae import encode_video

_CLIPS_AT_ONCE = 16


@dataclass(frozen=True)
class Evaluation:
    """One set of prompts, the clips a model made of them, what the clips show, and how much of it was asked for."""

    name: str
    questions: list[Question]
    clips: UInt8[Tensor, "B T H W 3"]
    read: list[Attributes]
    accuracy: dict[str, Accuracy]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Accuracy per attribute, number of prompts and seconds per clip."""
        return {
            "num_prompts": len(self.questions),
            "seconds_per_clip": self.seconds / len(self.questions),
            "accuracy": {name: accuracy.to_json() for name, accuracy in self.accuracy.items()},
        }


def evaluate(
    pipeline: WanPipeline, name: str, questions: Sequence[Question], seed: int = 0, adjust: Adjust | None = None
) -> Evaluation:
    """Generate and read one clip per question; the clip of question i starts from noise of seed `seed + i`.

    Args:
        pipeline: the model under test.
        name: of the set, for tables.
        questions: prompts with what they ask for.
        seed: of the first clip's noise.
        adjust: a change of the text embeddings under test.
    """
    started = time.perf_counter()
    clips = []
    for start in track(range(0, len(questions), _CLIPS_AT_ONCE), name):
        batch = questions[start : start + _CLIPS_AT_ONCE]
        seeds = [seed + start + offset for offset in range(len(batch))]
        clips.append(pipeline.generate([item.prompt for item in batch], seeds=seeds, adjust=adjust)[0])
    return _evaluation(name, questions, torch.cat(clips), started)


@torch.no_grad()
def evaluate_reader(pipeline: WanPipeline, questions: Sequence[Question], seed: int = 0) -> list[Evaluation]:
    """What the reader gets right on clips that were drawn, and on the same clips through the VAE: the ceiling.

    Args:
        pipeline: the model whose VAE is used.
        questions: with all attributes set.
        seed: of the clips' geometry.
    """
    started = time.perf_counter()
    generator = torch.Generator().manual_seed(seed)
    drawn = draw_clips([item.asked for item in questions], generator).mul(255).round().to(torch.uint8)
    drawn = drawn.permute(0, 2, 3, 4, 1).contiguous()
    plain = _evaluation("drawn", questions, drawn, started)
    started = time.perf_counter()
    rebuilt = [
        pipeline.decode(encode_video(pipeline.vae, batch, pipeline.device)) for batch in drawn.split(_CLIPS_AT_ONCE)
    ]
    return [plain, _evaluation("drawn, through the VAE", questions, torch.cat(rebuilt), started)]


def _evaluation(
    name: str, questions: Sequence[Question], frames: UInt8[Tensor, "B T H W 3"], started: float
) -> Evaluation:
    read = [reading.attributes for reading in read_clips(to_unit_range(frames))]
    accuracy = tally(questions, read)
    return Evaluation(name, list(questions), frames, read, accuracy, time.perf_counter() - started)
