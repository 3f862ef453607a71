"""Options and prompts that several verbs of `latentloom inspect` share."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from latentloom.cli.prompts import collect_prompts

if TYPE_CHECKING:
    from latentloom.wan.layouts import Component

AdapterArgument = Annotated[
    Path, typer.Argument(metavar="ADAPTER", help="A LoRA file, or the folder that holds adapter_model.safetensors.")
]
ExpertOption = Annotated[
    Literal["high", "low"] | None,
    typer.Option("--expert", help="Of a two-expert model, the one the adapter is for; its name tells by default."),
]
ReportOption = Annotated[
    Path | None, typer.Option("--out", file_okay=False, help="Folder of the report; reports/TOOL/RUN by default.")
]
_WORLD_SEED = 0


def transformer_for(adapter: Path, root: Path, expert: str | None) -> "Component":
    """The transformer that an adapter is for, of which only headers are read.

    Args:
        adapter: its path; `high_noise` or `low_noise` in it tells the expert where none is given.
        root: the checkpoint.
        expert: `high` or `low`.

    Raises:
        CheckpointError: it is not there, or there are two and nothing tells which.
    """
    from latentloom.finetune.adapter_files import expert_in_name
    from latentloom.wan.layouts import recognise

    found = recognise(root)
    told = expert or (expert_in_name(adapter) if found.experts else None)
    return found.component("transformer", told)


def prompts_for(root: Path, file: Path | None, count: int) -> list[str]:
    """The prompts of a file, all of them; else `count` captions for MicroWan, or at most so many neutral prompts.

    Args:
        root: the checkpoint.
        file: one prompt per line.
        count: at least 1.

    Raises:
        PromptError, FileError: the file holds none, or cannot be read.
    """
    if file is not None:
        return collect_prompts(None, file)
    from latentloom.wan.layouts import recognise

    if recognise(root).declared_model == "micro":
        return world_captions(count)
    from latentloom.finetune.probes.prompts import NEUTRAL_PROMPTS

    return list(NEUTRAL_PROMPTS[:count])


def world_captions(count: int) -> list[str]:
    """Captions of MicroWan's world in the words of all its lexicons, always the same ones."""
    from latentloom.micro.pairs import make_pairs

    pairs = make_pairs((count + 1) // 2, seed=_WORLD_SEED)
    return [caption for pair in pairs for caption in reversed(pair)][:count]
