"""Prompts from the command line and from files."""

from pathlib import Path
from typing import Annotated

import typer

from latentloom.errors import FileError, PromptError

PromptsArgument = Annotated[list[str] | None, typer.Argument(metavar="PROMPT", help="Texts, each in quotes.")]
PromptsFileOption = Annotated[
    Path | None, typer.Option("--prompts", metavar="FILE", help="A text file with one prompt per line.")
]


def collect_prompts(arguments: list[str] | None, file: Path | None) -> list[str]:
    """The prompts of the command line, then those of the file.

    Raises:
        PromptError: there is none, or one is not valid text.
        FileError: the file is missing or not UTF-8 text.
    """
    prompts = list(arguments or []) + (read_prompts(file) if file is not None else [])
    if not prompts:
        given = f"{file} holds no prompt" if file is not None else "no prompt was given"
        raise PromptError(f'{given}; give one, as in "A small red circle moves to the left."')
    for prompt in prompts:
        if not prompt.isascii() and any("\ud800" <= letter <= "\udfff" for letter in prompt):
            raise PromptError(f"the prompt {prompt!a:.80} is not valid UTF-8; give it as text in that encoding")
    return prompts


def read_prompts(file: Path) -> list[str]:
    """One prompt per line of a UTF-8 text file; blank lines do not count.

    Raises:
        FileError: the file is missing or not UTF-8 text.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise FileError(f"{file} is not UTF-8 text (byte {error.start}); give one prompt per line") from error
    except OSError as error:
        raise FileError(f"{file}: {error.strerror}; give a text file with one prompt per line") from error
    return [line.strip() for line in text.split("\n") if line.strip()]
