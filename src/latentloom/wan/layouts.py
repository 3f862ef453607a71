"""Which layout a checkpoint is in, which models it holds, and where each one's tensors and config are.

official:  `diffusion_pytorch_model*.safetensors`, or one such set in each of `high_noise_model/` and
           `low_noise_model/`; `models_t5_*.pth`; `Wan2.*_VAE.pth`; a tokenizer in `google/umt5-xxl`.
diffusers: `transformer/`, `transformer_2/`, `text_encoder/`, `vae/`, `tokenizer/`, or one of these folders.
comfy:     one safetensors file, or a folder with `diffusion_models/`, `text_encoders/`, `vae/` or loose files.

A file is told by its tensors' names, not by its own name; only the two experts of a pair are told by name.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from latentloom.errors import CheckpointError, CorruptFileError, FileError
from latentloom.wan import facts
from latentloom.wan.facts import ModelFacts
from latentloom.wan.key_map import KeyMap
from latentloom.wan.keys_text_encoder import TEXT_ENCODER_KEYS, text_encoder_config, text_encoder_dims
from latentloom.wan.keys_transformer import TRANSFORMER_KEYS, transformer_config, transformer_dims
from latentloom.wan.keys_vae import vae_config, vae_keys_for
from latentloom.wan.shards import Shards, StoredTensor, find_weights, read_json

Layout = Literal["official", "diffusers", "comfy"]
Role = Literal["transformer", "text_encoder", "vae"]
Naming = Literal["official", "diffusers"]

# What a conversion could not say in the target layout: configs, the model's key, the sampler. Written beside weights.
SIDECAR = "latentloom.json"
SPIECE_KEY = "spiece_model"

EXPERT_FOLDERS = {"high": "high_noise_model", "low": "low_noise_model"}
_DIFFUSERS_FOLDERS: dict[str, tuple[Role, str | None]] = {
    "transformer": ("transformer", None),
    "transformer_2": ("transformer", "low"),
    "text_encoder": ("text_encoder", None),
    "vae": ("vae", None),
}
_COMFY_FOLDERS = ("diffusion_models", "unet", "text_encoders", "clip", "vae", "checkpoints")
_TOKENIZER_FOLDERS = ("tokenizer", "google/umt5-xxl")
# What may stand before every key of a model.
PREFIXES: dict[Role, tuple[str, ...]] = {
    "transformer": ("model.diffusion_model.", "diffusion_model.", ""),
    "text_encoder": ("text_encoders.umt5xxl.transformer.", "text_encoders.umt5xxl.", ""),
    "vae": ("first_stage_model.", "vae.", ""),
}
# One tensor that every model of a role has, in each naming.
_SIGNS: dict[Role, dict[Naming, str]] = {
    "transformer": {"official": "blocks.0.self_attn.q.weight", "diffusers": "blocks.0.attn1.to_q.weight"},
    "text_encoder": {
        "official": "blocks.0.attn.q.weight",
        "diffusers": "encoder.block.0.layer.0.SelfAttention.q.weight",
    },
    "vae": {"official": "decoder.conv1.weight", "diffusers": "decoder.conv_in.weight"},
}
# An entry that only the config of this role has, in diffusers or transformers.
_OWN_ENTRY: dict[Role, str] = {"transformer": "num_attention_heads", "text_encoder": "d_model", "vae": "z_dim"}


@dataclass(frozen=True)
class Component:
    """One model of a checkpoint.

    Attributes:
        naming: "official" names, or those of diffusers and transformers (ComfyUI's text encoder has these too).
        prefix: what stands before every key, in ComfyUI's files.
        given_config: the diffusers or transformers config that came with it; None when there is none.
        official_config: the official config.json beside it, if any.
    """

    role: Role
    expert: str | None
    shards: Shards
    naming: Naming
    prefix: str = ""
    given_config: Mapping[str, Any] | None = None
    official_config: Mapping[str, Any] | None = None

    @property
    def title(self) -> str:
        return f"{self.expert}-noise {self.role}" if self.expert else self.role

    @cached_property
    def stored(self) -> dict[str, StoredTensor]:
        """This component's tensors by stored key without the prefix."""
        found = {key: tensor for key, tensor in self.shards.tensors.items() if key.startswith(self.prefix)}
        return {key[len(self.prefix) :]: tensor for key, tensor in found.items() if not _is_extra(self.role, key)}

    @cached_property
    def key_map(self) -> KeyMap:
        if self.role == "vae":
            return vae_keys_for(self.stored.keys())
        return TRANSFORMER_KEYS if self.role == "transformer" else TEXT_ENCODER_KEYS

    @cached_property
    def names(self) -> dict[str, str]:
        """The stored key (without prefix) of every tensor by its name in diffusers or transformers."""
        renamed = {self.our_name(key): key for key in self.stored}
        return {name: key for name, key in renamed.items() if name is not None}

    @property
    def left_over(self) -> list[str]:
        """Stored keys that no rule of the official layout knows."""
        return [key for key in self.stored if self.our_name(key) is None]

    def our_name(self, key: str) -> str | None:
        """The name in diffusers or transformers of a stored key; None when no rule knows it."""
        if self.role == "text_encoder" and key == "encoder.embed_tokens.weight":
            key = "shared.weight"
        return key if self.naming == "diffusers" else self.key_map.from_official(key)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: self.stored[key].shape for name, key in self.names.items()}

    @cached_property
    def derived_config(self) -> dict[str, Any]:
        """The config that the tensors' shapes tell."""
        try:
            if self.role == "transformer":
                return transformer_config(self.shapes, self._official_view())
            return text_encoder_config(self.shapes) if self.role == "text_encoder" else vae_config(self.shapes)
        except CheckpointError as cause:
            raise CheckpointError(f"{self.shards.files[0]}: {cause}") from cause

    @property
    def config(self) -> dict[str, Any]:
        """The arguments of the class that holds this model: the config that came with it, else the derived one."""
        return dict(self.given_config) if self.given_config is not None else self.derived_config

    def _official_view(self) -> Mapping[str, Any]:
        if self.given_config is None:
            return self.official_config or {}
        return {"num_heads": self.given_config.get("num_attention_heads"), "eps": self.given_config.get("eps")}


