"""What a training trains and the memory it takes, before any weight is loaded."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from latentloom.bridge.backbone import Backbone, load_model_config
from latentloom.bridge.checkpoint import DTYPES
from latentloom.bridge.config import MINILM, BridgeConfig
from latentloom.bridge.known_backbones import known_config
from latentloom.bridge.parts import LatentPrefix, TextToLatent, default_layers
from latentloom.bridge.plan_memory import Memory, ddp_memory, fsdp_memory
from latentloom.bridge.pretrained_folder import pretrained_folder
from latentloom.bridge.remote_code import allow_remote_code
from latentloom.bridge.trainable import freeze_adapter, prepare_backbone
from latentloom.errors import ConfigError, FileError

#: Width of the embedded encoder's vectors.
MINILM_DIM = 384


@dataclass(frozen=True)
class TrainingPlan:
    """Weights of a training, and what each GPU has to hold.

    Attributes:
        backbone: its name.
        source: where its shape is from.
        shape: the backbone's layers, channels and words.
        num_backbone: its weights, without an adapter.
        trained: numbers of trained weights by part; parts that the task leaves alone are 0.
        processes: GPUs.
        parallel: what the settings ask for.
        tokens: positions of the largest batch on a GPU: every text at `max_seq_len`.
        ddp, fsdp: memory of each GPU; None where there is one GPU and nothing to shard.
    """

    backbone: str
    source: str
    shape: dict[str, int]
    num_backbone: int
    trained: dict[str, int]
    processes: int
    parallel: str
    tokens: int
    ddp: Memory
    fsdp: Memory | None

    @property
    def wanted(self) -> Memory:
        """Memory of the settings' own way."""
        return self.fsdp if self.parallel == "fsdp" and self.fsdp is not None else self.ddp

    def fitting(self, gpu_bytes: float) -> list[str]:
        """Which of ddp and fsdp fit, the simpler first."""
        ways = {"ddp": self.ddp, "fsdp": self.fsdp}
        return [name for name, memory in ways.items() if memory is not None and memory.total <= gpu_bytes]

    def require_fit(self, gpu_bytes: float) -> None:
        """Return if the settings' own way fits.

        Raises:
            ConfigError: it does not; with both numbers, and the way that would.
        """
        if self.wanted.total <= gpu_bytes:
            return
        others = self.fitting(gpu_bytes)
        advice = (
            f"set training.parallel={others[0]}"
            if others
            else "lower training.train_batch_size or model.max_seq_len, freeze more, or use more GPUs with fsdp"
        )
        way = "" if self.processes == 1 else f" with {self.parallel} over {self.processes}"
        raise ConfigError(
            f"{self.backbone} needs {self.wanted.total / 1e9:.1f} GB on each GPU{way}, and one has "
            f"{gpu_bytes / 1e9:.1f} GB; {advice}"
        )

    def to_json(self) -> dict[str, Any]:
        """All of it, with the totals, in bytes."""
        values = asdict(self)
        for way, memory in (("ddp", self.ddp), ("fsdp", self.fsdp)):
            if memory is not None:
                values[way] = {**values[way], "total": memory.total}
        return {**values, "num_trained": sum(self.trained.values())}


def plan_training(config: BridgeConfig, processes: int) -> TrainingPlan:
    """The plan of a training on so many GPUs; needs the backbone's config.json, or none of its files where it is known.

    Args:
        config: the settings.
        processes: GPUs.

    Raises:
        ConfigError: the width of the vectors is not set, or settings that the backbone does not allow.
        FileError: the backbone's config is neither here nor known.
    """
    if config.training.parallel == "fsdp" and processes == 1:
        raise ConfigError("training.parallel = 'fsdp' shards over several GPUs; give --processes, or leave it out")
    backbone, source = _meta_backbone(config)
    shape = _shape(backbone.model.config)
    num_backbone = sum(weight.numel() for weight in backbone.model.parameters())
    head = backbone.output_weight
    parts = _meta_parts(backbone, config)
    tokens_per_text = config.model.max_seq_len + int(config.model.attention_sink) + config.model.num_prefix_tokens
    tokens = config.training.train_batch_size * tokens_per_text
    return TrainingPlan(
        backbone=backbone.name,
        source=source,
        shape=shape,
        num_backbone=num_backbone,
        trained=_num_trained(backbone, parts, head),
        processes=processes,
        parallel=config.training.parallel,
        tokens=tokens,
        ddp=ddp_memory(backbone, parts, config, tokens, processes),
        fsdp=fsdp_memory(backbone, parts, config, tokens, processes) if processes > 1 else None,
    )


def _meta_backbone(config: BridgeConfig) -> tuple[Backbone, str]:
    """The backbone without memory, and where its shape is from."""
    name = config.model.pretrained_model_name_or_path
    known = known_config(name)
    try:
        # the embedded default is known; to look it up would convert its file
        folder = pretrained_folder(config.model) if known is None or "/" in name else None
    except FileError:
        if known is None:
            raise
        folder = None
    if folder is not None:
        shape, source = load_model_config(folder, trusted=allow_remote_code(config.model, folder)), str(folder)
    else:
        shape, source = known, "known facts; none of its files were read"
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            shape, dtype=DTYPES[config.training.dtype], trust_remote_code=config.model.trust_remote_code
        )
    no_words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(BPE()))  # a plan reads no text
    return Backbone(model.eval().requires_grad_(False), no_words, name, ""), source


def _meta_parts(backbone: Backbone, config: BridgeConfig) -> dict[str, nn.Module]:
    """The trained parts without memory; what the task trains needs gradients, in them and in the backbone."""
    model, task, dim = config.model, config.training.task, _latent_dim(config)
    layers = model.encoder_layers or default_layers(backbone.num_layers)
    with torch.device("meta"):
        prepare_backbone(backbone, model)
        hidden = model.prefix_hidden or 3 * dim
        prefix = LatentPrefix(dim, hidden, model.num_prefix_tokens, backbone.hidden_size, 1.0)
        width = len(layers) * backbone.hidden_size
        head = TextToLatent(width, model.encoder_hidden, dim, model.encoder_dropout)
    prefix.requires_grad_(task != "t2l")
    head.requires_grad_(task != "l2t")
    if task == "t2l" and model.lora.rank and not model.lora.encode:
        freeze_adapter(backbone.model)
    return {"prefix": prefix, "head": head}


def _latent_dim(config: BridgeConfig) -> int:
    if config.model.latent_dim is not None:
        return config.model.latent_dim
    if config.data.train_json is None and config.data.encoder == MINILM:
        return MINILM_DIM
    raise ConfigError("a plan reads no data; set model.latent_dim to the width of its vectors")


def _num_trained(backbone: Backbone, parts: dict[str, nn.Module], output: Tensor) -> dict[str, int]:
    counts = {name: sum(w.numel() for w in part.parameters() if w.requires_grad) for name, part in parts.items()}
    counts |= {"adapter": 0, "unfrozen layers": 0, "output layer": 0}
    for name, weight in backbone.model.named_parameters():
        if weight.requires_grad:
            kind = "adapter" if "lora_" in name else "output layer" if weight is output else "unfrozen layers"
            counts[kind] += weight.numel()
    return counts


def _shape(config: Any) -> dict[str, int]:
    return {
        "layers": config.num_hidden_layers,
        "channels": config.hidden_size,
        "intermediate channels": config.intermediate_size,
        "words": config.vocab_size,
    }
