"""Which weights of a backbone are trained: none, an adapter, its last layers, or all."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from latentloom.bridge.backbone import Backbone
from latentloom.bridge.config import LoraConfig, ModelConfig
from latentloom.errors import ConfigError


def prepare_backbone(backbone: Backbone, config: ModelConfig) -> None:
    """Put the adapter on a frozen backbone, and free the weights that the settings ask for, in float32.

    Raises:
        ConfigError: more layers than there are, or an adapter that fits none of its layers.
    """
    if config.unfreeze_layers > backbone.num_layers:
        raise ConfigError(f"unfreeze_layers = {config.unfreeze_layers}; {backbone.name} has {backbone.num_layers}")
    backbone.model.requires_grad_(False)
    if config.lora.rank:
        _add_adapter(backbone, config.lora)
    for module in _freed(backbone, config):
        module.float().requires_grad_(True)
    if config.freeze_lm_head:
        backbone.output_weight.requires_grad_(False)
    else:
        backbone.output_weight.data = backbone.output_weight.data.float()
        backbone.output_weight.requires_grad_(True)


@contextmanager
def adapter_disabled(network: nn.Module) -> Iterator[None]:
    """The network without its adapter's updates, for as long; what is trained of it stays what it was."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in network.modules() if isinstance(module, BaseTunerLayer)]
    trained = [(weight, weight.requires_grad) for layer in layers for weight in layer.parameters()]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        for weight, was_trained in trained:  # peft frees every adapter that it enables
            weight.requires_grad_(was_trained)


def freeze_adapter(network: nn.Module) -> None:
    """Train nothing of its adapter; the network's own weights stay as they are."""
    for name, weight in network.named_parameters():
        if "lora_" in name:
            weight.requires_grad_(False)


def _freed(backbone: Backbone, config: ModelConfig) -> list[nn.Module]:
    if not config.freeze_backbone:
        return [backbone.decoder]
    if not config.unfreeze_layers:
        return []
    layers = list(backbone.decoder.get_submodule("layers").children())
    return [*layers[-config.unfreeze_layers :], backbone.decoder.get_submodule("norm")]


def _add_adapter(backbone: Backbone, config: LoraConfig) -> None:
    from peft import LoraConfig as PeftConfig
    from peft import inject_adapter_in_model

    settings = PeftConfig(
        r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=list(config.targets)
    )
    try:
        inject_adapter_in_model(settings, backbone.decoder)
    except ValueError as error:
        raise ConfigError(
            f"lora.targets = {list(config.targets)} are no layers of {backbone.name}; name some"
        ) from error
    for name, parameter in backbone.decoder.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