@dataclass(frozen=True)
class Checkpoint:
    """What lies at a path.

    Attributes:
        facts: the known model, or the nearest one's defaults with these sizes; None without a transformer.
        is_known: whether the sizes are exactly those of a known model.
        tokenizer: the tokenizer's folder, if any.
        record: the side-car's or model_index.json's content; empty when there is none.
        lender: the checkpoint that has what this one cannot hold, a tokenizer first of all; None for all but parts.
    """

    root: Path
    layout: Layout
    components: tuple[Component, ...]
    tokenizer: Path | None = None
    record: Mapping[str, Any] = field(default_factory=dict)
    facts: ModelFacts | None = None
    is_known: bool = False
    lender: Checkpoint | None = None

    @property
    def experts(self) -> tuple[str, ...]:
        found = {component.expert for component in self.components if component.role == "transformer"}
        return tuple(expert for expert in ("high", "low") if expert in found)

    @property
    def declared_model(self) -> str | None:
        """The key of the known model that the checkpoint says it is; MicroWan is known by this alone."""
        declared = self.record.get("latentloom", {}).get("model") or self.record.get("model")
        return None if declared is None else str(declared)

    def component(self, role: Role, expert: str | None = None) -> Component:
        """The one model of a role.

        Args:
            expert: "high" or "low" where there are two; None takes the only one.

        Raises:
            CheckpointError: it is not here, or there are two and none was asked for.
        """
        of_role = [component for component in self.components if component.role == role]
        chosen = [component for component in of_role if expert is None or component.expert == expert]
        if len(chosen) == 1:
            return chosen[0]
        held = ", ".join(component.title for component in self.components)
        if not chosen:
            wanted = f"{expert}-noise {role}" if expert else role
            raise CheckpointError(f"{self.root} holds no {wanted}; it holds {held}")
        advice = "name one expert: 'high' or 'low'" if all(part.expert for part in chosen) else "give one of the files"
        raise CheckpointError(f"{self.root} holds {len(chosen)} models for {role}; {advice}")


