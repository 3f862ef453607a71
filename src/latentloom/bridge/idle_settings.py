"""Settings that were given and change nothing, so that nobody waits for their effect."""

from collections.abc import Iterator

from latentloom.bridge.config import SMOLLM2, BridgeConfig
from latentloom.runs import Config


def idle_settings(config: BridgeConfig) -> list[str]:
    """A line for each setting that was given and has no effect beside the others, with the first cause of it."""
    causes: dict[str, str] = {}
    for cause, names in _idle(config).items():
        for name in sorted(names.intersection(_given(config))):
            causes.setdefault(name, cause)
    return [f"{name} has no effect with {cause}" for name, cause in causes.items()]


def _idle(config: BridgeConfig) -> dict[str, set[str]]:
    """Names of settings by what takes their effect away."""
    model, data, training, evaluation = config.model, config.data, config.training, config.evaluation
    prefix = {"model.num_prefix_tokens", "model.prefix_hidden", "model.unconditional_share"}
    head = {"model.encoder_layers", "model.encoder_hidden", "model.encoder_dropout", "model.lora.encode"}
    decoding = {f"evaluation.{name}" for name in ("best_of", "temperature", "top_p", "max_new_tokens")}
    adapter = {f"model.lora.{name}" for name in ("alpha", "dropout", "targets", "encode")} | {"training.lora_lr"}
    both = {"training.text_loss_weight", "training.latent_loss_weight"}
    embedded = model.pretrained_model_name_or_path == SMOLLM2
    cases = {
        "training.task = 't2l'": (training.task == "t2l", prefix | decoding | both | {"evaluation.encoder"}),
        "training.task = 'l2t'": (
            training.task == "l2t",
            head | both | {"training.t2l_lr", "training.t2l_batch_size", "training.cache_features"},
        ),
        "model.lora.rank = 0": (not model.lora.rank, adapter),
        "training.task = 't2l' and model.lora.encode = false": (
            training.task == "t2l" and bool(model.lora.rank) and not model.lora.encode,
            {"model.lora.rank"} | adapter - {"model.lora.encode"},
        ),
        "training.cache_features = false": (not training.cache_features, {"training.t2l_batch_size"}),
        "features that training changes": (
            not model.freeze_backbone or model.unfreeze_layers > 0 or (model.lora.rank > 0 and model.lora.encode),
            {"training.t2l_batch_size", "training.cache_features"},
        ),
        "model.pretrained_model_name_or_path = 'smollm2'": (
            embedded,
            {"model.revision", "model.pretrained_local_dir", "model.trust_remote_code"},
        ),
        "data.val_json": (data.val_json is not None, {"data.held_out"}),
        "data.train_json": (data.train_json is not None, {"data.encoder", "data.text_field", "data.num_texts"}),
        "data.texts": (data.texts is not None, {"data.max_bad_share"} if data.val_json is None else set()),
        "evaluation.num_pairs = 0": (not evaluation.num_pairs, decoding | {"evaluation.encoder"}),
        "evaluation.best_of = 1": (evaluation.best_of == 1, {"evaluation.temperature", "evaluation.top_p"}),
    }
    return {cause: names for cause, (holds, names) in cases.items() if holds}


def _given(config: Config, before: str = "") -> Iterator[str]:
    for name in config.model_fields_set:
        value = getattr(config, name)
        if isinstance(value, Config):
            yield from _given(value, f"{before}{name}.")
        else:
            yield f"{before}{name}"
