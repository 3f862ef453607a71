"""Libraries that come with an extra, asked for before they are imported."""

from importlib.util import find_spec

from latentloom.errors import ConfigError

#: What each extra of pyproject.toml brings, as far as commands import it.
EXTRAS = {"finetune": ("datasets", "deepspeed", "peft")}


def require_extra(extra: str, *libraries: str) -> None:
    """Return if the libraries of an extra are installed.

    Args:
        extra: its name.
        libraries: those that are needed; all of the extra's when none is named.

    Raises:
        ConfigError: one is missing.
    """
    missing = [library for library in libraries or EXTRAS[extra] if find_spec(library) is None]
    if missing:
        raise ConfigError(
            f"this needs {', '.join(missing)}; install the extra with `make setup`, or with "
            f"DS_BUILD_OPS=0 pip install --no-build-isolation 'latentloom[{extra}]' after torch"
        )
