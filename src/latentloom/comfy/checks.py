"""What a node says of its widgets before anything runs, in the form that ComfyUI asks for."""

import inspect
from collections.abc import Callable
from typing import Any

from latentloom.errors import LatentLoomError


def answering(check: Callable[..., str | None]) -> Callable[..., bool | str]:
    """The check as ComfyUI calls it: True, or the message; it sees the same parameters, which say what is checked.

    A value that is filled by a link is not known yet: ComfyUI leaves it out, or hands on None. Then the parameter's
    default stands in, which is to be one that no other value clashes with; without a default nothing is checked.
    """
    signature = inspect.signature(check)
    needed = {name for name, part in signature.parameters.items() if part.default is part.empty}

    def ask(**values: Any) -> bool | str:
        known = {name: value for name, value in values.items() if value is not None}
        if needed - set(known):
            return True
        try:
            return check(**known) or True
        except LatentLoomError as error:
            return str(error)

    named: Any = ask
    named.__signature__ = signature  # which ComfyUI reads the parameters' names from
    return named
