"""Prompts' text, repaired as Wan repairs it; apart from the encoder, since many read prompts and few encode them."""

import html
import re

import ftfy

from latentloom.errors import PromptError


def clean(prompt: object) -> str:
    """Repair a prompt's text as Wan does: mojibake and control characters, HTML entities, runs of whitespace.

    NUL bytes and other control characters disappear, lone surrogates become U+FFFD, line breaks become spaces.

    Raises:
        PromptError: the prompt is not text.

    Source: Wan 2.2 `wan/modules/tokenizers.py`, `basic_clean` and `whitespace_clean`.
    """
    if not isinstance(prompt, str):
        raise PromptError(f"a prompt must be text, not {type(prompt).__name__}: {prompt!r:.60}; give a string")
    text = ftfy.fix_text(prompt)
    text = html.unescape(html.unescape(text))
    return re.sub(r"\s+", " ", text.strip()).strip()
