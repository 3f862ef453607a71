"""What a node says of its widgets before anything runs, in the form that ComfyUI asks for."""

import inspect
from collections.abc import Callable
from typing import Any

from latentloom.errors import LatentLoomError


def answering(check: Callable[..., str | None]) -> Callable[..., bool | str]:
    """The check as ComfyUI calls it: True, or the message; it sees the same parameters, which say what is checked.

    A value that is filled by a link is not known yet: ComfyUI leaves it out, or hands on None.
    """
    signature = inspect.signature(check)

    def ask(**values: Any) -> bool | str:
        if any(values.get(name) is None for name in signature.parameters):
            return True
        try:
            return check(**values) or True
        except LatentLoomError as error:
            return str(error)

    named: Any = ask
    named.__signature__ = signature  # which ComfyUI reads the parameters' names from
    return named
