"""`latentloom drift quantize`: pseudo-classes of clips, from their prompts and keyframes."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from latentloom.cli.micro import SeedOption
from latentloom.cli.options import JsonOption, emit_json
from latentloom.cli.stopwatch import Stopwatch

if TYPE_CHECKING:
    from latentloom.drifting.representation.quantize import Quantized


def command(
    data_root: Annotated[
        str, typer.Option("--data-root", help="Folder of clip shards, or a pattern: shards/shard-{00000..00009}.tar.")
    ],
    out: Annotated[Path, typer.Option("--out", dir_okay=False, help="File for the codebook (.safetensors).")],
    num_classes: Annotated[
        int, typer.Option("--num-classes", min=1, metavar="K", help="Pseudo-classes; at most as many as clips.")
    ] = 1024,
    fallback: Annotated[
        int | None,
        typer.Option("--fallback", min=1, help="Classes if K leaves too many of them empty (default: half of K)."),
    ] = None,
    width: Annotated[int, typer.Option("--width", min=1, help="Numbers of the vector of a clip, at most.")] = 64,
    text_weight: Annotated[float, typer.Option("--text-weight", min=0, help="Of the prompt; 0 leaves it out.")] = 1.0,
    keyframe_weight: Annotated[
        float, typer.Option("--keyframe-weight", min=0, help="Of the keyframes' values; 0 leaves them out.")
    ] = 1.0,
    feature_encoder: Annotated[
        Path | None,
        typer.Option(
            "--feature-encoder", help="Look at keyframes through it too: file of train-mae, or ResNet folder."
        ),
    ] = None,
    sample: Annotated[
        int, typer.Option("--sample", min=1, help="Clips that are held to fit to; all of them get a class.")
    ] = 32768,
    backend: Annotated[
        Literal["torch", "faiss"], typer.Option("--backend", help="What finds nearest centroids.")
    ] = "torch",
    seed: SeedOption = 0,
    json_file: JsonOption = None,
) -> None:
    """Divide clips into pseudo-classes by k-means of their prompts and keyframes, and write them as a codebook.

    If its perplexity is below half of K, or more than 2 % of the classes have at most one clip, the fallback is used.
    """
    from latentloom.drifting.clips.condition_parts import ConditionSettings
    from latentloom.drifting.clips.shard_stream import stream_shards
    from latentloom.drifting.representation.feature_encoder import open_encoder
    from latentloom.drifting.representation.quantize import quantize_clips
    from latentloom.storage import require_writable

    require_writable(out)
    stream, clock = stream_shards(data_root), Stopwatch()
    features = None if feature_encoder is None else open_encoder(feature_encoder, next(iter(stream)).values.shape[0])
    settings = ConditionSettings(width=width, text_weight=text_weight, keyframe_weight=keyframe_weight)
    with clock.time("quantizing"):
        quantized = quantize_clips(
            stream,
            num_classes,
            fallback,
            settings=settings,
            features=features,
            sample_size=sample,
            seed=seed,
            backend=backend,
        )
    record = {**quantized.codebook.record, "data_root": data_root, "feature_encoder": str(feature_encoder or "")}
    quantized.codebook.record = record
    quantized.codebook.save(out)
    _print(quantized)
    if stream.skipped:
        typer.echo("skipped: " + ", ".join(f"{count} x {reason}" for reason, count in stream.skipped.most_common()))
    typer.echo(f"{quantized.decision}\ncodebook: {out}")
    emit_json(json_file, {**record, "seconds": clock.seconds, "skipped": dict(stream.skipped), "codebook": str(out)})


def _print(quantized: "Quantized") -> None:
    for number, figures in quantized.tried.items():
        typer.echo(
            f"K = {number}: {figures.num_used} classes used, perplexity {figures.perplexity:.0f} "
            f"({figures.perplexity / number:.0%}), near-empty {figures.near_empty_share:.1%} "
            f"(empty {figures.empty_share:.1%}), largest {figures.dominance:.1%} of {figures.num_samples} clips, "
            f"clips per class: mean {figures.mean:.1f}, median {figures.median:g}, "
            f"p10 {figures.p10:g}, p90 {figures.p90:g}"
        )
