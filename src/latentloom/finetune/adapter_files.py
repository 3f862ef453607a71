"""Adapters as files: written so that ComfyUI, diffusers and PEFT read them, and read however others wrote them."""

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from jaxtyping import Float
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor

from latentloom.errors import CheckpointError, FileError
from latentloom.finetune.lora import diffusers_name, official_name
from latentloom.storage import atomic_write, write_json
from latentloom.storage.modules import read_tensors
from latentloom.wan.facts import KNOWN, identify
from latentloom.wan.keys_transformer import TRANSFORMER_KEYS, transformer_dims
from latentloom.wan.shards import read_json

ADAPTER_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
EXPERTS = ("high", "low")

# Nameless sizes, as a name would have to mean the same size in every layer of an adapter.
Pair = tuple[Float[Tensor, "_ _"], Float[Tensor, "_ _"]]
"""A [rank, in] and B [out, rank] of one layer."""
Adapter = dict[str, Pair]
"""A and B of every adapted layer by its official name (`blocks.3.cross_attn.k`); the layer's change is B @ A."""

_PREFIXES = ("base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer_2.", "transformer.")
_ENDING = re.compile(
    r"\.(?:(?P<down>lora_A|lora_down|lora\.down)|(?P<up>lora_B|lora_up|lora\.up))(?:\.default)?\.weight$|\.alpha$"
)


def save_adapter(
    folder: Path,
    state: Mapping[str, Tensor],
    *,
    rank: int,
    dropout: float,
    base: str,
    expert: str | None = None,
) -> Path:
    """Write an adapter: the file that ComfyUI and diffusers read, and PEFT's config beside it.

    Args:
        folder: an epoch's folder; made where it is missing. What else lies there stays.
        state: by the names of `inject_lora`, every A with its B.
        rank: of the adapters; their scale is 1.
        dropout: they were trained with.
        base: the checkpoint that they were trained on, for PEFT's config.
        expert: "high" or "low" of a two-expert model: the files go to `high_noise/`, and a second name for the
            adapter, `adapter_model_high_noise.safetensors`, to the folder itself.

    Returns:
        The adapter's file.

    Raises:
        FileError: the folder cannot be written to.
    """
    names = sorted({name.rsplit(".lora_", 1)[0] for name in state})
    tensors = {
        f"diffusion_model.{official_name(name)}.{part}.weight": state[f"{name}.{part}.weight"]
        .detach()
        .cpu()
        .contiguous()
        for name in names
        for part in ("lora_A", "lora_B")
    }
    ranks = {tensor.shape[0] if key.endswith("A.weight") else tensor.shape[1] for key, tensor in tensors.items()}
    if len(tensors) != len(state) or ranks != {rank}:
        raise ValueError(
            f"{len(state)} tensors of ranks {sorted(ranks)} are not the pairs of an adapter of rank {rank}"
        )
    place = folder / f"{expert}_noise" if expert else folder
    # the config first: whoever sees the adapter finds its config too
    write_json(place / CONFIG_FILE, _peft_config(names, rank, dropout, base))
    file = place / ADAPTER_FILE
    with atomic_write(file) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt", "base": base})
    if expert:
        _name_again(file, folder / f"{Path(ADAPTER_FILE).stem}_{expert}_noise.safetensors")
    return file


def read_adapter(path: Path) -> Adapter:
    """Every adapted layer's A and B, from a file of ComfyUI's, diffusers', PEFT's or Kohya's `lora_up` keys.

    Scales are folded into B: `alpha` of the file, or in PEFT's own keys `lora_alpha` of the config beside it.

    Args:
        path: the file, or the folder that holds `adapter_model.safetensors`.

    Raises:
        FileError: there is no such file.
        CheckpointError: it holds something else than adapters of a Wan transformer's layers.
    """
    file = adapter_file(path)
    parts: dict[str, dict[str, Tensor]] = {}
    tensors = read_tensors(file)
    for key, tensor in tensors.items():
        name, part = _layer_and_part(file, key)
        parts.setdefault(name, {})[part] = tensor
    if not parts:
        raise CheckpointError(f"{file} holds no tensors; give a LoRA adapter of a Wan transformer")
    is_peft = all(key.startswith("base_model.model.") for key in tensors)
    scale = _config_scale(file.parent / CONFIG_FILE) if is_peft else 1.0
    return {name: _pair(file, name, held, scale) for name, held in parts.items()}


