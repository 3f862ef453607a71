"""The words for each attribute value, in three lexicons.

`seen`: what training captions use. `unseen`: synonyms that no training caption contains. `telegraphic`: shorthand that
no training caption contains either. The text encoder has read all three, each in texts of its own; the DiT has only
ever met the first. No word means two things, so a prompt can be read back (`parse`).
"""

import re
from typing import Literal, get_args

from latentloom.micro.attributes import VALUES, Attributes

Lexicon = Literal["seen", "unseen", "telegraphic"]

SEEN: dict[str, tuple[str, ...]] = {
    "red": ("red", "crimson"),
    "green": ("green", "emerald"),
    "blue": ("blue", "azure"),
    "yellow": ("yellow", "golden"),
    "purple": ("purple", "violet"),
    "cyan": ("cyan", "turquoise"),
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle", "wedge"),
    "cross": ("cross", "plus"),
    "small": ("small", "little"),
    "large": ("large", "big"),
    "left": ("moves to the left", "slides left", "drifts leftward"),
    "right": ("moves to the right", "slides right", "drifts rightward"),
    "up": ("moves up", "rises", "drifts upward"),
    "down": ("moves down", "falls", "drifts downward"),
    "still": ("stays still", "does not move", "rests"),
    "black": ("black", "dark"),
    "white": ("white", "bright"),
    "gray": ("gray", "grey"),
}

UNSEEN: dict[str, tuple[str, ...]] = {
    "red": ("scarlet", "ruby"),
    "green": ("jade", "lime"),
    "blue": ("cobalt", "navy"),
    "yellow": ("amber", "lemon"),
    "purple": ("magenta", "plum"),
    "cyan": ("teal", "aqua"),
    "circle": ("ball", "dot"),
    "square": ("block", "tile"),
    "triangle": ("pyramid", "arrowhead"),
    "cross": ("crosshair", "intersection"),
    "small": ("tiny", "miniature"),
    "large": ("huge", "giant"),
    "left": ("heads west", "travels westward"),
    "right": ("heads east", "travels eastward"),
    "up": ("climbs", "ascends"),
    "down": ("sinks", "descends"),
    "still": ("remains motionless", "is frozen"),
    "black": ("ebony", "inky"),
    "white": ("snowy", "ivory"),
    "gray": ("ashen", "slate"),
}

TELEGRAPHIC: dict[str, tuple[str, ...]] = {
    "red": ("rd",),
    "green": ("grn",),
    "blue": ("blu",),
    "yellow": ("ylw",),
    "purple": ("prp",),
    "cyan": ("cyn",),
    "circle": ("circ",),
    "square": ("sq",),
    "triangle": ("tri",),
    "cross": ("crs",),
    "small": ("sm",),
    "large": ("lg",),
    "left": ("lft",),
    "right": ("rgt",),
    "up": ("upw",),
    "down": ("dwn",),
    "still": ("stl",),
    "black": ("blk",),
    "white": ("wht",),
    "gray": ("gry",),
}

LEXICONS: dict[Lexicon, dict[str, tuple[str, ...]]] = {"seen": SEEN, "unseen": UNSEEN, "telegraphic": TELEGRAPHIC}

#: Motion as a bare word, for seen prompts that have no verb.
BARE_MOTIONS = {"left": "left", "right": "right", "up": "up", "down": "down", "still": "still"}


def parse(prompt: str) -> Attributes:
    """The attributes that a prompt of this world mentions, in the words of any lexicon; the rest stays None."""
    words = re.findall(r"[a-z]+", prompt.lower())
    text = f" {' '.join(words)} "
    found: dict[str, str] = {}
    for attribute, values in VALUES.items():
        for value in values:
            if any(f" {phrase} " in text for phrase in _phrases(value)):
                found.setdefault(attribute, value)
    return Attributes(**found)


def lexicon_words() -> list[str]:
    """Every word of the three lexicons, once, in a fixed order."""
    phrases = (phrase for lexicon in LEXICONS.values() for words in lexicon.values() for phrase in words)
    return list(dict.fromkeys(word for phrase in phrases for word in phrase.split()))


def _phrases(value: str) -> list[str]:
    bare = [BARE_MOTIONS[value]] if value in BARE_MOTIONS else []
    return [phrase for name in get_args(Lexicon) for phrase in LEXICONS[name][value]] + bare
