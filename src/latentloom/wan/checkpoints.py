"""Models out of any checkpoint, and what a checkpoint is without loading it.

Whatever the layout, the result is transformers' UMT5EncoderModel and diffusers' WanTransformer3DModel and
AutoencoderKLWan. A model is built without memory for its weights, then filled tensor by tensor, so that at no time
more than the model and one tensor are held.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import init_empty_weights
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase, UMT5Config, UMT5EncoderModel

from latentloom.errors import CheckpointError
from latentloom.wan.layouts import Checkpoint, Component, Role, recognise
from latentloom.wan.summary import CheckpointSummary, ModelSummary, inspect

__all__ = [
    "Checkpoint",
    "CheckpointSummary",
    "ModelSummary",
    "build_empty",
    "fill",
    "inspect",
    "load_text_encoder",
    "load_tokenizer",
    "load_transformer",
    "load_vae",
    "recognise",
]

Model = TypeVar("Model", bound=nn.Module)


def load_transformer(
    root: Path,
    expert: str | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> WanTransformer3DModel:
    """The diffusion transformer of a checkpoint in any layout, in evaluation mode.

    Args:
        root: the checkpoint.
        expert: "high" or "low" where there are two; None takes the only one.
        dtype: of the weights; None keeps each tensor's own. As in diffusers, norms, modulations and the time
            embedding stay in float32 under a narrower type.
        device: where the weights go; None means the CPU.

    Raises:
        CheckpointError: the model is not there, or keys or shapes are not those of a Wan transformer.
    """
    component = recognise(root).component("transformer", expert)
    return fill(build_empty(component), component, dtype, device)


def load_text_encoder(
    root: Path, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> UMT5EncoderModel:
    """The UMT5 encoder of a checkpoint in any layout, in evaluation mode; arguments as for load_transformer."""
    component = recognise(root).component("text_encoder")
    return fill(build_empty(component), component, dtype, device)


def load_vae(
    root: Path, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> AutoencoderKLWan:
    """The autoencoder of a checkpoint in any layout, in evaluation mode; arguments as for load_transformer."""
    component = recognise(root).component("vae")
    return fill(build_empty(component), component, dtype, device)


def load_tokenizer(root: Path) -> PreTrainedTokenizerBase:
    """The tokenizer that lies in a checkpoint; nothing is downloaded.

    Raises:
        CheckpointError: there is none, or its files cannot be read.
    """
    folder = recognise(root).tokenizer
    if folder is None:
        raise CheckpointError(
            f"{root} holds no tokenizer; put umt5-xxl's files into its tokenizer/ or google/umt5-xxl/"
        )
    try:
        # Without a word on remote code, transformers would stop and ask whether to run what the folder brings.
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    # A file of another form fails wherever transformers first trips over it, with errors of any kind.
    except Exception as cause:
        reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        raise CheckpointError(f"{folder} is no tokenizer that can be read: {reason}; give umt5-xxl's files") from cause


def build_empty(component: Component) -> Any:
    """The component's class with its parameters on the meta device; its buffers, which no checkpoint holds, are real.

    Raises:
        CheckpointError: the component's keys, shapes or config are not those of its class.
    """
    _refuse_scaled_weights(component)
    _refuse_other_sizes(component)
    try:
        with init_empty_weights(include_buffers=False):
            model = _construct(component).eval()
    # The class decides what it objects to: strict config fields raise errors of their own kind.
    except Exception as cause:
        raise CheckpointError(
            f"{component.shards.files[0]}: its {component.role} config is not usable: {cause}"
        ) from cause
    _refuse_other_keys(component, _untied_parameters(model))
    return model


def _construct(component: Component) -> Any:
    config = component.config
    if component.role == "text_encoder":
        return UMT5EncoderModel(UMT5Config.from_dict(config))
    return (WanTransformer3DModel if component.role == "transformer" else AutoencoderKLWan).from_config(config)


def _refuse_other_sizes(component: Component) -> None:
    """A config that contradicts the tensors must not decide how much is built."""
    derived = component.derived_config
    for name, value in derived.items():
        given = component.config.get(name)
        if given is None or name in _NOT_IN_SHAPES:
            continue
        if (list(given) if isinstance(given, Sequence) else given) != (
            list(value) if isinstance(value, tuple) else value
        ):
            raise CheckpointError(
                f"{component.shards.files[0]}: the config of the {component.role} says {name} = {given}, "
                f"its tensors say {value}"
            )
    for name in ("latents_mean", "latents_std"):
        given = component.config.get(name)
        if given is not None and len(given) != derived["z_dim"]:
            raise CheckpointError(
                f"{component.shards.files[0]}: the config of the vae gives {len(given)} values of {name} "
                f"for {derived['z_dim']} latent channels; give one for each"
            )


# patch_size: the transformer's is fixed by its first convolution's shape, which is checked later; the VAE's is a guess.
_NOT_IN_SHAPES = {"eps", "feed_forward_proj", "patch_size", "latents_mean", "latents_std"}
_NOT_IN_SHAPES |= {"scale_factor_temporal", "scale_factor_spatial"}


def fill(
    model: Model,
    component: Component,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    only: Callable[[str], bool] = lambda name: True,
) -> Model:
    """The model of `build_empty` with its parameters read from the component, one stored tensor after the other.

    Args:
        model: from `build_empty(component)`.
        component: where the weights are.
        dtype, device: see load_transformer.
        only: by parameter name, which ones are read; the others stay on the meta device.
    """
    prefix, ours = component.prefix, {key: name for name, key in component.names.items() if only(name)}
    wide = _kept_in_float32(component.role, dtype)
    for key, tensor in component.shards.read([prefix + key for key in ours]):
        name = ours[key.removeprefix(prefix)]
        target = torch.float32 if wide & set(name.split(".")) else dtype
        moved = tensor.to(device=device or "cpu", dtype=target or tensor.dtype, copy=True)
        owner, _, leaf = name.rpartition(".")
        model.get_submodule(owner).register_parameter(leaf, nn.Parameter(moved, requires_grad=False))
    tie_weights = getattr(model, "tie_weights", None)
    if callable(tie_weights):
        tie_weights()
    for owner in model.modules():
        for name, buffer in owner.named_buffers(recurse=False):
            setattr(owner, name, buffer.to(device) if device is not None else buffer)
    return model


def _kept_in_float32(role: Role, dtype: torch.dtype | None) -> set[str]:
    """Parts of names whose parameters stay in float32 under a narrower type."""
    if role == "transformer" and dtype not in (None, torch.float64):
        return set(WanTransformer3DModel._keep_in_fp32_modules or ())
    if role == "text_encoder" and dtype == torch.float16:
        # transformers keeps these in float32 for float16 only: bfloat16 has the range they need.
        return set(UMT5EncoderModel._keep_in_fp32_modules or ())
    return set()


def _untied_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Parameters by name; a tied one only under the name that checkpoints store."""
    tied = getattr(model, "_tied_weights_keys", None)
    aliases = set(tied) if isinstance(tied, Mapping) else set()
    return {name: tensor for name, tensor in model.named_parameters(remove_duplicate=False) if name not in aliases}


