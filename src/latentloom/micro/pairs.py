"""Prompts in words that MicroWan's DiT never met, each with the same sentence in words that it knows."""

from collections.abc import Sequence

import torch

from latentloom.delta.pairs import normalise
from latentloom.errors import ConfigError
from latentloom.micro.attributes import VALUES, Attributes, split
from latentloom.micro.captions import Style, caption
from latentloom.micro.lexicon import Lexicon

#: The lexicons a base prompt may be in, with the forms of its sentences, in equal shares.
BASE_STYLES: dict[Lexicon, tuple[Style, ...]] = {"unseen": ("verbose", "terse"), "telegraphic": ("telegraphic",)}
#: How many attributes a pair leaves open at most. People often write little, and little tells most about each word.
MOST_LEFT_OPEN = 4
MAX_PAIRS = 100_000


def make_pairs(
    num: int, seed: int = 0, lexicons: Sequence[Lexicon] = ("unseen", "telegraphic")
) -> list[tuple[str, str]]:
    """Different pairs (base, rewritten) that mention the same attributes; no combination is held out for evaluation.

    Args:
        num: how many.
        seed: of all choices; more pairs of one seed begin with the fewer.
        lexicons: of the base prompts, in equal shares; the rewrite is the same sentence in seen words.

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
    pairs: dict[tuple[str, str], tuple[str, str]] = {}  # by their words alone: spelling makes no new pair
    while len(pairs) < num:
        clips = split("train")
        for index in torch.randperm(len(clips), generator=generator).tolist():  # every combination equally often
            lexicon = lexicons[_below(len(lexicons), generator)]
            base, rewritten = _pair(_partly(clips[index], generator), lexicon, generator)
            pairs.setdefault((normalise(base), normalise(rewritten)), (base, rewritten))
    return list(pairs.values())[:num]


def _pair(attributes: Attributes, lexicon: Lexicon, generator: torch.Generator) -> tuple[str, str]:
    # from one seed, words and template are drawn alike: both sides have the same sentence
    styles = BASE_STYLES[lexicon]
    style, seed = styles[_below(len(styles), generator)], _below(2**31, generator)
    base, rewritten = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed)
    return caption(attributes, style, base, lexicon), caption(attributes, style, rewritten, "seen")


def _partly(attributes: Attributes, generator: torch.Generator) -> Attributes:
    order = torch.randperm(len(VALUES), generator=generator)[: _below(MOST_LEFT_OPEN + 1, generator)]
    return attributes.without(*(list(VALUES)[position] for position in order.tolist()))


def _below(limit: int, generator: torch.Generator) -> int:
    return int(torch.randint(limit, (), generator=generator))
