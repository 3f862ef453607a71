"""Language models small enough for a test, written as the folders that a hub would give."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

KINDS = ("llama", "qwen2", "qwen3", "wedlm", "wedlm_7b")
HIDDEN, LAYERS, VOCABULARY = 64, 3, 400

SENTENCES = [
    "the act of moving from one place to another",
    "a small animal that lives in the water and eats plants",
    "a person who writes books about the history of a country",
    "to make something larger or more important than it was",
    "the quality of being honest, fair and good",
    "a tool with a sharp edge that is used for cutting wood",
    "having a colour like that of the sky on a clear day",
    "a building in which people live, work or keep animals",
]


def write_tiny_backbone(folder: Path, kind: str, seed: int = 0) -> Path:
    """A folder with config.json, model.safetensors and a tokenizer trained on a few sentences; weights are random.

    Args:
        folder: to make.
        kind: one of KINDS. `wedlm` is WeDLM-8B's layout, with norms; `wedlm_7b` WeDLM-7B's, with biases.
        seed: of the weights.
    """
    tokenizer = tiny_tokenizer(with_bos=kind == "llama")
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": 128,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "rope_parameters": {"rope_type": "default", "rope_theta": 50_000.0},
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "initializer_range": 0.1,
    }
    torch.manual_seed(seed)
    if kind == "llama":
        model = LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=True))
    elif kind in ("qwen2", "wedlm_7b"):
        model = Qwen2ForCausalLM(Qwen2Config(**sizes, tie_word_embeddings=False))
    else:
        model = Qwen3ForCausalLM(Qwen3Config(**sizes, head_dim=32, tie_word_embeddings=False))
    with torch.no_grad():  # transformers starts norms at one and biases at zero, where a mistake would not show
        for name, parameter in model.named_parameters():
            if "norm" in name or "bias" in name:
                parameter += 0.2 * torch.randn(parameter.shape)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    weights = {name: value for name, value in model.state_dict().items() if name not in tied}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save_pretrained(folder)
    if kind.startswith("wedlm"):
        rewrite_as_wedlm(folder, has_norms=kind == "wedlm")
    return folder


def rewrite_as_wedlm(folder: Path, *, has_norms: bool) -> None:
    """Give a folder of Qwen3 or Qwen2 the config.json that WeDLM's checkpoints have."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    rope = config.pop("rope_parameters")
    config |= {
        "model_type": "wedlm",
        "architectures": ["WeDLMForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_wedlm.WeDLMConfig",
            "AutoModel": "modeling_wedlm.WeDLMModel",
            "AutoModelForCausalLM": "modeling_wedlm.WeDLMForCausalLM",
        },
        "qk_norm": has_norms,
        "attention_bias": not has_norms,
        "rope_theta": rope["rope_theta"],
        "rope_scaling": None,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.56.1",
    }
    file.write_text(json.dumps(config))


def tiny_tokenizer(*, with_bos: bool) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of fewer than VOCABULARY tokens, as Qwen's (no first token) or Llama's (with one)."""
    trained = ByteLevelBPETokenizer()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trained.train_from_iterator(
        SENTENCES, vocab_size=VOCABULARY - 20, min_frequency=1, special_tokens=special, show_progress=False
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer,
        bos_token="<|im_start|>" if with_bos else None,
        eos_token="<|im_end|>" if with_bos else "<|endoftext|>",
        pad_token="<|endoftext|>",
    )