def adapter_file(path: Path) -> Path:
    """The adapter's file: the path itself, or `adapter_model.safetensors` in a folder.

    Raises:
        FileError: there is none.
    """
    if path.is_dir() and (path / ADAPTER_FILE).is_file():
        return path / ADAPTER_FILE
    if path.is_dir():
        held = " or ".join(f"{expert}_noise/" for expert in EXPERTS if (path / f"{expert}_noise").is_dir())
        raise FileError(f"{path} holds no {ADAPTER_FILE}; " + (f"give {held} in it" if held else "give an adapter"))
    if not path.is_file():
        raise FileError(f"{path} does not exist; give an adapter's file or folder")
    return path


def files_of_experts(path: Path, experts: Sequence[str]) -> list[Path]:
    """An adapter's file, or those in `high_noise/` and `low_noise/` of a folder that holds one for each expert.

    Args:
        path: the file or folder.
        experts: of the model that they are for; empty where it has only one transformer.

    Raises:
        FileError: there is none.
    """
    inside = [path / f"{expert}_noise" / ADAPTER_FILE for expert in experts]
    found = [file for file in inside if file.is_file()]
    return found if found and not (path / ADAPTER_FILE).is_file() else [adapter_file(path)]


def expert_in_name(path: Path) -> str | None:
    """The expert, "high" or "low", that an adapter's file name or its folder's name says it is for; None without."""
    for name in (path.name, path.absolute().parent.name):
        said = [expert for expert in EXPERTS if f"{expert}_noise" in name.lower()]
        if len(said) == 1:
            return said[0]
    return None


def merge_adapter(
    transformer: WanTransformer3DModel,
    adapter: Path | Adapter,
    strength: float = 1.0,
    source: str = "the adapter",
) -> None:
    """Add an adapter to a transformer's weights: W + strength * B @ A, summed in float32, in W's own dtype.

    In a dtype narrower than float32 a small change may round away; merge before weights are stored in eight bits.

    Args:
        transformer: changed in place; its weights must be in memory.
        adapter: the file or folder, or what `read_adapter` gave.
        strength: 1 is as trained, 0 changes nothing.
        source: what errors call an adapter that is given without its path.

    Raises:
        CheckpointError: it was made for a transformer of other sizes; nothing is changed then.
    """
    for weight, (down, up) in _matched(transformer, adapter, source):
        _add(weight, down, up, strength)


@contextmanager
def applied_adapter(
    transformer: WanTransformer3DModel, adapter: Path | Adapter, strength: float = 1.0
) -> Iterator[None]:
    """The transformer with an adapter merged in; afterwards its weights are bit for bit what they were.

    Arguments and errors are those of `merge_adapter`. A copy of the adapted weights is kept meanwhile.
    """
    matched = _matched(transformer, adapter, "the adapter")
    originals = [weight.detach().clone() for weight, _ in matched]
    try:
        for weight, (down, up) in matched:
            _add(weight, down, up, strength)
        yield
    finally:
        with torch.no_grad():
            for (weight, _), original in zip(matched, originals, strict=True):
                weight.copy_(original)


def peft_state(path: Path) -> dict[str, Tensor]:
    """An adapter as peft takes it for diffusers' transformer: `set_peft_model_state_dict(transformer, state)`.

    The layers must be there first: `inject_adapter_in_model(LoraConfig.from_pretrained(folder), transformer)`.
    """
    state = {}
    for name, (down, up) in read_adapter(path).items():
        state[f"{diffusers_name(name)}.lora_A.weight"] = down
        state[f"{diffusers_name(name)}.lora_B.weight"] = up
    return state


def _peft_config(names: list[str], rank: int, dropout: float, base: str) -> dict[str, Any]:
    # Under both names, so that peft finds the layers in diffusers' class and in the official one or ComfyUI's.
    targets = [*names, *(official_name(name) for name in names)]
    config = LoraConfig(
        base_model_name_or_path=base,
        r=rank,
        lora_alpha=rank,
        lora_dropout=dropout,
        target_modules=targets,
        inference_mode=True,
    )
    return {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}


def _name_again(file: Path, other: Path) -> None:
    """A second name for a file; a copy where the file system has no links."""
    with atomic_write(other) as temporary:
        temporary.unlink()
        try:
            temporary.hardlink_to(file)
        except OSError:
            shutil.copyfile(file, temporary)


