"""Which model a checkpoint holds, as the fingerprint of its weights, without building the model."""

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from latentloom.wan.checkpoints import load_tokenizer
from latentloom.wan.fingerprint import ENCODER_SIZES, fingerprint
from latentloom.wan.layouts import Component, recognise


def fingerprint_vae(root: Path) -> str:
    """Sixteen hex digits for a checkpoint's autoencoder and its latents' statistics, without building the model.

    The same checkpoint in another layout or dtype has the same ones.

    Raises:
        CheckpointError: there is no autoencoder.
    """
    component = recognise(root).component("vae")
    derived = component.derived_config
    settings = {name: component.config.get(name, derived[name]) for name in derived}
    return fingerprint([settings], _weights_by_name(component))


def fingerprint_text_encoder(root: Path) -> str:
    """What `WanTextEncoder.fingerprint` gives for a checkpoint's encoder and tokenizer, without building the model.

    Raises:
        CheckpointError: one of them is missing.
    """
    component = recognise(root).component("text_encoder")
    settings = {name: component.config[name] for name in ENCODER_SIZES}
    vocabulary = sorted(load_tokenizer(root).get_vocab().items())
    return fingerprint([settings, vocabulary], _weights_by_name(component))


def fingerprint_transformer(root: Path, expert: str | None = None) -> str:
    """Sixteen hex digits for a checkpoint's diffusion transformer, the same in every layout and dtype.

    Args:
        root: the checkpoint.
        expert: "high" or "low" where there are two; None takes the only one.

    Raises:
        CheckpointError: there is none, or there are two and none was asked for.
    """
    component = recognise(root).component("transformer", expert)
    derived = component.derived_config
    settings = {name: component.config.get(name, derived[name]) for name in derived}
    return fingerprint([settings], _weights_by_name(component))


def _weights_by_name(component: Component) -> Iterator[tuple[str, Tensor]]:
    """The stored tensors, not yet read, under their names in diffusers or transformers."""
    ours = {component.prefix + key: name for name, key in component.names.items()}
    return ((ours[key], tensor) for key, tensor in component.shards.read(list(ours)))
