"""What a MicroWan clip can show: five attributes, and which combinations training never sees."""

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import product

COLOURS = {
    "red": (0.90, 0.10, 0.10),
    "green": (0.10, 0.75, 0.15),
    "blue": (0.15, 0.25, 0.95),
    "yellow": (0.98, 0.88, 0.10),
    "purple": (0.75, 0.15, 0.85),
    "cyan": (0.10, 0.85, 0.90),
}
BACKGROUNDS = {"black": (0.03, 0.03, 0.03), "white": (0.97, 0.97, 0.97), "gray": (0.50, 0.50, 0.50)}
SHAPES = ("circle", "square", "triangle", "cross")
SIZES = ("small", "large")
MOTIONS = ("left", "right", "up", "down", "still")

#: The values each attribute takes; the order of the keys is the order of every table.
VALUES: dict[str, tuple[str, ...]] = {
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "size": SIZES,
    "motion": MOTIONS,
    "background": tuple(BACKGROUNDS),
}

#: Colour-shape pairs that no training clip shows: the test of composition.
UNSEEN_PAIRS = (("red", "triangle"), ("blue", "cross"))

_HELD_OUT_SHARE = 0.10


@dataclass(frozen=True)
class Attributes:
    """One clip's content; None stands for an attribute left open (or not readable)."""

    colour: str | None = None
    shape: str | None = None
    size: str | None = None
    motion: str | None = None
    background: str | None = None

    def mentioned(self) -> dict[str, str]:
        """The attributes that are set, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def without(self, *names: str) -> "Attributes":
        """The same clip with these attributes left open."""
        return replace(self, **dict.fromkeys(names))


def all_attributes() -> Iterator[Attributes]:
    """Every complete combination, in a fixed order: 6 x 4 x 2 x 5 x 3 = 720."""
    for values in product(*VALUES.values()):
        yield Attributes(*values)


def is_unseen_pair(attributes: Attributes) -> bool:
    """True where the colour-shape pair is one that training never shows."""
    return (attributes.colour, attributes.shape) in UNSEEN_PAIRS


def is_held_out(attributes: Attributes) -> bool:
    """True for the combinations kept for evaluation: about a tenth, spread by a hash, beside the unseen pairs."""
    digest = hashlib.sha256("|".join(attributes.mentioned().values()).encode()).digest()
    return digest[0] < 256 * _HELD_OUT_SHARE and not is_unseen_pair(attributes)


def split(name: str) -> list[Attributes]:
    """The combinations of one split: "train", "held_out" or "unseen_pair".

    Raises:
        KeyError: for any other name.
    """
    belongs = {
        "train": lambda item: not is_held_out(item) and not is_unseen_pair(item),
        "held_out": is_held_out,
        "unseen_pair": is_unseen_pair,
    }[name]
    return [item for item in all_attributes() if belongs(item)]
