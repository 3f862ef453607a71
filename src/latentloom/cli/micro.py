"""`latentloom micro`: MicroWan's world, weights and score."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from latentloom.cli import micro_completions
from latentloom.cli.accuracy_table import print_accuracy
from latentloom.cli.finetuned import LoraOption, LoraStrengthOption, TextEncoderOption, choose_finetuned
from latentloom.cli.model import checkpoint_or_default
from latentloom.cli.options import CkptRootOption, JsonOption, emit_json
from latentloom.errors import ConfigError, FileError

if TYPE_CHECKING:
    from latentloom.micro.score import Question

app = typer.Typer(help="MicroWan, the embedded default model: build, score, read, draw.", add_completion=False)

SeedOption = Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="Start of all randomness.")]


@app.command()
def build(
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="SECTION.KEY=VALUE", help="Changes to the recipe.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", file_okay=False, help="Folder of the weights.")] = Path(
        "reports/micro/weights"
    ),
    work: Annotated[
        Path,
        typer.Option(
            "--work", file_okay=False, help="Folder of checkpoints and curves; an interrupted build continues there."
        ),
    ] = Path("reports/micro/build"),
    config: Annotated[
        Path | None, typer.Option("--config", exists=True, dir_okay=False, help="The recipe as TOML.")
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Train MicroWan from nothing: about an hour on two cores."""
    from latentloom.micro.build import build as run_build
    from latentloom.micro.build import build_summary
    from latentloom.micro.build_report import write_build_report
    from latentloom.micro.config import BuildConfig
    from latentloom.runs import load_config

    settings = load_config(BuildConfig, config, overrides or [])
    run_build(settings, work, out)
    page = write_build_report(work)
    typer.echo(f"weights: {out}\nreport: {page}")
    emit_json(json_file, build_summary(work, out))


