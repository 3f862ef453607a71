"""Shapes of backbones that can be planned with before any of their files is here."""

from typing import Any

from transformers import LlamaConfig, PreTrainedConfig, Qwen2Config, Qwen3Config

from latentloom.bridge.config import SMOLLM2


def known_config(name: str) -> PreTrainedConfig | None:
    """The config of a backbone by its name on the hub, or of the embedded default; None where it is not known.

    Source: the config.json of Qwen3-8B, of Qwen2.5-7B and of SmolLM2-135M-Instruct. WeDLM-8B and WeDLM-7B go on from
    the first two and have their shapes (the WeDLM repository, "Model Details").
    """
    owner, _, model = name.lower().partition("/")
    if name == SMOLLM2 or (owner == "huggingfacetb" and model.startswith("smollm2-135m")):
        return LlamaConfig(**_SMOLLM2_135M, tie_word_embeddings=True)
    if (owner, model.split("-base")[0].split("-instruct")[0]) in (("tencent", "wedlm-8b"), ("qwen", "qwen3-8b")):
        return Qwen3Config(**_QWEN3_8B, tie_word_embeddings=False)
    if (owner, model.split("-base")[0].split("-instruct")[0]) in (("tencent", "wedlm-7b"), ("qwen", "qwen2.5-7b")):
        return Qwen2Config(**_QWEN2_5_7B, tie_word_embeddings=False)
    return None


_QWEN3_8B: dict[str, Any] = {
    "vocab_size": 151_936,
    "hidden_size": 4096,
    "intermediate_size": 12_288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
_QWEN2_5_7B: dict[str, Any] = {
    "vocab_size": 152_064,
    "hidden_size": 3584,
    "intermediate_size": 18_944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
}
_SMOLLM2_135M: dict[str, Any] = {
    "vocab_size": 49_152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
}
