"""What `latentloom finetune` saved, for the commands that run a model: LoRA adapters and text encoders."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latentloom.cli.delta_apply import one_strength_each
from latentloom.cli.extras import require_extra

if TYPE_CHECKING:
    from torch import nn

    from latentloom.finetune.adapter_files import Adapter
    from latentloom.wan.facts import ModelFacts

LoraOption = Annotated[
    list[Path] | None,
    typer.Option("--lora", metavar="FILE", help="A LoRA adapter's file or folder; may be repeated, they add up."),
]
LoraStrengthOption = Annotated[
    list[float] | None,
    typer.Option("--lora-strength", help="1 is as trained, 0 is off; given once for all, or once per --lora."),
]
TextEncoderOption = Annotated[
    Path | None,
    typer.Option("--text-encoder", metavar="FILE", help="A trained text encoder, whole or in part, or its folder."),
]

_PARTS = {"high": "transformer", "low": "transformer_2"}


@dataclass(frozen=True)
class AdapterInUse:
    """An adapter, and the part of the model that it goes to; None is every transformer."""

    file: Path
    strength: float
    part: str | None
    pairs: "Adapter"


@dataclass(frozen=True)
class Finetuned:
    """Trained parts that take the place of a checkpoint's own."""

    adapters: tuple[AdapterInUse, ...]
    text_encoder: Path | None

    def prepare(self, module: "nn.Module", name: str) -> None:
        """Change a part that was just loaded; `WanPipeline.load` takes this as `prepare`.

        Raises:
            CheckpointError: an adapter or an encoder does not fit the part.
        """
        from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
        from transformers import UMT5EncoderModel

        from latentloom.finetune.adapter_files import merge_adapter
        from latentloom.finetune.encoder_files import load_text_encoder_file

        if isinstance(module, UMT5EncoderModel) and self.text_encoder is not None:
            load_text_encoder_file(module, self.text_encoder)
        if isinstance(module, WanTransformer3DModel):
            for adapter in self.adapters:
                if adapter.part in (None, name):
                    merge_adapter(module, adapter.pairs, adapter.strength, source=str(adapter.file))

    def as_json(self) -> dict[str, Any]:
        """What was applied, for `--json`."""
        adapters = [
            {"file": str(adapter.file), "strength": adapter.strength, "part": adapter.part or "all transformers"}
            for adapter in self.adapters
        ]
        return {"lora": adapters, "text_encoder": None if self.text_encoder is None else str(self.text_encoder)}


def choose_finetuned(
    lora: list[Path] | None, strengths: list[float] | None, text_encoder: Path | None, facts: "ModelFacts"
) -> Finetuned:
    """The trained parts that a command line names, found and read before a model is loaded.

    With two experts, an adapter goes to the one that its file or folder names, otherwise to both, which is said.

    Args:
        lora: files or folders; an epoch's folder may hold one adapter for each expert.
        strengths: one for all or one each.
        text_encoder: file or folder.
        facts: of the model.

    Raises:
        ConfigError: strengths that do not match the adapters.
        FileError: a file is missing or is not what it should be.
    """
    if not lora and text_encoder is None:
        one_strength_each([], strengths, "--lora")
        return Finetuned((), None)
    require_extra("finetune", "peft")
    from latentloom.finetune.adapter_files import expert_in_name, files_of_experts, read_adapter
    from latentloom.finetune.encoder_files import encoder_file

    adapters = []
    for path, strength in zip(lora or [], one_strength_each(lora or [], strengths, "--lora"), strict=True):
        for file in files_of_experts(path, facts.experts):
            expert = expert_in_name(file) if facts.experts else None
            if facts.experts and expert is None:
                typer.echo(f"{file} names no expert (high_noise or low_noise), so it goes to both")
            adapters.append(
                AdapterInUse(file, strength, None if expert is None else _PARTS[expert], read_adapter(file))
            )
    return Finetuned(tuple(adapters), None if text_encoder is None else encoder_file(text_encoder))
