"""When Python code that comes with weights may run."""

import logging
import re
from pathlib import Path

from latentloom.bridge.config import ModelConfig
from latentloom.bridge.wedlm import is_wedlm
from latentloom.bridge.weight_files import CONFIG, read_json
from latentloom.errors import ConfigError

_log = logging.getLogger(__name__)


def allow_remote_code(config: ModelConfig, folder: Path) -> bool:
    """Whether transformers is told that it may run the folder's own code; the log names the files.

    Never for WeDLM, which runs in transformers' own classes, nor where the folder says nothing of code.

    Args:
        config: `trust_remote_code` allows it, for a folder given as such or a commit of a hub name.
        folder: the model's.

    Raises:
        ConfigError: the code may change under its name, or would come from somewhere else.
    """
    if not config.trust_remote_code:
        return False
    name = config.pretrained_model_name_or_path
    if not Path(name).expanduser().exists() and not re.fullmatch(r"[0-9a-f]{40}", config.revision or ""):
        raise ConfigError(
            f"model.trust_remote_code = true with model.revision = {config.revision!r}; code on the hub can change, so "
            "give the commit whose code you have read (40 hex digits), or a folder on this machine"
        )
    sources = _code_sources(folder)
    if is_wedlm(read_json(folder / CONFIG)) or not sources:
        return False
    if foreign := [source for source in sources if "--" in source]:
        raise ConfigError(f"{folder}: its code is that of another repository, {foreign[0]}; copy it into the folder")
    files = sorted({str(folder / f"{source.rpartition('.')[0]}.py") for source in sources})
    _log.warning("running code that comes with %s: %s", name, ", ".join(files))
    return True


def _code_sources(folder: Path) -> list[str]:
    """`module.Class` of all that the folder has its own code for."""
    files = [file for file in (folder / CONFIG, folder / "tokenizer_config.json") if file.is_file()]
    stated = [source for file in files for source in (read_json(file).get("auto_map") or {}).values()]
    # a tokenizer names a slow and a fast class, of which one may be missing
    flat = [one for source in stated for one in (source if isinstance(source, list) else [source])]
    return [source for source in flat if isinstance(source, str)]
