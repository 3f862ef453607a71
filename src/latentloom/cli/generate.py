"""`latentloom generate`: prompts to clips."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from latentloom.cli.clip_files import clip_files, write_clips
from latentloom.cli.delta_apply import DeltaOption, DeltaStrengthOption, adjust, one_strength_each
from latentloom.cli.finetuned import LoraOption, LoraStrengthOption, TextEncoderOption, choose_finetuned
from latentloom.cli.model import DeviceOption, DtypeOption, checkpoint_or_default, torch_dtype
from latentloom.cli.options import CkptRootOption, JsonOption, emit_json
from latentloom.cli.prompts import PromptsArgument, PromptsFileOption, collect_prompts
from latentloom.cli.sampling import (
    BatchSizeOption,
    Fp8Option,
    GuidanceOption,
    HeightOption,
    NegativePromptOption,
    NumFramesOption,
    OffloadOption,
    Plan,
    SamplerOption,
    SeedOption,
    ShiftOption,
    StepsOption,
    WidthOption,
    seeds_per_clip,
)
from latentloom.cli.stopwatch import Stopwatch
from latentloom.errors import ConfigError
from latentloom.storage import require_writable

if TYPE_CHECKING:
    from torch import Tensor

    from latentloom.tensors import TextEmbeddings

OutOption = Annotated[
    Path,
    typer.Option(
        "--out", help="A .mp4, .gif or .png file; for several prompts a folder, a name with {index}, or a .png sheet."
    ),
]
EmbeddingsOption = Annotated[
    Path | None, typer.Option("--embeddings", metavar="FILE", help="From `latentloom embed`, in place of prompts.")
]


def command(
    prompts: PromptsArgument = None,
    prompts_file: PromptsFileOption = None,
    embeddings_file: EmbeddingsOption = None,
    delta: DeltaOption = None,
    delta_strength: DeltaStrengthOption = None,
    lora: LoraOption = None,
    lora_strength: LoraStrengthOption = None,
    text_encoder: TextEncoderOption = None,
    ckpt_root: CkptRootOption = None,
    out: OutOption = Path("clip.mp4"),
    seed: SeedOption = None,
    num_frames: NumFramesOption = None,
    height: HeightOption = None,
    width: WidthOption = None,
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    shift: ShiftOption = None,
    sampler: SamplerOption = "unipc",
    negative_prompt: NegativePromptOption = "",
    batch_size: BatchSizeOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    offload: OffloadOption = "none",
    fp8: Fp8Option = False,
    json_file: JsonOption = None,
) -> None:
    """Make a clip from each prompt. Settings that are not given are the model's own."""
    clock = Stopwatch()
    captions, embeddings = read_inputs(prompts, prompts_file, embeddings_file)
    files = clip_files(out, len(captions))
    for file in files:
        require_writable(file)
    seeds = seeds_per_clip(seed, len(captions))
    strengths = one_strength_each(delta or [], delta_strength)
    root = checkpoint_or_default(ckpt_root)
    with clock.time("load"):
        plan = Plan.for_model(root, seeds, (num_frames, height, width), steps, guidance, shift, sampler)
        if negative_prompt and not plan.settings.is_guided:
            raise ConfigError("--negative-prompt has no effect without guidance; drop it, or give --guidance above 1")
        trained = choose_finetuned(lora, lora_strength, text_encoder, plan.facts)
        from latentloom.wan.pipeline import WanPipeline

        pipeline = WanPipeline.load(root, torch_dtype(dtype), device, offload, fp8, trained.prepare)
    with clock.time("encoding"):
        encoded = pipeline.encode(captions if embeddings is None else embeddings)
        if delta:
            encoded = adjust(encoded, delta, strengths)
    num_batches = len(pipeline.batches(len(captions), plan.size, batch_size))
    with clock.time("sampling"):
        latents = pipeline.sample(
            encoded,
            negative_prompt,
            size=plan.size,
            settings=plan.settings,
            seeds=plan.seeds,
            callback=show_steps(num_batches * plan.settings.steps),
            batch_size=batch_size,
        ).to("cpu")
    with clock.time("decoding"):
        clips = pipeline.decode(latents, batch_size)
    write_clips(files, clips, captions, plan.facts.fps)
    for file in files:
        typer.echo(file)
    placement = {"device": str(pipeline.device), "dtype": str(pipeline.dtype).removeprefix("torch.")}
    adapters = [{"file": str(file), "strength": value} for file, value in zip(delta or [], strengths, strict=True)]
    outcome = {"delta": adapters, "files": [str(file) for file in files], "prompts": captions, "seconds": clock.seconds}
    emit_json(json_file, {"ckpt_root": str(root), **trained.as_json(), **plan.as_json(), **placement, **outcome})


def read_inputs(
    prompts: list[str] | None, prompts_file: Path | None, embeddings_file: Path | None
) -> "tuple[list[str], TextEmbeddings | None]":
    """The clips' captions, and their embeddings where a file of them takes the prompts' place.

    Raises:
        ConfigError: both prompts and embeddings were given.
    """
    if embeddings_file is None:
        return collect_prompts(prompts, prompts_file), None
    if prompts or prompts_file is not None:
        raise ConfigError("prompts and --embeddings were both given; give one of them")
    from latentloom.storage import load_object
    from latentloom.tensors import TextEmbeddings

    embeddings = load_object(embeddings_file, TextEmbeddings)
    return [f"{embeddings_file.name} [{index}]" for index in range(len(embeddings))], embeddings


def show_steps(num_steps: int) -> "Callable[[int, float, Tensor], None]":
    """A sampling callback that advances a progress bar on standard error."""
    from latentloom.runs import track

    bar = track(num_steps, "sampling")
    next(bar)  # the bar counts a step when the next one is asked for

    def advance(step: int, timestep: float, latents: "Tensor") -> None:
        next(bar, None)

    return advance
