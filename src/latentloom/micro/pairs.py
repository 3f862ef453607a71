"""Prompts in words MicroWan was never taught, each with a rewrite in words it knows."""

from collections.abc import Sequence

import torch

from latentloom.errors import ConfigError
from latentloom.micro.attributes import VALUES, Attributes, split
from latentloom.micro.captions import Style, caption
from latentloom.micro.lexicon import Lexicon

#: The lexicons a base prompt may be in, with the form of its sentences.
BASE_STYLES: dict[Lexicon, Style] = {"unseen": "verbose", "telegraphic": "telegraphic"}
#: Share of pairs that leave attributes open on both sides, since people often write little; and how many, at most.
PARTIAL_SHARE, MOST_LEFT_OPEN = 0.3, 3
MAX_PAIRS = 100_000


def make_pairs(
    num: int, seed: int = 0, lexicons: Sequence[Lexicon] = ("unseen", "telegraphic")
) -> list[tuple[str, str]]:
    """Different pairs (base, rewritten) that mention the same attributes; no combination is held out for evaluation.

    Args:
        num: how many.
        seed: of all choices; more pairs of one seed begin with the fewer.
        lexicons: of the base prompts, in equal shares; the rewrite is a verbose caption in seen words.

    Raises:
        ConfigError: a number out of range, or a lexicon that base prompts cannot be in.
    """
    if not 1 <= num <= MAX_PAIRS:
        raise ConfigError(f"{num} pairs were asked for; give 1 to {MAX_PAIRS}")
    unknown = [name for name in lexicons if name not in BASE_STYLES]
    if unknown or not lexicons:
        given = repr(unknown[0]) if unknown else "nothing"
        raise ConfigError(f"{given} as the lexicon of base prompts; choose from {', '.join(BASE_STYLES)}")
    generator = torch.Generator().manual_seed(seed)
    pairs: dict[tuple[str, str], None] = {}  # a set that keeps its order
    while len(pairs) < num:
        clips = split("train")
        for index in torch.randperm(len(clips), generator=generator).tolist():  # every combination equally often
            lexicon = lexicons[_below(len(lexicons), generator)]
            pairs[_pair(_partly(clips[index], generator), lexicon, generator)] = None
    return list(pairs)[:num]


def _pair(attributes: Attributes, lexicon: Lexicon, generator: torch.Generator) -> tuple[str, str]:
    # from one seed, words and template are drawn alike: a verbose base has the very sentence of its rewrite
    seed = _below(2**31, generator)
    base, rewritten = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed)
    return caption(attributes, BASE_STYLES[lexicon], base, lexicon), caption(attributes, "verbose", rewritten)


def _partly(attributes: Attributes, generator: torch.Generator) -> Attributes:
    if torch.rand((), generator=generator) >= PARTIAL_SHARE:
        return attributes
    order = torch.randperm(len(VALUES), generator=generator)[: 1 + _below(MOST_LEFT_OPEN, generator)]
    return attributes.without(*(list(VALUES)[position] for position in order.tolist()))


def _below(limit: int, generator: torch.Generator) -> int:
    return int(torch.randint(limit, (), generator=generator))
