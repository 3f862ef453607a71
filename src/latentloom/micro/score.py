"""How well a model listens: attributes asked for in the prompt against attributes read from the clip."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from latentloom.errors import PromptError
from latentloom.micro.attributes import VALUES, Attributes, split
from latentloom.micro.captions import Style, caption
from latentloom.micro.lexicon import Lexicon, parse
from latentloom.micro.read import read_clips

#: Each set of prompts: the split its attributes come from, the form of its sentences, the lexicon of its words.
PROMPT_SETS: dict[str, tuple[str, Style, Lexicon]] = {
    "verbose": ("held_out", "verbose", "seen"),
    "terse": ("held_out", "terse", "seen"),
    "unseen synonyms": ("held_out", "verbose", "unseen"),
    "telegraphic": ("held_out", "telegraphic", "telegraphic"),
    "unseen pairs": ("unseen_pair", "verbose", "seen"),
}


@dataclass(frozen=True)
class Question:
    """A prompt and the attributes that it asks for; those left open are None."""

    prompt: str
    asked: Attributes


@dataclass(frozen=True)
class Accuracy:
    """A share of right answers with its 95 % Wilson score interval."""

    right: int
    total: int

    @property
    def share(self) -> float:
        return self.right / self.total if self.total else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        if not self.total:
            return math.nan, math.nan
        z, n, p = 1.959964, self.total, self.share
        centre, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        low, high = (centre - spread) / (1 + z * z / n), (centre + spread) / (1 + z * z / n)
        # at both ends the formula gives the share itself, but for rounding, which would print as -0.0
        return low if self.right else 0.0, high if self.right < n else 1.0

    def to_json(self) -> dict[str, Any]:
        """Right, total, share and interval."""
        return {**asdict(self), "share": self.share, "interval": list(self.interval)}


def prompt_set(name: str, num_prompts: int, seed: int = 0) -> list[Question]:
    """Prompts of one of the `PROMPT_SETS`, every attribute combination of its split equally often.

    Args:
        name: a key of `PROMPT_SETS`.
        num_prompts: how many.
        seed: of the choice of combinations and words.
    """
    where, style, lexicon = PROMPT_SETS[name]
    choices = split(where)
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = []
    while len(order) < num_prompts:
        order += torch.randperm(len(choices), generator=generator).tolist()
    return [
        Question(caption(choices[index], style, generator, lexicon), choices[index]) for index in order[:num_prompts]
    ]


def questions_of(prompts: Sequence[str]) -> list[Question]:
    """Prompts written by hand, with the attributes that their words ask for.

    Raises:
        PromptError: a prompt that mentions none of the world's attributes, so that nothing could be scored.
    """
    questions = [Question(prompt, parse(prompt)) for prompt in prompts]
    for question in questions:
        if not question.asked.mentioned():
            raise PromptError(
                f"{question.prompt!r} mentions no attribute of MicroWan's world; use words such as red, circle, left"
            )
    return questions


def score_clips(questions: Sequence[Question], clips: UInt8[Tensor, "B T H W 3"]) -> dict[str, Accuracy]:
    """Accuracy per attribute over the prompts that ask for it, and "all": clips right in everything asked.

    Args:
        questions: one per clip.
        clips: what the model made of them.
    """
    return tally(questions, [reading.attributes for reading in read_clips(to_unit_range(clips))])


def tally(questions: Sequence[Question], read: Sequence[Attributes]) -> dict[str, Accuracy]:
    """The same from attributes that were read before."""
    pairs = [(question.asked.mentioned(), found.mentioned()) for question, found in zip(questions, read, strict=True)]
    table = {}
    for attribute in VALUES:
        hits = [found.get(attribute) == asked[attribute] for asked, found in pairs if attribute in asked]
        table[attribute] = Accuracy(sum(hits), len(hits))
    everything = [asked.items() <= found.items() for asked, found in pairs]
    table["all"] = Accuracy(sum(everything), len(everything))
    return table


def chance(attribute: str) -> float:
    """Accuracy of a guess."""
    if attribute == "all":
        return 1 / math.prod(len(values) for values in VALUES.values())
    return 1 / len(VALUES[attribute])


def to_unit_range(clips: UInt8[Tensor, "B T H W 3"]) -> Tensor:
    """Frames as the reader takes them: [B, 3, T, H, W] in [0, 1]."""
    return clips.permute(0, 4, 1, 2, 3).float() / 255
