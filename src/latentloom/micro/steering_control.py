"""Control vectors of MicroWan's attributes: the pairs that they are fitted on, and what they do, read from clips."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from latentloom.errors import ConfigError
from latentloom.micro.attributes import VALUES, split
from latentloom.micro.captions import caption
from latentloom.micro.evaluate import evaluate
from latentloom.micro.score import Accuracy, Question, chance, prompt_set, tally
from latentloom.steering.control.span import ablate_span
from latentloom.steering.control.vector import ControlVector
from latentloom.steering.hosts.diffusers import steer
from latentloom.steering.plan import Plan
from latentloom.wan.pipeline import WanPipeline

STRENGTHS = (2.0, 3.0, 4.0, 6.0)
"""Tried on prompts of the training split."""
NUM_SHOWN = 3


@dataclass(frozen=True)
class ValueScore:
    """What setting an attribute to one value did to clips whose prompts ask for another.

    moved: clips that show the value. kept, kept_plain: per other attribute, clips that show what was asked, with the
    vector and without it.
    """

    value: str
    strength: float
    moved: Accuracy
    kept: Mapping[str, Accuracy]
    kept_plain: Mapping[str, Accuracy]

    def to_json(self) -> dict[str, Any]:
        """The figures as JSON values."""
        tables = {"kept": _as_json(self.kept), "kept_plain": _as_json(self.kept_plain)}
        return {"value": self.value, "strength": self.strength, "moved": self.moved.to_json(), **tables}


@dataclass(frozen=True)
class AblationScore:
    """What taking an attribute's span out left of it: accuracy of every attribute without and with the ablation."""

    attribute: str
    plain: Mapping[str, Accuracy]
    ablated: Mapping[str, Accuracy]

    @property
    def times_chance(self) -> float:
        """The attribute's accuracy after the ablation as a multiple of a guess's; 1 is nothing left."""
        return self.ablated[self.attribute].share / chance(self.attribute)

    def to_json(self) -> dict[str, Any]:
        """The figures as JSON values."""
        tables = {"plain": _as_json(self.plain), "ablated": _as_json(self.ablated)}
        return {"attribute": self.attribute, "times_chance": self.times_chance, **tables}


@dataclass(frozen=True, eq=False)
class Gallery:
    """Clips of a few prompts by the way that they were steered."""

    prompts: Sequence[str]
    clips: Mapping[str, UInt8[Tensor, "B T H W 3"]]
    fps: float


def attribute_pairs(attribute: str, value: str, num: int, seed: int = 0) -> list[tuple[str, str]]:
    """Pairs of sentences (with the value, with another one) that are alike in all else; of the training split alone.

    Args:
        attribute: such as colour.
        value: such as red.
        num: how many.
        seed: of the choice of combinations and words.

    Raises:
        ConfigError: an attribute or value that the world does not have, or a number below 1.
    """
    _check(attribute, value)
    if num < 1:
        raise ConfigError(f"{num} pairs were asked for; give 1 or more")
    generator = torch.Generator().manual_seed(seed)
    known = split("train")
    seen = set(known)
    others = [
        item for item in known if getattr(item, attribute) != value and replace(item, **{attribute: value}) in seen
    ]
    pairs: list[tuple[str, str]] = []
    while len(pairs) < num:
        for index in torch.randperm(len(others), generator=generator).tolist():
            words = int(torch.randint(2**31, (), generator=generator))
            both = (replace(others[index], **{attribute: value}), others[index])
            # from one seed, template and words are drawn alike
            positive, negative = (caption(item, "verbose", torch.Generator().manual_seed(words)) for item in both)
            pairs.append((positive, negative))
    return pairs[:num]


def values_of(attribute: str) -> tuple[str, ...]:
    """The values of an attribute.

    Raises:
        ConfigError: the world has no such attribute.
    """
    if attribute not in VALUES:
        raise ConfigError(f"attribute {attribute!r} is unknown; use {', '.join(VALUES)}")
    return VALUES[attribute]


def set_value(family: Mapping[str, ControlVector], value: str, strength: float) -> Plan:
    """The plan that gives an attribute one value: the span of all its values is taken out, then the value added.

    Args:
        family: the attribute's control vectors by value.
        value: one of them.
        strength: what its vector is multiplied by.
    """
    return Plan((*ablate_span(list(family.values())), *family[value].operations(strength)))


