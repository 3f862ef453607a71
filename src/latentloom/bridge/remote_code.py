"""When Python code that comes with weights may run."""

import logging
import re
from pathlib import Path

from latentloom.bridge.config import ModelConfig
from latentloom.bridge.wedlm import is_wedlm
from latentloom.bridge.weight_files import CONFIG, read_json
from latentloom.errors import ConfigError

_log = logging.getLogger(__name__)


def allow_remote_code(config: ModelConfig, folder: Path, part: str = "AutoModelForCausalLM") -> bool:
    """Whether transformers is told that it may run the folder's own code; the log names the file.

    Never for WeDLM, which runs in transformers' own classes, nor where the folder has no code for this part.

    Args:
        config: `trust_remote_code` allows it, for a folder given as such or a commit of a hub name.
        folder: the model's.
        part: which of the folder's parts is loaded.

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
    values = read_json(folder / CONFIG)
    source = _source(folder, part)
    if is_wedlm(values) or source is None:
        return False
    if "--" in source:
        raise ConfigError(f"{folder}: its code is that of another repository, {source}; copy it into the folder")
    _log.warning("running code that comes with %s: %s", name, folder / f"{source.rpartition('.')[0]}.py")
    return True


def _source(folder: Path, part: str) -> str | None:
    """`module.Class` of a part's own code; None where it has none."""
    file = folder / ("tokenizer_config.json" if part == "AutoTokenizer" else CONFIG)
    stated = (read_json(file).get("auto_map") or {}).get(part) if file.is_file() else None
    if isinstance(stated, list):  # a tokenizer's slow and fast class
        stated = next((one for one in stated if one), None)
    return stated if isinstance(stated, str) else None
