"""The Wan 2.2 trainer: UMT5 fine-tuning and DiT LoRA, cached, pipeline-parallel, resumable, diagnosed."""

from importlib import import_module
from typing import TYPE_CHECKING

__all__ = [
    "FinetuneConfig",
    "Options",
    "applied_adapter",
    "load_text_encoder_file",
    "merge_adapter",
    "read_adapter",
    "read_text_encoder",
    "run_finetune",
]

_MODULES = {
    "FinetuneConfig": "config",
    "Options": "train",
    "applied_adapter": "adapter_files",
    "load_text_encoder_file": "encoder_files",
    "merge_adapter": "adapter_files",
    "read_adapter": "adapter_files",
    "read_text_encoder": "encoder_files",
    "run_finetune": "train",
}

if TYPE_CHECKING:
    from latentloom.finetune.adapter_files import applied_adapter, merge_adapter, read_adapter
    from latentloom.finetune.config import FinetuneConfig
    from latentloom.finetune.encoder_files import load_text_encoder_file, read_text_encoder
    from latentloom.finetune.train import Options, run_finetune
else:  # reading an adapter does not need DeepSpeed, which takes seconds to import

    def __getattr__(name: str) -> object:
        """A public name, from its module, which is imported when the name is first asked for."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