def choose_strength(
    pipeline: WanPipeline,
    attribute: str,
    family: Mapping[str, ControlVector],
    value: str,
    num_prompts: int = 24,
    seed: int = 0,
) -> float:
    """Of `STRENGTHS`, the one with the most clips of training prompts right: the value, and all else as asked."""
    questions = _asking_for_others(_training_questions(num_prompts, seed), attribute, value)[:num_prompts]
    wanted = [replace(question, asked=replace(question.asked, **{attribute: value})) for question in questions]
    right = []
    for strength in STRENGTHS:
        with steer(pipeline, set_value(family, value, strength)):
            read = evaluate(pipeline, f"{value} at {strength:g}", questions, seed).read
        right.append(tally(wanted, read)["all"].right)
    return STRENGTHS[right.index(max(right))]


def score_value(
    pipeline: WanPipeline,
    attribute: str,
    family: Mapping[str, ControlVector],
    value: str,
    strength: float,
    num_prompts: int,
    seed: int = 0,
) -> ValueScore:
    """What the vector does to held-out verbose prompts that ask for another value.

    Args:
        pipeline: MicroWan.
        attribute, family, value, strength: see `set_value`.
        num_prompts: clips.
        seed: of prompts and noise.
    """
    questions = _asking_for_others(_held_out(num_prompts, seed), attribute, value)[:num_prompts]
    plain = evaluate(pipeline, f"{value}, plain", questions, seed)
    with steer(pipeline, set_value(family, value, strength)):
        read = evaluate(pipeline, f"{value}, steered", questions, seed).read
    others = [name for name in VALUES if name != attribute]
    moved = Accuracy(sum(getattr(found, attribute) == value for found in read), len(read))
    kept = tally(questions, read)
    return ValueScore(
        value,
        strength,
        moved,
        {name: kept[name] for name in others},
        {name: plain.accuracy[name] for name in others},
    )


def score_ablation(
    pipeline: WanPipeline, attribute: str, family: Mapping[str, ControlVector], num_prompts: int, seed: int = 0
) -> AblationScore:
    """What is left of an attribute on held-out verbose prompts when the span of its vectors is taken out."""
    questions = prompt_set("verbose", num_prompts, seed)
    plain = evaluate(pipeline, f"{attribute}, plain", questions, seed)
    with steer(pipeline, Plan(ablate_span(list(family.values())))):
        ablated = evaluate(pipeline, f"{attribute}, ablated", questions, seed)
    return AblationScore(attribute, plain.accuracy, ablated.accuracy)


def gallery(
    pipeline: WanPipeline, family: Mapping[str, ControlVector], strengths: Mapping[str, float], seed: int = 0
) -> Gallery:
    """A few held-out clips as they are, with the span taken out, and with each value set; each from one noise."""
    questions = prompt_set("verbose", NUM_SHOWN, seed)
    plans = {"taken out": Plan(ablate_span(list(family.values())))}
    plans |= {f"set to {value}": set_value(family, value, strength) for value, strength in strengths.items()}
    clips = {"plain": evaluate(pipeline, "plain", questions, seed).clips}
    for name, plan in plans.items():
        with steer(pipeline, plan):
            clips[name] = evaluate(pipeline, name, questions, seed).clips
    return Gallery([question.prompt for question in questions], clips, pipeline.facts.fps)


def _held_out(num_prompts: int, seed: int) -> list[Question]:
    # more than asked for: those that ask for the value itself fall out
    return prompt_set("verbose", 2 * num_prompts, seed)


def _training_questions(num_prompts: int, seed: int) -> list[Question]:
    generator = torch.Generator().manual_seed(seed)
    known = split("train")
    chosen = torch.randperm(len(known), generator=generator)[: 2 * num_prompts].tolist()
    return [Question(caption(known[index], "verbose", generator), known[index]) for index in chosen]


def _asking_for_others(questions: Sequence[Question], attribute: str, value: str) -> list[Question]:
    return [question for question in questions if getattr(question.asked, attribute) != value]


def _as_json(table: Mapping[str, Accuracy]) -> dict[str, Any]:
    return {name: item.to_json() for name, item in table.items()}


def _check(attribute: str, value: str) -> None:
    if value not in values_of(attribute):
        raise ConfigError(f"{attribute} {value!r} is unknown; use {', '.join(VALUES[attribute])}")