def _refuse_other_keys(component: Component, expected: Mapping[str, Tensor]) -> None:
    """Raises CheckpointError unless the stored tensors are exactly the expected ones.

    Left-over keys are named as they are stored, missing ones as the model names them.
    """
    missing = [name for name in expected if name not in component.names]
    left_over = component.left_over + [key for name, key in component.names.items() if name not in expected]
    where, what = component.shards.files[0], component.title
    if missing or left_over:
        faults = [_count("missing", missing), _count("left over", left_over)]
        raise CheckpointError(f"{where} is not this {what}: " + "; ".join(fault for fault in faults if fault))
    for name, parameter in expected.items():
        stored = component.stored[component.names[name]]
        if stored.shape != tuple(parameter.shape):
            raise CheckpointError(
                f"{where}: {component.names[name]} of the {what} has shape {list(stored.shape)}, "
                f"expected {list(parameter.shape)}"
            )


def _count(what: str, keys: Sequence[str]) -> str:
    if not keys:
        return ""
    named = ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
    return f"{len(keys)} keys {what} ({named})"


def _refuse_scaled_weights(component: Component) -> None:
    scales = [key for key in component.stored if key.endswith(_SCALE_ENDINGS)]
    if scales:
        raise CheckpointError(
            f"{component.shards.files[0]} stores scaled fp8 weights ({len(scales)} keys such as {scales[0]}); "
            "give the fp16 or bf16 file"
        )


_SCALE_ENDINGS = ("scaled_fp8", ".scale_weight", ".weight_scale", ".scale_input", ".input_scale", ".comfy_quant")
