"""Captions cut down to the words that are being calibrated, now and then, in training only."""

import re

from latentloom.finetune.config import CaptionAugConfig


def trim_probability(config: CaptionAugConfig, progress: float) -> float:
    """The chance that a caption is trimmed.

    Args:
        config: the settings.
        progress: share of the run that lies behind, from 0 to 1.
    """
    if not config.enable:
        return 0.0
    return config.trim_prob * (1 - progress if config.trim_prob_schedule == "linear" else 1.0)


def trim_caption(caption: str, config: CaptionAugConfig, draw: float) -> str:
    """The keywords of a caption in place of the caption; a caption without any stays as it is.

    Args:
        caption: the whole text.
        config: which keywords, and whether one of them is kept or all.
        draw: from 0 up to 1, which keyword is kept.
    """
    found = keywords_in(caption, config)
    if not found:
        return caption
    return found[int(draw * len(found))] if config.single_token else ", ".join(found)


def keywords_in(caption: str, config: CaptionAugConfig) -> list[str]:
    """The keywords that a caption holds as whole words, in the caption's spelling and order; each once."""
    flags = re.IGNORECASE if config.case_insensitive else 0
    # the longest first, so that "hot air balloon" is not found as "balloon"
    words = sorted(config.keywords, key=len, reverse=True)
    if not words:
        return []
    pattern = "|".join(rf"(?<!\w){re.escape(word)}(?!\w)" for word in words)
    return list(dict.fromkeys(match.group() for match in re.finditer(pattern, caption, flags)))
