"""Which blocks, and when, carry which attribute: prompts are swapped in parts of the sampling, and the clips read."""

from collections.abc import Iterable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from latentloom.errors import ConfigError, PromptError
from latentloom.micro.attributes import VALUES, Attributes
from latentloom.micro.lexicon import parse
from latentloom.micro.read import read_clips
from latentloom.micro.score import Accuracy, Question, prompt_set, to_unit_range
from latentloom.runs import track
from latentloom.steering.hosts.diffusers import steer
from latentloom.steering.sweep.parts import Part
from latentloom.steering.sweep.prompts import PromptPair
from latentloom.wan.clip_size import ClipSize
from latentloom.wan.pipeline import WanPipeline
from latentloom.wan.sampling import SamplingSettings

_CANDIDATES_PER_PAIR = 4
_LEAST_CANDIDATES = 64


@dataclass(frozen=True)
class QuestionPair:
    """A prompt to sample, another one to swap in, and the seed of the noise."""

    base: Question
    injected: Question
    seed: int

    def differing(self) -> dict[str, tuple[str, str]]:
        """The attributes that both prompts mention with different values: name -> (base, injected)."""
        base, injected = self.base.asked.mentioned(), self.injected.asked.mentioned()
        return {
            name: (base[name], injected[name])
            for name in VALUES
            if name in base and name in injected and base[name] != injected[name]
        }


@dataclass(frozen=True)
class Outcome:
    """Whose value the clips show where the prompts differ: the injected prompt's, the base prompt's, or neither's."""

    injected: Accuracy
    base: Accuracy
    neither: Accuracy

    def to_json(self) -> dict[str, Any]:
        """The three shares with their Wilson intervals."""
        return {name: getattr(self, name).to_json() for name in ("injected", "base", "neither")}


@dataclass(frozen=True)
class AttributeSweep:
    """What the clips show of every pair, by the part of the sampling in which the prompt was swapped.

    Args:
        pairs: the questions.
        readings: part -> one reading per pair.
    """

    pairs: list[QuestionPair]
    readings: dict[Part, list[Attributes]]

    @property
    def attributes(self) -> list[str]:
        """Those in which at least two pairs differ, in the world's order."""
        differing = [pair.differing() for pair in self.pairs]
        return [name for name in VALUES if sum(name in found for found in differing) > 1]

    def outcome(self, part: Part, attribute: str) -> Outcome:
        """How often the attribute follows whom, over the pairs that differ in it."""
        follows = [
            _follows(getattr(read, attribute), pair.differing()[attribute])
            for pair, read in zip(self.pairs, self.readings[part], strict=True)
            if attribute in pair.differing()
        ]
        return Outcome(*(Accuracy(follows.count(side), len(follows)) for side in ("injected", "base", "neither")))

    def shows_injected(self, part: Part, attribute: str) -> Float[Tensor, "B"]:
        """Per pair that differs in the attribute, 1 where the clip shows the injected value, else 0."""
        return torch.tensor(
            [
                float(getattr(read, attribute) == pair.differing()[attribute][1])
                for pair, read in zip(self.pairs, self.readings[part], strict=True)
                if attribute in pair.differing()
            ]
        )

    def to_json(self) -> dict[str, Any]:
        """Part -> attribute -> outcome."""
        return {
            part.key: {name: self.outcome(part, name).to_json() for name in self.attributes} for part in self.readings
        }


def question_pairs(num_pairs: int, seed: int = 0) -> list[QuestionPair]:
    """Held-out questions with others that differ from them in as many attributes as can be found.

    Args:
        num_pairs: how many; pair i is sampled from noise of seed `seed + i`.
        seed: of the questions.

    Raises:
        ConfigError: fewer than two pairs, which have no interval.
    """
    if num_pairs < 2:
        raise ConfigError(f"{num_pairs} pair; intervals are over pairs, give 2 or more")
    bases = prompt_set("verbose", num_pairs, seed)
    candidates = prompt_set("verbose", max(_LEAST_CANDIDATES, _CANDIDATES_PER_PAIR * num_pairs), seed + 1)
    pairs = []
    for number, base in enumerate(bases):
        farthest = max(candidates, key=lambda candidate: _num_differing(base.asked, candidate.asked))  # first of these
        candidates.remove(farthest)
        pairs.append(QuestionPair(base, farthest, seed + number))
    return pairs


def questions_of_pairs(pairs: Sequence[PromptPair]) -> list[QuestionPair]:
    """Pairs written by hand, with the attributes that their words ask for.

    Raises:
        PromptError: fewer than two pairs differ in an attribute, so that nothing could be read.
    """
    questions = [
        QuestionPair(Question(pair.base, parse(pair.base)), Question(pair.injected, parse(pair.injected)), pair.seed)
        for pair in pairs
    ]
    if max(sum(name in pair.differing() for pair in questions) for name in VALUES) < 2:
        raise PromptError(
            "no two pairs differ in the same attribute of MicroWan's world; try a red disc and a blue one"
        )
    return questions


@torch.no_grad()
def sweep_attributes(
    pipeline: WanPipeline,
    pairs: Sequence[QuestionPair],
    parts: Iterable[Part],
    *,
    size: ClipSize | None = None,
    settings: SamplingSettings | None = None,
    kept: MutableMapping[str, Any] | None = None,
) -> AttributeSweep:
    """Sample every pair once for each part, from the same noise, with the prompt swapped there, and read the clips.

    Args:
        pipeline: MicroWan, or another model of its world.
        pairs: the questions.
        parts: where the injected prompt stands in for the base prompt.
        size, settings: as in `WanPipeline.sample`; the clips must be square.
        kept: results of an earlier, interrupted sweep by part; every new part is added to it.
    """
    kept = {} if kept is None else kept
    parts = list(dict.fromkeys(parts))
    missing = [part for part in parts if part.key not in kept]
    for part in track(missing, "clips by part") if missing else ():
        read = read_clips(to_unit_range(sample_clips(pipeline, pairs, part, size, settings)))
        kept[part.key] = [_as_words(reading.attributes) for reading in read]
    return AttributeSweep(list(pairs), {part: [_from_words(words) for words in kept[part.key]] for part in parts})


@torch.no_grad()
def sample_clips(
    pipeline: WanPipeline,
    pairs: Sequence[QuestionPair],
    part: Part,
    size: ClipSize | None = None,
    settings: SamplingSettings | None = None,
) -> UInt8[Tensor, "B T H W 3"]:
    """One clip per pair, its prompt swapped in one part of the sampling; the arguments are those of the sweep."""
    base, injected = (
        pipeline.encode([side.prompt for side in sides])
        for sides in ([pair.base for pair in pairs], [pair.injected for pair in pairs])
    )
    with steer(pipeline, part.plan(injected, len(pipeline.transformer.blocks))):
        latents = pipeline.sample(base, size=size, settings=settings, seeds=[pair.seed for pair in pairs])
    return pipeline.decode(latents)


def _num_differing(first: Attributes, second: Attributes) -> int:
    return sum(getattr(first, name) != getattr(second, name) for name in VALUES)


def _follows(shown: str | None, values: tuple[str, str]) -> str:
    base, injected = values
    return "injected" if shown == injected else "base" if shown == base else "neither"


def _as_words(attributes: Attributes) -> str:
    return " ".join(getattr(attributes, name) or "-" for name in VALUES)


def _from_words(words: str) -> Attributes:
    values = dict(zip(VALUES, words.split(), strict=True))
    return Attributes(**{name: None if value == "-" else value for name, value in values.items()})
