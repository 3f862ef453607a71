"""Captions of the world, from terse to verbose, in a chosen lexicon."""

import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Literal, TypeVar

import torch

from latentloom.micro.attributes import Attributes
from latentloom.micro.lexicon import BARE_MOTIONS, LEXICONS, Lexicon

Style = Literal["verbose", "plain", "terse", "telegraphic"]
Choice = TypeVar("Choice", bound=str)

#: Where an attribute is open, its word and what belongs to it fall out; `{thing}` and `{moves}` always stand.
TEMPLATES: dict[Style, tuple[str, ...]] = {
    "verbose": (
        "A {size} {colour} {thing} {moves} on a {background} background.",
        "On a {background} background, a {size} {colour} {thing} {moves}.",
        "The video shows a {size} {colour} {thing} that {moves} against a {background} backdrop.",
        "There is a {size} {thing}, {colour} in color, which {moves}. The background is {background}.",
        "In this short clip a {colour} {thing} of {size} size {moves} in front of a {background} wall.",
        "The scene has a {background} background where one {size} {colour} {thing} {moves}.",
    ),
    "plain": (
        "a {size} {colour} {thing} {moves}, {background} background",
        "{size} {colour} {thing} that {moves} on {background}",
        "{background} background, {size} {colour} {thing} {moves}",
    ),
    "terse": (
        "{size} {colour} {thing} {way} {background}",
        "{colour} {thing}, {size}, {way}, {background}",
        "{background}, {way}, {size} {colour} {thing}",
    ),
    "telegraphic": (
        "{size} {colour} {thing} {way} {background}",
        "{thing} {colour} {size} {way} {background}",
        "{background} {way} {colour} {thing} {size}",
    ),
}
#: Share of each style among training captions.
TRAINING_STYLES: dict[Style, float] = {"verbose": 0.55, "plain": 0.25, "terse": 0.20}
#: Share of each lexicon in the text that the encoder reads.
READING_LEXICONS: dict[Lexicon, float] = {"seen": 0.25, "unseen": 0.5, "telegraphic": 0.25}

_WITH_BACKGROUND = re.compile(
    r"(, |On a | on a | on | against a | in front of a |\. The background is )?"
    r"\{background\}( background| backdrop| wall)?"
)


def caption(
    attributes: Attributes,
    style: Style,
    generator: torch.Generator,
    lexicon: Lexicon | None = None,
    words: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """One caption of the clip; attributes that are None are not mentioned.

    Args:
        attributes: what to mention.
        style: form of the sentence.
        generator: chooses the template and the words.
        lexicon: whose words to use; the seen one, or for the telegraphic style its own, where not given.
        words: for some values, the word to use instead.
    """
    lexicon = lexicon or ("telegraphic" if style == "telegraphic" else "seen")
    mentioned = attributes.mentioned()
    chosen = {name: _pick(LEXICONS[lexicon][value], generator) for name, value in mentioned.items()}
    chosen |= {name: words[value] for name, value in mentioned.items() if value in words}
    chosen["thing"] = chosen.pop("shape", "object" if lexicon == "seen" else "thing")
    chosen["moves"] = chosen.pop("motion", "appears")
    bare = {value: word for value, word in BARE_MOTIONS.items() if lexicon == "seen" and value not in words}
    chosen["way"] = bare.get(attributes.motion or "", chosen["moves"]) if attributes.motion else ""
    template = _pick(TEMPLATES[style], generator)
    if attributes.background is None:
        template = _without_background(template)
    text = template.format_map({"size": "", "colour": "", "background": "", **chosen})
    return _tidied(text, sentence=style == "verbose")


def training_caption(
    attributes: Attributes, generator: torch.Generator, *, caption_dropout: float = 0.1, attribute_dropout: float = 0.1
) -> str:
    """A caption as MicroWan is trained on: any seen style, now and then without an attribute, now and then empty."""
    draws = torch.rand(7, generator=generator).tolist()
    if draws[0] < caption_dropout:
        return ""
    names = list(attributes.mentioned())
    dropped = [name for name, draw in zip(names, draws[1:6], strict=True) if draw < attribute_dropout]
    return caption(attributes.without(*dropped), _pick_by_share(TRAINING_STYLES, draws[6]), generator)


def reading_text(attributes: Attributes, generator: torch.Generator) -> str:
    """A text that no clip belongs to, in the words of any one lexicon: what the text encoder is trained on.

    No text uses two lexicons, so reading tells which words do the same work, and not which words mean the same.
    """
    lexicon_draw, style_draw, short_draw = torch.rand(3, generator=generator).tolist()
    names = list(attributes.mentioned())
    num_dropped = int(torch.randint(len(names), (), generator=generator)) if short_draw < 0.5 else 0
    order = torch.randperm(len(names), generator=generator)[:num_dropped].tolist()
    lexicon = _pick_by_share(READING_LEXICONS, lexicon_draw)
    style = "telegraphic" if lexicon == "telegraphic" else _pick_by_share(TRAINING_STYLES, style_draw)
    return caption(attributes.without(*(names[index] for index in order)), style, generator, lexicon)


def grammar_words() -> Iterator[str]:
    """Every word the templates can add to those of a lexicon, repeats included."""
    for templates in TEMPLATES.values():
        for template in templates:
            yield from re.findall(r"[a-z]+", re.sub(r"\{\w+\}", " ", template).lower())
    yield from ("object", "thing", "appears", *BARE_MOTIONS.values())


def _pick_by_share(shares: Mapping[Choice, float], draw: float) -> Choice:
    """The choice that a draw from [0, 1) falls on."""
    choices = list(shares)
    bounds = torch.tensor(list(shares.values())).cumsum(0)
    return choices[int((bounds <= draw).sum().clamp_max(len(choices) - 1))]


def _pick(choices: tuple[str, ...], generator: torch.Generator) -> str:
    return choices[int(torch.randint(len(choices), (), generator=generator))]


def _without_background(template: str) -> str:
    template = template.replace("The scene has a {background} background where one", "The scene has one")
    return _WITH_BACKGROUND.sub("", template)


def _tidied(text: str, *, sentence: bool) -> str:
    text = re.sub(r"\s+", " ", text).replace(" of size", "").replace(", in color,", "")
    text = re.sub(r"(, )+(?=,|$)|\s+(?=[,.])", "", re.sub(r"(,\s*)+,", ",", text)).strip(" ,")
    text = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)
    return text[:1].upper() + text[1:] if sentence else text
