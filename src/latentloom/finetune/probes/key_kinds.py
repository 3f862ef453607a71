"""What a set of keys and shapes is: which Wan model, a part of one, an adapter, or something else."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from latentloom.errors import CheckpointError
from latentloom.wan import facts
from latentloom.wan.facts import TextEncoderDims
from latentloom.wan.key_map import KeyMap
from latentloom.wan.keys_text_encoder import TEXT_ENCODER_KEYS, text_encoder_config, text_encoder_dims
from latentloom.wan.keys_transformer import TRANSFORMER_KEYS, transformer_config, transformer_dims
from latentloom.wan.keys_vae import vae_config, vae_keys_for

Kind = Literal["transformer", "text_encoder", "vae", "adapter", "unknown"]
Shapes = Mapping[str, tuple[int, ...]]

_LORA = re.compile(r"\.(lora_A|lora_B|lora_down|lora_up)(\.default)?(\.weight)?$")
_FIRST_HALF = ("lora_A", "lora_down")
# Keys that an encoder's file may hold beside its weights.
_BESIDE = ("spiece_model", "encoder.embed_tokens.weight")
_VAE_SIDES = ("encoder.", "decoder.", "conv1.", "conv2.", "quant_conv.", "post_quant_conv.")


@dataclass(frozen=True)
class KindOfKeys:
    """What keys are.

    Attributes:
        title: in words, such as "Wan2.2-TI2V-5B".
        naming: `official`, or `diffusers` for the names of diffusers and transformers; None where neither is meant.
        notes: what is worth knowing, one sentence each.
        strangers: keys that a model of this kind does not have.
    """

    kind: Kind
    title: str
    naming: str | None = None
    notes: tuple[str, ...] = ()
    strangers: tuple[str, ...] = ()


def tell_kind(shapes: Shapes, name: str, is_whole: bool) -> KindOfKeys:
    """What these tensors are.

    Args:
        shapes: by key, without prefixes.
        name: of the file; it alone tells the experts of a pair apart.
        is_whole: whether all shards are there.
    """
    if any(_LORA.search(key) for key in shapes):
        return _tell_adapter(shapes, name)
    kind, naming, strangers = _tell_role(shapes)
    if kind == "unknown":
        return KindOfKeys("unknown", f"no Wan model: {_first_names(shapes)}")
    title, notes = {"transformer": _transformer, "text_encoder": _text_encoder, "vae": _vae}[kind](
        _in_our_names(kind, naming, shapes), name
    )
    if not is_whole:
        notes = ("some shards are missing", *notes)
    if strangers:
        notes = (*notes, f"{len(strangers)} tensors that no such model has, first {strangers[0]}")
    return KindOfKeys(kind, title, naming, notes, tuple(strangers))


def expert_in_name(name: str) -> str | None:
    """`high` or `low` where a file's or folder's name says `high_noise` or `low_noise`."""
    found = re.search(r"(high|low)[-_]?noise", name.lower())
    return found[1] if found else None


def model_of_width(width: int) -> str | None:
    """The known model whose blocks have this many channels."""
    return next((known.title for known in facts.KNOWN.values() if _width(known) == width), None)


def _width(known: facts.ModelFacts) -> int | None:
    return known.transformer.dim if known.transformer is not None else None


def _tell_role(shapes: Shapes) -> tuple[Kind, str | None, list[str]]:
    """The role and naming that know most of the keys, and the keys that they do not know."""
    candidates: list[tuple[Kind, str, list[str]]] = []
    maps: list[tuple[Kind, KeyMap]] = [("transformer", TRANSFORMER_KEYS), ("text_encoder", TEXT_ENCODER_KEYS)]
    if all(key.startswith(_VAE_SIDES) for key in shapes) and not any(".block." in key for key in shapes):
        maps.append(("vae", vae_keys_for(shapes.keys())))
    counted = [key for key in shapes if not key.endswith(_BESIDE)]
    for kind, keys in maps:
        candidates.append((kind, "official", [key for key in counted if keys.from_official(key) is None]))
        candidates.append((kind, "diffusers", [key for key in counted if keys.to_official(key) is None]))
    kind, naming, strangers = min(candidates, key=lambda candidate: len(candidate[2]))
    if 2 * len(strangers) >= max(1, len(counted)):
        return "unknown", None, []
    return kind, naming, strangers


def _in_our_names(kind: Kind, naming: str | None, shapes: Shapes) -> Shapes:
    if naming == "diffusers":
        aliases = {"encoder.embed_tokens.weight": "shared.weight"} if kind == "text_encoder" else {}
        return {aliases.get(key, key): shape for key, shape in shapes.items()}
    keys = {"transformer": TRANSFORMER_KEYS, "text_encoder": TEXT_ENCODER_KEYS}.get(kind) or vae_keys_for(shapes.keys())
    renamed = {keys.from_official(key): shape for key, shape in shapes.items()}
    return {key: shape for key, shape in renamed.items() if key is not None}


def _transformer(shapes: Shapes, name: str) -> tuple[str, tuple[str, ...]]:
    expert = expert_in_name(name)
    try:
        dims = transformer_dims(transformer_config(shapes))
    except CheckpointError:  # one shard, or tuned tensors alone: the blocks' width still tells the model
        width = next((shape[0] for key, shape in shapes.items() if ".attn" in key), None)
        known = model_of_width(width) if width is not None else None
        return f"part of {known or 'an unknown Wan transformer'}", (f"blocks of {width} channels",) if width else ()
    known, is_known = facts.identify(dims)
    title = known.title
    if known.experts:
        title = f"{expert}-noise expert of {title}" if expert else f"one transformer of {title}"
    notes = (
        () if expert or not known.experts else ("its name does not say which expert; Wan2.1-T2V-14B looks the same",)
    )
    if not is_known:
        notes = (f"dim {dims.dim}, ffn {dims.ffn_dim}, {dims.num_layers} layers, {dims.in_channels} input channels",)
    return title, notes


def _text_encoder(shapes: Shapes, name: str) -> tuple[str, tuple[str, ...]]:
    try:
        dims = text_encoder_dims(text_encoder_config(shapes))
    except CheckpointError:
        return "part of a UMT5 encoder", ()
    if dims == TextEncoderDims():
        return "UMT5-XXL encoder", ()
    return f"UMT5 encoder, dim {dims.dim}, {dims.num_layers} layers", ()


def _vae(shapes: Shapes, name: str) -> tuple[str, tuple[str, ...]]:
    try:
        config = vae_config(shapes)
    except CheckpointError:
        return "part of a Wan VAE", ()
    published = {(96, 16, False): "Wan2.1 VAE", (160, 48, True): "Wan2.2 VAE"}
    title = published.get((config["base_dim"], config["z_dim"], config["is_residual"]), "VAE of unknown sizes")
    return f"{title}, {config['z_dim']} latent channels", ()


def _tell_adapter(shapes: Shapes, name: str) -> KindOfKeys:
    """Targets, ranks and the model that the widths fit."""
    halves = [(key, shape, half[1]) for key, shape in shapes.items() if (half := _LORA.search(key))]
    first = {_LORA.sub("", key): shape for key, shape, half in halves if half in _FIRST_HALF}
    ranks = sorted({shape[0] for shape in first.values()})
    layers = Counter(re.sub(r"^.*blocks?[._]\d+[._]", "", target) for target in first)
    widths = Counter(shape[1] for target, shape in first.items() if "attn" in target and len(shape) == 2)
    width = widths.most_common(1)[0][0] if widths else None
    model = model_of_width(width) if width is not None else None
    expert = expert_in_name(name)
    fits = f" for {model}" if model else f" for blocks of {width} channels" if width else ""
    title = (
        f"LoRA of rank {', '.join(map(str, ranks)) or 'unknown'}{fits}{f', {expert}-noise expert' if expert else ''}"
    )
    notes = [f"{len(first)} targets: " + ", ".join(f"{layer} x {count}" for layer, count in sorted(layers.items()))]
    if any(layer.startswith(("self_attn", "attn1")) for layer in layers):
        notes.append("it acts on self-attention, which gave artefacts in earlier tests")
    others = [key for key in shapes if not _LORA.search(key) and not key.endswith(".alpha")]
    if others:
        notes.append(f"{len(others)} tensors are neither LoRA matrices nor alphas, first {others[0]}")
    return KindOfKeys("adapter", title, None, tuple(notes), tuple(others))


def _first_names(keys: Collection[str]) -> str:
    """The commonest beginnings, for people who know the family that they have in front of them."""
    counts = Counter(key.split(".", 1)[0] for key in keys)
    return ", ".join(f"{name} ({count})" for name, count in counts.most_common(3)) or "it holds no tensors"
