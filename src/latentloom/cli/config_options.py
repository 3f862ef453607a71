"""Commands whose options are the fields of a settings class, so that option, TOML key and help are stated once."""

import inspect
import json
import types
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from latentloom.runs.config import Config, load_config

ConfigT = TypeVar("ConfigT", bound=Config)

_WORDS = {bool: "0|1", int: "INTEGER", float: "NUMBER", Path: "PATH", str: "TEXT"}


def config_command(settings_class: type[ConfigT], function: Callable[..., None]) -> Callable[..., None]:
    """A command that takes `--config FILE` and an option for every field, and calls `function(settings, ...)`.

    Options change what the file says, which changes the defaults. Lists are written with commas, booleans as 0 or 1.

    Args:
        settings_class: whose fields all have descriptions.
        function: its first parameter is the settings; the others are options of their own, annotated for typer. Its
            docstring is the command's help.
    """

    def command(**given: Any) -> None:
        values = {name: given.pop(name) for name in settings_class.model_fields}
        overrides = [
            f"{name}={_as_toml(settings_class.model_fields[name], value)}"
            for name, value in values.items()
            if value is not None
        ]
        function(load_config(settings_class, given.pop("config"), overrides), **given)

    _, *own = inspect.signature(function, eval_str=True).parameters.values()
    file = Annotated[Path | None, typer.Option("--config", metavar="FILE", help="Settings, a TOML file.")]
    fields = [_parameter("config", file), *own]
    fields += [_parameter(name, _option(name, field)) for name, field in settings_class.model_fields.items()]
    command.__signature__ = inspect.Signature(fields)  # what typer reads
    command.__annotations__ = {field.name: field.annotation for field in fields}
    command.__doc__ = function.__doc__
    return command


def _parameter(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _option(name: str, field: FieldInfo) -> Any:
    default = field.get_default(call_default_factory=True)
    shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
    shown = int(shown) if isinstance(shown, bool) else shown
    stated = "" if shown in (None, "") else f" (default: {shown})"  # brackets would be read as markup
    option = typer.Option(
        f"--{name.replace('_', '-')}", metavar=_metavar(field.annotation), help=f"{field.description}{stated}"
    )
    return Annotated[str | None, option]


def _metavar(annotation: Any) -> str:
    if get_origin(annotation) in (Union, types.UnionType):
        return _metavar(next(member for member in get_args(annotation) if member is not types.NoneType))
    if get_origin(annotation) is Literal:
        return "|".join(get_args(annotation))
    if get_origin(annotation) is Annotated:
        return _metavar(get_args(annotation)[0])
    if get_origin(annotation) is tuple:
        return f"{_metavar(get_args(annotation)[0])},..."
    return _WORDS[annotation]


def _as_toml(field: FieldInfo, text: str) -> str:
    if get_origin(field.annotation) is tuple and not text.startswith("["):
        return f"[{text}]"
    # a path or a text is what was given, also where it looks like a date, a list or a number of TOML
    is_text = _metavar(field.annotation) in (_WORDS[Path], _WORDS[str])
    return json.dumps(text, ensure_ascii=False) if is_text and text != "none" else text
