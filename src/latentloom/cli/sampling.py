"""How to sample: the options of every command that makes clips, and what they mean together."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from latentloom.errors import ConfigError

if TYPE_CHECKING:
    from latentloom.wan.clip_size import ClipSize
    from latentloom.wan.facts import ModelFacts
    from latentloom.wan.sampling import SamplingSettings

SeedOption = Annotated[
    list[int] | None, typer.Option("--seed", help="One for all clips, or given once per clip; 0 when not given.")
]
NumFramesOption = Annotated[int | None, typer.Option("--num-frames", help="Frames per clip, 4k+1.")]
HeightOption = Annotated[int | None, typer.Option("--height", help="In pixels.")]
WidthOption = Annotated[int | None, typer.Option("--width", help="In pixels.")]
StepsOption = Annotated[int | None, typer.Option("--steps", help="Sampling steps.")]
GuidanceOption = Annotated[
    str | None, typer.Option("--guidance", help="Scale, or HIGH,LOW for a model with two experts; 1 is none.")
]
ShiftOption = Annotated[float | None, typer.Option("--shift", help="Above 1 spends more steps on high noise.")]
SamplerOption = Annotated[Literal["unipc", "euler"], typer.Option("--sampler", help="How to integrate.")]
NegativePromptOption = Annotated[str, typer.Option("--negative-prompt", help="What guidance moves away from.")]
BatchSizeOption = Annotated[
    int | None, typer.Option("--batch-size", min=1, help="Clips computed together; chosen by size when not given.")
]
OffloadOption = Annotated[
    Literal["none", "group"], typer.Option("--offload", help="group keeps weights on the CPU until needed.")
]
Fp8Option = Annotated[bool, typer.Option("--fp8", help="Store the transformer in eight bits.")]


@dataclass(frozen=True)
class Plan:
    """What will be sampled from which model, checked before minutes of loading are spent."""

    facts: "ModelFacts"
    size: "ClipSize"
    settings: "SamplingSettings"
    seeds: list[int]

    @classmethod
    def for_model(
        cls,
        root: Path,
        seeds: list[int],
        size: tuple[int | None, int | None, int | None],
        steps: int | None,
        guidance: str | None,
        shift: float | None,
        sampler: str,
    ) -> "Plan":
        """The plan for a checkpoint, of which only headers are read; what is None is the model's own.

        Args:
            root: the checkpoint.
            seeds: one per clip.
            size: frames, height and width.
            steps, guidance, shift, sampler: as the options of these names.

        Raises:
            CheckpointError: there is no Wan transformer.
            ConfigError: a setting is out of range.
        """
        from latentloom.wan.clip_size import ClipSize
        from latentloom.wan.pipeline import facts_of
        from latentloom.wan.sampling import SamplingSettings

        facts = facts_of(root)
        settings = SamplingSettings.for_model(facts, steps, read_guidance(guidance), shift, sampler)
        return cls(facts, ClipSize.for_model(facts, *size), settings, seeds)

    def as_json(self) -> dict[str, Any]:
        """The model, size, settings and seeds as JSON values."""
        shown = {"model": self.facts.key, "fps": self.facts.fps, "seeds": self.seeds}
        return {**shown, **asdict(self.size), **asdict(self.settings)}


def seeds_per_clip(seeds: list[int] | None, num_clips: int) -> list[int]:
    """One seed per clip: a single one serves all, so that a clip does not depend on its place in the list.

    Raises:
        ConfigError: neither one seed nor one per clip, or a seed out of range.
    """
    seeds = seeds or [0]
    for seed in seeds:
        if not 0 <= seed < 2**63:
            raise ConfigError(f"seed={seed} is out of range; use a whole number from 0 to 2^63 - 1")
    if len(seeds) == 1:
        return seeds * num_clips
    if len(seeds) != num_clips:
        raise ConfigError(f"{len(seeds)} seeds were given for {num_clips} clips; give --seed once, or once per clip")
    return seeds


def read_guidance(text: str | None) -> float | tuple[float, float] | None:
    """The guidance scale in `5`, or the experts' scales in `4,3`, high noise first.

    Raises:
        ConfigError: something else.
    """
    if text is None:
        return None
    try:
        scales = [float(part) for part in text.split(",")]
    except ValueError:
        scales = []
    if len(scales) not in (1, 2):
        raise ConfigError(f"--guidance {text} is not understood; give a number such as 5, or two such as 4,3")
    return scales[0] if len(scales) == 1 else (scales[0], scales[1])
