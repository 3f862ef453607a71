"""Commands whose options are the fields of a settings class, so that option, TOML key and help are stated once."""

import inspect
import json
import tomllib
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from latentloom.errors import ConfigError
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
    return choosing_command("", {"": settings_class}, "", function)


def choosing_command(
    chooser: str, classes: Mapping[str, type[Config]], default: str, function: Callable[..., None]
) -> Callable[..., None]:
    """A command as `config_command` makes, whose settings are of the class that one of them chooses.

    It has the options of all classes; one that the chosen class does not have is refused.

    Args:
        chooser: name of the setting that chooses.
        classes: by its value; a value that is not named has the class of `default`.
        default: one of the names, and first in help.
        function: see `config_command`.
    """
    ordered = {default: classes[default], **classes}
    names = list(dict.fromkeys(name for one in ordered.values() for name in one.model_fields))

    def command(**given: Any) -> None:
        values = {name: value for name in names if (value := given.pop(name)) is not None}
        file = given.pop("config")
        choice = values.get(chooser) or _stated(file, chooser)
        chosen = classes.get(choice or default, classes[default])
        for name in values:
            if name not in chosen.model_fields:
                option, setting = f"--{name.replace('_', '-')}", f"--{chooser} {choice or default}"
                raise ConfigError(f"{option} has no effect with {setting}; leave it out")
        overrides = [f"{name}={_as_toml(chosen.model_fields[name], value)}" for name, value in values.items()]
        function(load_config(chosen, file, overrides), **given)

    _, *own = inspect.signature(function, eval_str=True).parameters.values()
    file = Annotated[Path | None, typer.Option("--config", metavar="FILE", help="Settings, a TOML file.")]
    fields = [_parameter("config", file), *own]
    fields += [_parameter(name, _option(name, ordered, chooser)) for name in names]
    command.__signature__ = inspect.Signature(fields)  # what typer reads
    command.__annotations__ = {field.name: field.annotation for field in fields}
    command.__doc__ = function.__doc__
    return command


def _stated(file: Path | None, name: str) -> str | None:
    """What a TOML file says of a setting; None where that is nothing, or where reading it will fail anyway."""
    if file is None or not name:
        return None
    try:
        value = tomllib.loads(file.read_text(encoding="utf-8")).get(name)
    except (OSError, ValueError):  # load_config says what is wrong with the file
        return None
    return value if isinstance(value, str) else None


def _parameter(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _option(name: str, classes: Mapping[str, type[Config]], chooser: str) -> Any:
    known = {choice: one.model_fields[name] for choice, one in classes.items() if name in one.model_fields}
    first, *others = known
    defaults = [_shown_default(known[first])]
    if name != chooser:
        defaults += [
            f"of {choice}: {shown}" for choice in others if (shown := _shown_default(known[choice])) != defaults[0]
        ]
    stated = "; ".join(filter(None, defaults))
    metavars = list(dict.fromkeys(part for field in known.values() for part in _metavar(field.annotation).split("|")))
    text = f"{known[first].description}{f' (default: {stated})' if stated else ''}"  # brackets would be read as markup
    return Annotated[str | None, typer.Option(f"--{name.replace('_', '-')}", metavar="|".join(metavars), help=text)]


def _shown_default(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True)
    if default is None:
        return ""
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    return str(int(default) if isinstance(default, bool) else default)


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
