"""Embedding Delta: a small residual adapter between text encoder and DiT, learned from (base, rewritten) prompts."""

from importlib import import_module
from typing import TYPE_CHECKING

__all__ = [
    "DeltaConfig",
    "EmbeddingDelta",
    "apply_deltas",
    "apply_to_prompt_embeds",
    "apply_to_text_embeddings",
    "apply_to_wan_video_embeds",
    "load_embdelta_adapter",
    "save_adapter",
]

_MODULES = {
    "DeltaConfig": "model",
    "EmbeddingDelta": "model",
    "apply_deltas": "model",
    "apply_to_prompt_embeds": "apply",
    "apply_to_text_embeddings": "apply",
    "apply_to_wan_video_embeds": "apply",
    "load_embdelta_adapter": "files",
    "save_adapter": "files",
}

if TYPE_CHECKING:
    from latentloom.delta.apply import apply_to_prompt_embeds, apply_to_text_embeddings, apply_to_wan_video_embeds
    from latentloom.delta.files import load_embdelta_adapter, save_adapter
    from latentloom.delta.model import DeltaConfig, EmbeddingDelta, apply_deltas
else:  # pairs are read without torch, which takes seconds to import

    def __getattr__(name: str) -> object:
        """A public name, from its module, which is imported when the name is first asked for."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
