"""Settings of the bridge, from a recipe's name or a file, changed on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from latentloom.errors import ConfigError

if TYPE_CHECKING:
    from latentloom.bridge.config import BridgeConfig

ConfigNameOption = Annotated[
    str | None,
    typer.Option("--config-name", metavar="NAME", help="Settings from recipes/NAME.toml, here or in the checkout."),
]
ConfigOption = Annotated[Path | None, typer.Option("--config", metavar="FILE", help="Settings from a TOML file.")]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="[section.key=value]...", help="Changes to the settings.", show_default=False),
]


def bridge_settings(config_name: str | None, config: Path | None, overrides: list[str] | None) -> BridgeConfig:
    """Settings from a recipe or a file, or the embedded default's where neither is given, with the changes made.

    Args:
        config_name: a recipe without its `.toml`; looked for in `recipes/` of the working directory, then of the
            checkout that the package is installed from.
        config: a TOML file.
        overrides: `section.key=value`, in order.

    Raises:
        ConfigError: both a name and a file, a name that no recipe has, or a setting that is not one.
        FileError: the file cannot be read.
    """
    from latentloom.bridge.config import BridgeConfig
    from latentloom.runs.config import load_config

    if config_name is not None and config is not None:
        raise ConfigError(f"--config-name {config_name} and --config {config} are both given; give one of them")
    return load_config(BridgeConfig, find_recipe(config_name) if config_name is not None else config, overrides or [])


def find_recipe(name: str) -> Path:
    """The TOML file of a recipe.

    Raises:
        ConfigError: there is none of that name; the ones for the bridge are listed.
    """
    folders = list(dict.fromkeys(folder / "recipes" for folder in (Path.cwd(), Path(__file__).resolve().parents[3])))
    for folder in folders:
        file = folder / f"{name.removesuffix('.toml')}.toml"
        if file.is_file():
            return file
    known = sorted({file.stem for folder in folders for file in folder.glob("*bridge*.toml")})
    listed = f"there are {', '.join(known)}" if known else "there is none for the bridge"
    raise ConfigError(f"no recipe {name!r} in {' or '.join(map(str, folders))}; {listed}; or give a file with --config")
