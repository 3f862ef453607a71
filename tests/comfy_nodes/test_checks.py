"""A node's own check, asked as ComfyUI asks: by its parameters' names, with what it knows before anything runs."""

import inspect

from latentloom.comfy.checks import answering
from latentloom.errors import ConfigError


def check(first: str, second: str) -> str | None:
    if first == "odd":
        raise ConfigError("first is odd; make it even")
    return "the two are the same; change one" if first == second else None


def test_the_answer_is_true_or_the_message():
    assert answering(check)(first="a", second="b") is True
    assert answering(check)(first="a", second="a") == "the two are the same; change one"
    assert answering(check)(first="odd", second="b") == "first is odd; make it even"


def test_a_value_that_a_link_fills_is_not_checked():
    assert answering(check)(first="odd") is True
    assert answering(check)(first="odd", second=None) is True


def test_a_default_stands_in_for_what_is_not_known():
    def window(start: float, end: float = 1.0) -> str | None:
        return None if start < end else "give a start below the end"

    assert answering(window)(start=0.5, end=None) is True
    assert answering(window)(start=1.0) == "give a start below the end"
    assert answering(window)(start=None, end=0.0) is True


def test_comfyui_reads_which_widgets_are_checked():
    assert inspect.getfullargspec(answering(check)).args == ["first", "second"]