def recognise(root: Path) -> Checkpoint:
    """The layout of a checkpoint, its models and the facts about it; reads headers and configs only.

    Args:
        root: a folder in one of the three layouts, one model's folder, or one weight file.

    Raises:
        FileError: there is nothing at the path.
        CheckpointError: nothing of the Wan family is there, or shards are missing.
        CorruptFileError: a file is damaged.
    """
    root = Path(root)
    if not root.exists():
        raise FileError(f"{root} does not exist; give a checkpoint's folder or file")
    found = _recognise_file(root) if root.is_file() else _recognise_folder(root)
    if not found.components:
        raise CheckpointError(
            f"{root} holds no Wan model; expected diffusion_pytorch_model*.safetensors, transformer/ or a ComfyUI file"
        )
    return _with_facts(found)


def _recognise_file(file: Path) -> Checkpoint:
    if file.suffix not in (".safetensors", ".pth", ".pt"):
        raise FileError(f"{file} is no weight file; give a .safetensors or .pth file, or a checkpoint's folder")
    record = _sidecar(file.parent) or _sidecar(file.parent.parent)
    components = tuple(_components_in(Shards([file]), _expert_in_name(file.stem), record, file.parent))
    is_official = file.suffix != ".safetensors" or file.stem == "diffusion_pytorch_model"
    return Checkpoint(file, "official" if is_official else "comfy", components, record=record)


def _recognise_folder(root: Path) -> Checkpoint:
    tokenizer = next((root / name for name in _TOKENIZER_FOLDERS if (root / name).is_dir()), None)
    if (root / "model_index.json").is_file() or any(
        (root / name / "config.json").is_file() for name in _DIFFUSERS_FOLDERS
    ):
        record = _record(root / "model_index.json")
        return Checkpoint(root, "diffusers", tuple(_diffusers_components(root)), tokenizer, record)
    record = _sidecar(root)
    comfy_folders = [root / name for name in _COMFY_FOLDERS if (root / name).is_dir()]
    components: list[Component] = []
    for folder in comfy_folders:
        for file in sorted(folder.glob("*.safetensors")):
            components += _components_in(Shards([file]), _expert_in_name(file.stem), record, folder)
    if components:
        return Checkpoint(root, "comfy", tuple(components), tokenizer, record)
    return _recognise_loose(root, tokenizer, record)


def _recognise_loose(root: Path, tokenizer: Path | None, record: Mapping[str, Any]) -> Checkpoint:
    """The official layout, one diffusers model's folder, or a folder of ComfyUI files."""
    components: list[Component] = []
    for expert, name in EXPERT_FOLDERS.items():
        if (root / name).is_dir():
            components += _components_in(Shards(find_weights(root / name)), expert, record, root / name)
    sharded = find_weights(root, "diffusion_pytorch_model*") or find_weights(root, "model*")
    if sharded:
        components += _components_in(Shards(sharded), _expert_in_name(root.name), record, root)
    singles = [file for file in sorted(root.glob("*.safetensors")) if not sharded]
    # Only these: other pickles in an official folder (CLIP, optimizer states) are none of ours to open.
    for file in [*singles, *sorted(root.glob("models_t5*.pth")), *sorted(root.glob("*VAE*.pth"))]:
        components += _components_in(Shards([file]), _expert_in_name(file.stem), record, root)
    layout: Layout = "comfy" if singles else "official"
    if any(component.naming == "diffusers" and component.given_config for component in components):
        layout = "diffusers"
    return Checkpoint(root, layout, tuple(components), tokenizer, record)


def _diffusers_components(root: Path) -> Iterator[Component]:
    has_pair = (root / "transformer_2").is_dir()
    for name, (role, expert) in _DIFFUSERS_FOLDERS.items():
        if not (root / name / "config.json").is_file():
            continue
        files = find_weights(root / name, "diffusion_pytorch_model*") or find_weights(root / name, "model*")
        if not files:
            raise CheckpointError(f"{root / name} has a config.json and no safetensors weights")
        config = read_json(root / name / "config.json")
        if name == "transformer" and has_pair:
            expert = "high"
        yield Component(role, expert, Shards(files), "diffusers", given_config=config)


