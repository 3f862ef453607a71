"""One step of a model with its edits and one without, to see that they act."""

from dataclasses import dataclass
from typing import Any

import torch

from latentloom.comfy.hosts import Host
from latentloom.comfy.hosts.host import NoisedClip
from latentloom.comfy.installed import plan_of, without_plan
from latentloom.errors import ConfigError

NUM_FRAMES, SIDE = 9, 128
"""Of the clip: enough for every block to have tokens to work on, in the least time."""


@dataclass(frozen=True)
class Trial:
    """What one step showed.

    Args:
        percent: share of the schedule that lay behind.
        called: blocks that the step went through.
        num_blocks: of the model.
        changes: relative change (L2) of what enters each called block; None where the model has no edits.
    """

    percent: float
    called: tuple[int, ...]
    num_blocks: int
    changes: tuple[float, ...] | None

    def describe(self) -> list[str]:
        """Lines of text."""
        head = f"Trial run at {self.percent:.0%} of the schedule: {len(self.called)} of {self.num_blocks} blocks called"
        if self.changes is None:
            return [head, "  there is no edit whose effect could be measured"]
        if not any(self.changes):
            return [
                head,
                "  what enters the blocks is the same with and without the edits: none acts here on the positive "
                "prompt, or only the last block is edited, whose answer is not looked at",
            ]
        parts = [f"{block}: {change:.1%}" for block, change in zip(self.called, self.changes, strict=True)]
        rows = ["   ".join(parts[first : first + 6]) for first in range(0, len(parts), 6)]
        return [head, "  what enters each block is changed by the edits by", *(f"    {row}" for row in rows)]


def run_trial(host: Host, model: Any, text: Any, seed: int, percent: float) -> Trial:
    """Run the model once for a small noised clip, and if it has edits once without them.

    Args:
        host, model: whose own sampler runs; the model stays as it is.
        text: the prompt.
        seed: of the noise.
        percent: share of the schedule that lies behind, 0 to 1.

    Raises:
        ConfigError: the host cannot run the model, or the model takes an image as well.
    """
    transformer = model.model.diffusion_model
    if transformer.in_dim != transformer.out_dim:
        raise ConfigError("trial_run makes a step from text alone, and this model also takes an image; switch it off")
    clip = NoisedClip(seed, percent, NUM_FRAMES, SIDE, SIDE)
    num_blocks = host.sizes(model).num_blocks
    edited = host.capture(model, text, clip, num_blocks - 1).values
    if plan_of(model) is None:
        return Trial(percent, tuple(edited), num_blocks, None)
    plain = host.capture(without_plan(model), text, clip, num_blocks - 1).values
    tiny = torch.finfo(torch.float32).tiny
    changes = tuple(
        float((rows.float() - plain[block].float()).norm() / plain[block].float().norm().clamp_min(tiny))
        for block, rows in edited.items()
    )
    return Trial(percent, tuple(edited), num_blocks, changes)
