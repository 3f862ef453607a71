"""Trained text encoders as files: written in Wan's own keys, read in those of anyone."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import UMT5EncoderModel

from latentloom.errors import CheckpointError, FileError
from latentloom.storage import atomic_write, read_header
from latentloom.wan.checkpoints import load_text_encoder as load_checkpoint_encoder
from latentloom.wan.keys_text_encoder import TEXT_ENCODER_KEYS
from latentloom.wan.layouts import PREFIXES, SPIECE_KEY
from latentloom.wan.shards import Shards

ENCODER_FILE = "text_encoder.safetensors"

_TIED_KEY = "encoder.embed_tokens.weight"
_PARTIAL = "partial"


def save_text_encoder(path: Path, tensors: Mapping[str, Tensor], partial: bool) -> None:
    """Write an encoder's tensors in Wan's own keys.

    Args:
        path: the safetensors file; by custom `text_encoder.safetensors` in an epoch's folder.
        tensors: by their names in transformers' UMT5EncoderModel, as its `state_dict` has them.
        partial: whether these are only the trained ones; the file says so, and reading it leaves the others alone.

    Raises:
        FileError: the place cannot be written to.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        key = TEXT_ENCODER_KEYS.to_official("shared.weight" if name == _TIED_KEY else name)
        if key is None:
            raise ValueError(f"{name!r} is no tensor of transformers' UMT5EncoderModel")
        renamed[key] = tensor.detach().cpu().contiguous()
    with atomic_write(path) as temporary:
        save_file(renamed, temporary, metadata={"format": "pt", _PARTIAL: str(partial).lower()})


@torch.no_grad()
def load_text_encoder_file(model: UMT5EncoderModel, path: Path) -> list[str]:
    """Replace an encoder's weights by those of a file, in the weights' own dtype and place.

    Args:
        model: transformers' encoder, its weights in memory; changed in place.
        path: a safetensors or .pth file in Wan's, Hugging Face's or ComfyUI's keys, or a folder that holds
            `text_encoder.safetensors`. A partial file of `save_text_encoder` replaces what it holds.

    Returns:
        The names of the replaced weights.

    Raises:
        FileError: there is no such file.
        CheckpointError: a key or a shape is not this encoder's, or some are missing from a file that is not partial;
            nothing is changed then.
    """
    file = encoder_file(path)
    shards = Shards([file])
    weights = dict(model.named_parameters())
    names = {key: encoder_tensor_name(file, key) for key in shards.tensors if not key.endswith(SPIECE_KEY)}
    for key, name in names.items():
        shape = shards.tensors[key].shape
        if name not in weights:
            raise CheckpointError(f"{file} holds {key}, which this encoder of {model.config.num_layers} blocks lacks")
        if shape != tuple(weights[name].shape):
            raise CheckpointError(
                f"{file}: {key} has shape {list(shape)} and this encoder's is {list(weights[name].shape)}; "
                "give a file that was trained on this encoder"
            )
    missing = [name for name in weights if name not in names.values()]
    if missing and not is_partial(file):
        raise CheckpointError(
            f"{file} lacks {len(missing)} of the encoder's {len(weights)} tensors, first {missing[0]}; "
            "give a whole encoder, or one that training wrote in part"
        )
    for key, tensor in shards.read(list(names)):
        weights[names[key]].copy_(tensor)
    return sorted(set(names.values()))


def read_text_encoder(
    root: Path,
    path: Path | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> UMT5EncoderModel:
    """A checkpoint's encoder, or a trained one in its place.

    Args:
        root: the checkpoint, in any layout.
        path: the trained encoder's file, whole or partial.
        dtype, device: as of `wan.checkpoints.load_text_encoder`.

    Raises:
        CheckpointError: the two do not belong together.
    """
    model = load_checkpoint_encoder(root, dtype, device)
    if path is not None:
        load_text_encoder_file(model, path)
    return model


def complete_text_encoder(path: Path, root: Path, target: Path) -> None:
    """Write a whole encoder: a checkpoint's, with the weights of a partial file in the place of its own.

    Args:
        path: the partial file.
        root: the checkpoint that it was trained from, in any layout; its weights' types are kept.
        target: the safetensors file to write, in Wan's own keys.

    Raises:
        CheckpointError: the two do not belong together.
    """
    save_text_encoder(target, read_text_encoder(root, path).state_dict(), partial=False)


def encoder_file(path: Path) -> Path:
    """The encoder's file: the path itself, or `text_encoder.safetensors` in a folder.

    Raises:
        FileError: there is none.
    """
    file = path / ENCODER_FILE if path.is_dir() else path
    if not file.is_file():
        raise FileError(f"{file} does not exist; give a text encoder's file, or an epoch's folder that holds one")
    return file


def is_partial(file: Path) -> bool:
    """Whether `save_text_encoder` wrote only the trained tensors to a file."""
    if file.suffix != ".safetensors":
        return False
    return read_header(file).get("__metadata__", {}).get(_PARTIAL) == "true"


def encoder_tensor_name(file: Path, key: str) -> str:
    """The name in transformers of a stored tensor of an encoder, whatever the style of the file's keys.

    Raises:
        CheckpointError: it is none of a UMT5 encoder's.
    """
    prefix = next(prefix for prefix in PREFIXES["text_encoder"] if key.startswith(prefix))
    bare = key.removeprefix(prefix)
    bare = "shared.weight" if bare == _TIED_KEY else bare
    name = bare if TEXT_ENCODER_KEYS.to_official(bare) else TEXT_ENCODER_KEYS.from_official(bare)
    if name is None:
        raise CheckpointError(
            f"{file} holds {key!r}, which is no tensor of a UMT5 encoder; give a text encoder in Wan's, Hugging Face's "
            "or ComfyUI's keys"
        )
    return name