def _layer_and_part(file: Path, key: str) -> tuple[str, str]:
    """The official name of a key's layer, and whether it is its "down" (A), "up" (B) or "alpha"."""
    ending = _ENDING.search(key)
    name = key[: ending.start()] if ending else key
    while prefix := next((prefix for prefix in _PREFIXES if name.startswith(prefix)), None):
        name = name.removeprefix(prefix)
    weight = f"{name}.weight"
    official = weight if TRANSFORMER_KEYS.from_official(weight) else TRANSFORMER_KEYS.to_official(weight)
    if ending is None or official is None:
        raise CheckpointError(
            f"{file}: {key!r} is no part of a LoRA adapter for a Wan transformer; give one with keys such as "
            "diffusion_model.blocks.0.cross_attn.k.lora_A.weight, in the style of ComfyUI, diffusers or PEFT"
        )
    return official.removesuffix(".weight"), next((part for part in ("down", "up") if ending[part]), "alpha")


def _pair(file: Path, name: str, held: Mapping[str, Tensor], scale: float) -> Pair:
    if not {"down", "up"} <= held.keys():
        lacking = "lora_A" if "down" not in held else "lora_B"
        raise CheckpointError(f"{file}: {name} lacks its {lacking}; write the adapter again")
    down, up = held["down"], held["up"]
    if down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1]:
        raise CheckpointError(
            f"{file}: {name} has A {list(down.shape)} and B {list(up.shape)}, which do not multiply; "
            "only adapters of linear layers are read"
        )
    if "alpha" in held:
        scale = held["alpha"].item() / down.shape[0]
    # a scale that is no power of two would round in B's own dtype
    return down, up if scale == 1 else up.float() * scale


def _config_scale(file: Path) -> float:
    if not file.is_file():
        return 1.0
    config = read_json(file)
    rank, alpha = config.get("r", 1), config.get("lora_alpha", config.get("r", 1))
    if config.get("use_dora") or config.get("rank_pattern") or config.get("alpha_pattern"):
        raise CheckpointError(f"{file}: DoRA and ranks that differ by layer are not read; give a plain LoRA adapter")
    if not isinstance(rank, int) or not isinstance(alpha, int | float) or rank < 1:
        raise CheckpointError(f"{file} says r = {rank!r}, lora_alpha = {alpha!r}; both must be numbers")
    return alpha / rank**0.5 if config.get("use_rslora") else alpha / rank


def _matched(transformer: WanTransformer3DModel, adapter: Path | Adapter, source: str) -> list[tuple[Tensor, Pair]]:
    """Every adapted weight with its pair; all are checked before any is changed."""
    pairs = adapter if isinstance(adapter, dict) else read_adapter(adapter)
    source = source if isinstance(adapter, dict) else str(adapter)
    weights = dict(transformer.named_parameters())
    matched = []
    for name, (down, up) in pairs.items():
        ours = diffusers_name(name)
        weight = weights.get(f"{ours}.weight", weights.get(f"{ours}.base_layer.weight"))
        if weight is None or weight.shape != (up.shape[0], down.shape[1]):
            found = "has no such layer" if weight is None else f"is {list(weight.shape)} there"
            raise CheckpointError(
                f"{source} changes {name} by [{up.shape[0]}, {down.shape[1]}]{_made_for(pairs)}, which {found} in "
                f"{_described(transformer)}; give the adapter that was trained on this model"
            )
        if weight.dtype.itemsize == 1:  # they may have scales that are not in sight here
            raise TypeError(
                f"{ours} is stored as {weight.dtype}; merge adapters before weights are stored in eight bits"
            )
        matched.append((weight, (down, up)))
    return matched


@torch.no_grad()
def _add(weight: Tensor, down: Tensor, up: Tensor, strength: float) -> None:
    change = up.to(weight.device, torch.float32) @ down.to(weight.device, torch.float32)
    weight.copy_(weight.float().add_(change, alpha=strength))


def _made_for(pairs: Adapter) -> str:
    """The known model whose width an adapter has, in words; empty where there is none."""
    widths = {down.shape[1] for name, (down, _) in pairs.items() if name.endswith(("_attn.q", "_attn.k", "ffn.0"))}
    titles = [facts.title for facts in KNOWN.values() if facts.transformer and {facts.transformer.dim} == widths]
    return f" (made for {titles[0]})" if titles else ""


def _described(transformer: WanTransformer3DModel) -> str:
    dims = transformer_dims(dict(transformer.config))
    facts, is_known = identify(dims)
    title = facts.title if is_known else "the transformer"
    return f"{title} ({dims.num_layers} blocks of {dims.dim} channels)"