@app.command()
def score(
    num_prompts: Annotated[
        int | None, typer.Option("--num-prompts", min=1, help="Prompts of each set; default 400.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option("--prompts", metavar="FILE", help="Prompts of your own instead, one per line.")
    ] = None,
    sets: Annotated[
        str | None, typer.Option("--sets", help="Names of prompt sets, comma-separated; default all.")
    ] = None,
    word: Annotated[
        list[str] | None,
        typer.Option("--word", help="Also a set of prompts with this new word, such as scarlet; may be repeated."),
    ] = None,
    lora: LoraOption = None,
    lora_strength: LoraStrengthOption = None,
    text_encoder: TextEncoderOption = None,
    ckpt_root: CkptRootOption = None,
    seed: SeedOption = 0,
    out: Annotated[
        Path | None, typer.Option("--out", file_okay=False, help="Also write a report page into this folder.")
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Measure which attributes of held-out prompts the generated clips show, with 95 % intervals."""
    from latentloom.micro.evaluate import evaluate, evaluate_reader
    from latentloom.micro.new_words import word_set
    from latentloom.wan.pipeline import WanPipeline, facts_of

    questions = choose_questions(sets, num_prompts, prompts, seed)
    questions |= {f"word {name!r}": word_set(name, num_prompts or 400, seed) for name in word or []}
    root = checkpoint_or_default(ckpt_root)
    facts = facts_of(root)
    if facts.height != facts.width:
        raise ConfigError(
            f"{root} is {facts.title}, which makes clips of {facts.width}x{facts.height}: "
            "the reader knows MicroWan's square world alone"
        )
    trained = choose_finetuned(lora, lora_strength, text_encoder, facts)
    pipeline = WanPipeline.load(root, prepare=trained.prepare)
    ceilings = evaluate_reader(pipeline, next(iter(questions.values())), seed) if prompts is None else []
    results = [*(evaluate(pipeline, name, asked, seed) for name, asked in questions.items()), *ceilings]
    print_accuracy(results)
    if out is not None:
        from latentloom.micro.report import write_report

        typer.echo(f"report: {write_report(results, pipeline.facts.fps, out, 'MicroWan: score')}")
    emit_json(json_file, {**trained.as_json(), "sets": {result.name: result.to_json() for result in results}})


def choose_questions(
    sets: str | None, num_prompts: int | None, prompts: Path | None, seed: int
) -> "dict[str, list[Question]]":
    """What to score, by name: the sets asked for, or the prompts of a file.

    Raises:
        ConfigError: an unknown set, or settings of sets beside a file of prompts.
        FileError: the file holds no prompt.
    """
    from latentloom.cli.prompts import read_prompts
    from latentloom.micro.score import PROMPT_SETS, prompt_set, questions_of

    if prompts is not None:
        if sets or num_prompts:
            raise ConfigError("--prompts was given with --sets or --num-prompts, which choose other prompts: drop one")
        written = questions_of(read_prompts(prompts))
        if not written:
            raise FileError(f"{prompts} holds no prompt: write one per line")
        return {prompts.name: written}
    names = [name.strip() for name in sets.split(",")] if sets else list(PROMPT_SETS)
    unknown = [name for name in names if name not in PROMPT_SETS]
    if unknown:
        raise ConfigError(f"unknown prompt set {unknown[0]!r}: choose from {', '.join(PROMPT_SETS)}")
    return {name: prompt_set(name, num_prompts or 400, seed) for name in names}


@app.command()
def read(
    clip: Annotated[Path, typer.Argument(metavar="CLIP", exists=True, dir_okay=False, help="A video file.")],
    json_file: JsonOption = None,
) -> None:
    """Read the attributes of one clip from its pixels."""
    import torch

    from latentloom.micro.attributes import VALUES
    from latentloom.micro.read import read_clips
    from latentloom.micro.score import to_unit_range
    from latentloom.storage import read_video

    frames, _ = read_video(clip)
    if frames.shape[1] != frames.shape[2]:
        raise FileError(f"{clip} has frames of {frames.shape[2]}x{frames.shape[1]}: MicroWan's world is square")
    reading = read_clips(to_unit_range(torch.from_numpy(frames)[None]))[0]
    found = {name: getattr(reading.attributes, name) for name in VALUES}
    for name, value in found.items():
        typer.echo(f"{name:10} {value or '-'}")
    measures = {"radius": reading.radius, "way": list(reading.way), "misfit": reading.misfit}
    emit_json(json_file, {"attributes": found, **measures})


@app.command()
def draw(
    out: Annotated[Path, typer.Option("--out", help="Folder of the clips, each with its caption beside it.")],
    num: Annotated[int, typer.Option("--num", min=1, help="How many clips.")] = 100,
    num_frames: Annotated[int, typer.Option("--num-frames", help="9 or 17.")] = 9,
    size: Annotated[int, typer.Option("--size", help="Side of a frame in pixels: 48 or 64.")] = 48,
    split: Annotated[str, typer.Option("--split", help="train, held_out or unseen_pair.")] = "train",
    lexicon: Annotated[
        str, typer.Option("--lexicon", help="Words of the captions: seen, unseen or telegraphic.")
    ] = "seen",
    word: Annotated[
        list[str] | None, typer.Option("--word", help="A new word to teach, such as scarlet; may be repeated.")
    ] = None,
    word_share: Annotated[
        float, typer.Option("--word-share", min=0, max=1, help="Share of captions that have one of them.")
    ] = 0.5,
    seed: SeedOption = 0,
) -> None:
    """Write captioned clips of the world: 00000.mp4 with 00000.txt, and so on."""
    from latentloom.micro.draw import write_clips

    write_clips(
        out,
        num,
        num_frames=num_frames,
        frame_size=size,
        split_name=split,
        lexicon=lexicon,
        words=word or [],
        word_share=word_share,
        seed=seed,
    )
    typer.echo(f"wrote {num} clips to {out}")


app.command("score-completions")(micro_completions.command)
