"""Words that MicroWan's DiT has never met, to be taught and asked for."""

from collections.abc import Mapping, Sequence

import torch

from latentloom.errors import ConfigError
from latentloom.micro.attributes import Attributes, split
from latentloom.micro.captions import Style, caption
from latentloom.micro.lexicon import LEXICONS, parse
from latentloom.micro.score import Question


def meanings_of(words: Sequence[str]) -> dict[str, str]:
    """For every value that a word stands for, the word.

    Args:
        words: of the unseen or the telegraphic lexicon, such as `scarlet`; each for another value.

    Raises:
        ConfigError: a word that the world does not have or the DiT knows, or two words for one value.
    """
    found: dict[str, str] = {}
    for word in words:
        values = list(parse(word).mentioned().values())
        known = any(word in phrases for phrases in LEXICONS["seen"].values())
        if len(values) != 1 or known:
            choices = ", ".join(phrase for phrases in LEXICONS["unseen"].values() for phrase in phrases[:1])
            raise ConfigError(
                f"{word!r} is no word that MicroWan could learn; choose from the unseen words, as {choices}"
            )
        if values[0] in found:
            raise ConfigError(
                f"{word!r} and {found[values[0]]!r} both mean {values[0]!r}; teach one word for each value"
            )
        found[values[0]] = word
    return found


def attributes_to_teach(
    meanings: Mapping[str, str], share: float, choices: Sequence[Attributes], generator: torch.Generator
) -> tuple[Attributes, dict[str, str]]:
    """One clip's attributes, and the new words of its caption.

    Args:
        meanings: from `meanings_of`.
        share: of clips whose caption has a new word; the others are captioned in known words alone.
        choices: complete attributes to draw from.
        generator: of the draw.
    """
    value = None
    if meanings and float(torch.rand((), generator=generator)) < share:
        value = list(meanings)[int(torch.randint(len(meanings), (), generator=generator))]
    fitting = [item for item in choices if value is None or value in item.mentioned().values()]
    attributes = fitting[int(torch.randint(len(fitting), (), generator=generator))]
    return attributes, {} if value is None else {value: meanings[value]}


def word_set(word: str, num_prompts: int, seed: int = 0, style: Style = "verbose") -> list[Question]:
    """Prompts with one new word and otherwise known ones, for held-out combinations of attributes.

    Args:
        word: see `meanings_of`.
        num_prompts: how many.
        seed: of combinations and words.
        style: of the sentences.
    """
    meanings = meanings_of([word])
    (value,) = meanings
    choices = [item for item in split("held_out") if value in item.mentioned().values()]
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = []
    while len(order) < num_prompts:
        order += torch.randperm(len(choices), generator=generator).tolist()
    return [
        Question(caption(choices[index], style, generator, words=meanings), choices[index])
        for index in order[:num_prompts]
    ]
