"""WeDLM checkpoints in the classes that transformers itself has.

WeDLM's own code does not run on transformers 5, and need not: as an autoregressive model, WeDLM-8B is Qwen3 and
WeDLM-7B Qwen2.5, tensor by tensor. Only the names in config.json differ.
"""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig, Qwen2Config, Qwen3Config

from latentloom.errors import CheckpointError

#: What config.json says of its own code, and what the mapped class decides.
_OF_ITS_CODE = {
    *("model_type", "architectures", "auto_map", "qk_norm", "use_cache"),
    *("transformers_version", "torch_dtype", "dtype"),
}


def is_wedlm(values: Mapping[str, Any]) -> bool:
    """Whether a config.json is WeDLM's."""
    return values.get("model_type") == "wedlm" or "WeDLMForCausalLM" in (values.get("architectures") or ())


def wedlm_config(values: Mapping[str, Any]) -> PreTrainedConfig:
    """The config of the transformers class that computes the same; what that class does not know stays on it.

    Args:
        values: WeDLM's config.json.

    Raises:
        CheckpointError: queries and keys have neither norms, as in Qwen3, nor biases, as in Qwen2.5, or have both.
    """
    has_norms, has_biases = bool(values.get("qk_norm")), bool(values.get("attention_bias"))
    if has_norms == has_biases:
        raise CheckpointError(
            f"a WeDLM config with qk_norm = {has_norms} and attention_bias = {has_biases}; known are WeDLM-8B with "
            "norms alone and WeDLM-7B with biases alone"
        )
    kept = {name: value for name, value in values.items() if name not in _OF_ITS_CODE}
    if has_norms:
        return Qwen3Config(**kept, architectures=["Qwen3ForCausalLM"])
    kept.pop("attention_bias")  # Qwen2's queries, keys and values always have one, its output projection never
    return Qwen2Config(**kept, architectures=["Qwen2ForCausalLM"])
