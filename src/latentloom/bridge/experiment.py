"""What a training of a bridge is, for the run's record."""

from latentloom.bridge.config import BridgeConfig
from latentloom.bridge.model import LatentBridge
from latentloom.bridge.run_data import RunPairs, run_encoder_name
from latentloom.runs import TrainingFacts
from latentloom.runs.experiment import DataFacts, EncoderFacts


def bridge_trainings(
    config: BridgeConfig, bridge: LatentBridge, pairs: RunPairs, batch_size: int
) -> dict[str, TrainingFacts]:
    """The facts of a run's training.

    Args:
        config: the settings.
        bridge: what is trained.
        pairs: on what.
        batch_size: rows of an optimizer step, over all processes.
    """
    model, backbone = config.model, bridge.backbone
    encoders = [
        EncoderFacts(
            name="language model",
            checkpoint=f"{backbone.name} {backbone.fingerprint}",
            frozen=model.freeze_backbone and not model.unfreeze_layers,
        )
    ]
    if (name := run_encoder_name(config)) is not None:
        encoders.append(EncoderFacts(name="sentence encoder of the vectors", checkpoint=name, frozen=True))
    facts = TrainingFacts(
        data=DataFacts(
            pattern=pairs.description, shards=None, num_samples=len(pairs.train), num_held_out=len(pairs.held_out)
        ),
        trained="; ".join(_trained(config)),
        encoders=tuple(encoders),
        quantizer=None,
        sampling=None,
        features=_pooled(bridge) if _listens(config) else None,
        temperatures=None,
        normalization="vectors and pooled features standardised per channel by the training set; prefix embeddings "
        "brought to the root mean square of the backbone's",
        loss=_loss(config),
        batch_size=batch_size,
        steps=config.training.num_steps,
    )
    return {"bridge": facts}


def summary(config: BridgeConfig, bridge: LatentBridge) -> str:
    """What a run trains, in a sentence or two."""
    ways = {"l2t": "vector -> text", "t2l": "text -> vector", "joint": "vector -> text and text -> vector"}
    trained = ", ".join(_trained(config))
    return (
        f"A bridge on {bridge.backbone.name}: {ways[config.training.task]}. Trained: {trained}. Loss: {_loss(config)}."
    )


def _pooled(bridge: LatentBridge) -> tuple[str, ...]:
    return tuple(f"states of layer {layer}, mean over tokens" for layer in bridge.layers)


def _listens(config: BridgeConfig) -> bool:
    return config.training.task != "l2t"


def _trained(config: BridgeConfig) -> list[str]:
    model = config.model
    parts = []
    if config.training.task != "t2l":
        parts.append(f"prefix of {model.num_prefix_tokens} embeddings")
    if _listens(config):
        parts.append("head on pooled states")
    if model.lora.rank:
        parts.append(f"LoRA of rank {model.lora.rank} on {', '.join(model.lora.targets)}")
    if not model.freeze_backbone:
        parts.append("the whole backbone")
    if model.unfreeze_layers:
        parts.append(f"the last {model.unfreeze_layers} layers and the final norm")
    if not model.freeze_lm_head:
        parts.append("the output layer")
    return parts


def _loss(config: BridgeConfig) -> str:
    training = config.training
    text = "cross-entropy of the text's tokens and its end"
    latent = "mean squared error of the standardised vector"
    both = f"{training.text_loss_weight:g} x {text} + {training.latent_loss_weight:g} x {latent}"
    return {"l2t": text, "t2l": latent, "joint": both}[training.task]