def _components_in(shards: Shards, expert: str | None, record: Mapping[str, Any], folder: Path) -> Iterator[Component]:
    """The models whose tensors these files hold; ComfyUI's bundles hold three."""
    if not shards.files:
        return
    keys = shards.tensors.keys()
    beside = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    for role, prefixes in PREFIXES.items():
        for prefix in prefixes:
            naming = _naming(role, prefix, keys)
            if naming is None:
                continue
            its_expert = expert if role == "transformer" else None
            given = record.get("components", {}).get(component_name(role, its_expert))
            if given is None and naming == "diffusers" and _OWN_ENTRY[role] in beside:
                given = beside
            official = beside if role == "transformer" and {"num_heads", "dim"} <= beside.keys() else None
            yield Component(role, its_expert, shards, naming, prefix, given, official)
            break


def _naming(role: Role, prefix: str, keys: Collection[str]) -> Naming | None:
    for naming, sign in _SIGNS[role].items():
        if prefix + sign in keys:
            return naming
    return None


def component_name(role: Role, expert: str | None) -> str:
    """The diffusers folder's name for a model."""
    return "transformer_2" if role == "transformer" and expert == "low" else role


def _with_facts(found: Checkpoint) -> Checkpoint:
    transformers = [component for component in found.components if component.role == "transformer"]
    if not transformers:
        return found
    dims = transformer_dims(transformers[0].derived_config)
    text = next((component for component in found.components if component.role == "text_encoder"), None)
    vae = next((component for component in found.components if component.role == "vae"), None)
    if found.declared_model is not None:
        known = replace(facts.get(found.declared_model), transformer=dims)
        return replace(found, facts=_sized(known, text, vae), is_known=True)
    lent, is_known = facts.identify(dims, len(found.experts) or 1)
    if lent.experts and not found.experts:
        scale = lent.guidance[0] if isinstance(lent.guidance, tuple) else lent.guidance
        lent = replace(lent, title=f"one transformer of {lent.title}", experts=(), boundary=None, guidance=scale)
    return replace(found, facts=lent if is_known else _sized(lent, text, vae), is_known=is_known)


def _sized(lent: ModelFacts, text: Component | None, vae: Component | None) -> ModelFacts:
    """The facts with what this checkpoint's own text encoder and autoencoder say."""
    if text is not None:
        lent = replace(lent, text_encoder=text_encoder_dims(text.derived_config))
    if vae is not None:
        config = vae.derived_config
        lent = replace(
            lent,
            vae="wan2.2" if config["is_residual"] and lent.vae != "micro" else lent.vae,
            latent_channels=config["z_dim"],
            spatial_stride=config["scale_factor_spatial"],
            temporal_stride=config["scale_factor_temporal"],
        )
    return lent


def _is_extra(role: Role, key: str) -> bool:
    return role == "text_encoder" and key.endswith(SPIECE_KEY)


def _expert_in_name(name: str) -> str | None:
    name = name.lower().replace("-", "_")
    return next((expert for expert in ("high", "low") if f"{expert}_noise" in name or f"{expert}noise" in name), None)


def _sidecar(folder: Path) -> Mapping[str, Any]:
    """What a conversion wrote beside the weights; empty when there is none."""
    return _record(folder / SIDECAR)


def _record(file: Path) -> Mapping[str, Any]:
    if not file.is_file():
        return {}
    record = read_json(file)
    configs = record.get("components", {})
    if not isinstance(configs, dict) or not all(isinstance(config, dict) for config in configs.values()):
        raise CorruptFileError(f"{file}: 'components' must map a model's name to its config")
    if not isinstance(record.get("latentloom", {}), dict):
        raise CorruptFileError(f'{file}: \'latentloom\' must be an object such as {{"model": "micro"}}')
    return record
