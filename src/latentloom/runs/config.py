"""Settings: a pydantic model, filled from a TOML file, changed from the command line."""

import json
import re
import tomllib
import types
from collections.abc import Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError

from latentloom.errors import ConfigError, FileError


class Config(BaseModel):
    """Base of every settings class: checked once when built, frozen afterwards, closed to unknown keys.

    A section is a field whose type is another Config; a tuple or list of one is written as `[[tables]]`, in the file
    only. In TOML and on the command line, `none` is None where the field allows it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


ConfigT = TypeVar("ConfigT", bound=Config)


def load_config(cls: type[ConfigT], toml: Path | str | None, overrides: Sequence[str] = ()) -> ConfigT:
    """Settings of class `cls`: its defaults, changed by the TOML file, changed by the overrides in order.

    Args:
        cls: the settings class.
        toml: a TOML file, or None for the defaults.
        overrides: `key=value` or `section.key=value`; the value as in TOML, quotes optional.

    Raises:
        FileError: the TOML file does not exist.
        ConfigError: TOML that cannot be parsed, an unknown key (the nearest known one is named), a wrong value.
    """
    settings = _from_fields(cls, _read_toml(toml) if toml is not None else {})
    for override in overrides:
        key, equals, text = override.partition("=")
        key = key.strip()
        if not equals or not key:
            raise ConfigError(f"override {override!r} has no '='; write section.key=value")
        _set(settings, key, _parse(_field_type(cls, key), text.strip()))
    try:
        return cls.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(_in_one_line(error)) from error


def to_toml(config: Config | Mapping[str, Any]) -> str:
    """TOML text that `load_config` reads back as the same settings."""
    values = config.model_dump(mode="json") if isinstance(config, Config) else config
    return "\n".join(_toml_lines(values, ())).strip() + "\n"


def _read_toml(path: Path | str) -> dict[str, Any]:
    try:
        with Path(path).open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise FileError(f"cannot read the settings {path}: {error.strerror}; give a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not TOML: {_first_line(error)}") from error


def _from_fields(cls: type[BaseModel], values: Mapping[str, Any], prefix: str = "", root: Any = None) -> dict[str, Any]:
    """`values` with every key known to `cls`, and `none` turned into None where it is allowed."""
    root = root or cls
    checked = {}
    for key, value in values.items():
        if key not in cls.model_fields:
            raise _unknown(root, prefix + key)
        annotation = cls.model_fields[key].annotation
        section = _section(annotation)
        listed = _listed_section(annotation)
        if section is not None and isinstance(value, Mapping):
            value = _from_fields(section, value, f"{prefix}{key}.", root)
        elif listed is not None and isinstance(value, list):
            nested = f"{prefix}{key}."
            value = [_from_fields(listed, item, nested, root) if isinstance(item, Mapping) else item for item in value]
        elif isinstance(value, str) and value == "none" and _allows(annotation, types.NoneType):
            value = None
        checked[key] = value
    return checked


def _field_type(cls: type[BaseModel], key: str) -> Any:
    """The annotation of a dotted key; Any inside a free-form table."""
    annotation: Any = cls
    for part in key.split("."):
        section = _section(annotation)
        if _listed_section(annotation) is not None:
            raise ConfigError(f"override {key!r}: a list of sections cannot be changed in part; change the TOML file")
        if section is None and not _allows(annotation, dict):
            raise _unknown(cls, key)
        if section is None:
            annotation = dict[str, Any]
            continue
        if part not in section.model_fields:
            raise _unknown(cls, key)
        annotation = section.model_fields[part].annotation
    return annotation


def _set(settings: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        inner = settings.get(section)
        settings[section] = dict(inner) if isinstance(inner, Mapping) else {}
        settings = settings[section]
    settings[last] = value


def _parse(annotation: Any, text: str) -> Any:
    if text == "none" and _allows(annotation, types.NoneType):
        return None
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return text
    # a name such as 1e3 or true stays the name it is where a text or a path is asked for
    wants_text = any(_allows(annotation, kind) for kind in (str, Path))
    return text if wants_text and isinstance(value, bool | int | float) else value


def _members(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _allows(annotation: Any, kind: type) -> bool:
    return any(member is kind or get_origin(member) is kind for member in _members(annotation))


def _section(annotation: Any) -> type[BaseModel] | None:
    for member in _members(annotation):
        if isinstance(member, type) and issubclass(member, BaseModel):
            return member
    return None


def _listed_section(annotation: Any) -> type[BaseModel] | None:
    for member in _members(annotation):
        if get_origin(member) in (list, tuple):
            return next((section for item in get_args(member) if (section := _section(item))), None)
    return None


def _known_keys(cls: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in cls.model_fields.items():
        section = _section(field.annotation) or _listed_section(field.annotation)
        yield prefix + name
        if section is not None:
            yield from _known_keys(section, f"{prefix}{name}.")


def _unknown(cls: type[BaseModel], key: str) -> ConfigError:
    known = list(_known_keys(cls))
    if not known:
        return ConfigError(f"unknown setting {key!r}; {cls.__name__} has no settings")
    section = key.rpartition(".")[0] + "."
    beside = [name for name in known if name.startswith(section)] or [name for name in known if "." not in name]
    nearest = max(known, key=lambda name: _likeness(key, name))
    return ConfigError(f"unknown setting {key!r}; the nearest is {nearest!r}; beside it: {', '.join(beside)}")


def _likeness(given: str, known: str) -> float:
    whole = SequenceMatcher(None, given, known).ratio()
    last = SequenceMatcher(None, given.rpartition(".")[2], known.rpartition(".")[2]).ratio()
    return max(whole, 0.9 * last)  # the right name in the wrong section loses to a near miss in the right one


def _in_one_line(error: ValidationError) -> str:
    first, *more = error.errors(include_url=False)
    key = ".".join(str(part) for part in first["loc"])
    others = f" (and {len(more)} more)" if more else ""
    message = " ".join(first["msg"].removeprefix("Value error, ").split())
    if not key or (first["type"] == "value_error" and isinstance(first["input"], Mapping)):
        # of a whole section, whose message names what it is about
        return f"{key}{': ' if key else ''}{message}{others}"
    return f"{key} = {first['input']!r:.80}: {message}{others}"


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _toml_lines(values: Mapping[str, Any], path: tuple[str, ...], is_item: bool = False) -> Iterator[str]:
    tables = {key: value for key, value in values.items() if isinstance(value, Mapping)}
    lists = {key: value for key, value in values.items() if _is_list_of_tables(value)}
    num_plain = len(values) - len(tables) - len(lists)
    name = ".".join(_toml_key(part) for part in path)
    if is_item:
        yield f"\n[[{name}]]"
    elif path and (num_plain or not values):
        yield f"\n[{name}]"
    for key, value in values.items():
        if key not in tables and key not in lists:
            yield f"{_toml_key(key)} = {_toml_value(value)}"
    for key, table in tables.items():
        yield from _toml_lines(table, (*path, key))
    for key, items in lists.items():
        for item in items:
            yield from _toml_lines(item, (*path, key), is_item=True)


def _is_list_of_tables(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(item, Mapping) for item in value)


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml_value(key)


def _toml_value(value: Any) -> str:
    if value is None:
        return '"none"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml_value(item) for item in value)}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_toml_key(key)} = {_toml_value(item)}' for key, item in value.items())}}}"
    # JSON's escapes are TOML's, but for the delete character
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
