"""`latentloom drift evaluate-representation`: how well a quantizer or an encoder keeps classes apart."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from latentloom.cli.micro import SeedOption
from latentloom.cli.model import DeviceOption
from latentloom.cli.options import CkptRootOption, JsonOption, emit_json
from latentloom.errors import ConfigError

if TYPE_CHECKING:
    from latentloom.drifting.representation.evaluate import Evaluation
    from latentloom.drifting.representation.subject import Subject

RANDOM = "random"


def command(
    codebook: Annotated[
        Path | None, typer.Option("--codebook", help="That `latentloom drift quantize` wrote: classes are its own.")
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option("--encoder", help="Instead: file of train-mae, ResNet folder, or 'random'; classes are labels."),
    ] = None,
    data_root: Annotated[
        str | None, typer.Option("--data-root", help="Shards of clips (codebook), or folder or file of the dataset.")
    ] = None,
    dataset: Annotated[
        Literal["digits", "fake", "imagefolder", "latents"] | None,
        typer.Option("--dataset", help="Encoder: labelled images (default: digits)."),
    ] = None,
    image_size: Annotated[
        int | None, typer.Option("--image-size", min=1, help="Encoder: height and width in pixels.")
    ] = None,
    input_space: Annotated[
        Literal["pixel", "latent"] | None, typer.Option("--input-space", help="Encoder: pixels (default) or latents.")
    ] = None,
    feature_encoder: Annotated[
        Path | None, typer.Option("--feature-encoder", help="Codebook: the one that quantize was given.")
    ] = None,
    ckpt_root: CkptRootOption = None,
    max_samples: Annotated[
        int, typer.Option("--max-samples", min=4, help="Samples of all figures but the occupancy, which is of all.")
    ] = 2048,
    out_dir: Annotated[
        Path, typer.Option("--out-dir", file_okay=False, help="Folder of the run: metrics.json and report.html.")
    ] = Path("runs/representation"),
    seed: SeedOption = 0,
    device: DeviceOption = None,
    json_file: JsonOption = None,
) -> None:
    """Measure how well classes are kept apart: separation, retrieval, occupancy, the drifting kernel; with pictures."""
    if (codebook is None) == (encoder is None):
        raise ConfigError("give either --codebook FILE with --data-root SHARDS, or --encoder FILE with --dataset")
    own = {"--dataset": dataset, "--image-size": image_size, "--input-space": input_space}
    given = [name for name, value in (own if codebook else {"--feature-encoder": feature_encoder}).items() if value]
    if given:
        raise ConfigError(f"{given[0]} has no effect with {'--codebook' if codebook else '--encoder'}; leave it out")
    if codebook is not None and data_root is None:
        raise ConfigError("--codebook needs clips to look at; give --data-root SHARDS")

    from latentloom.drifting.representation.evaluate import TEMPERATURES, evaluate_representation
    from latentloom.drifting.representation.report import write_report
    from latentloom.runs import RunFolder
    from latentloom.storage import write_json

    if codebook is not None:
        subject = _clips(codebook, str(data_root), feature_encoder, ckpt_root, device, max_samples, seed)
    else:
        subject = _images(str(encoder), data_root, dataset, image_size, input_space, ckpt_root, max_samples, seed)
    settings = {
        "representation": str(codebook or encoder),
        "data_root": str(data_root or dataset or "digits"),
        "max_samples": max_samples,
        "seed": seed,
    }
    with RunFolder.at(out_dir, settings, data=subject.data) as run:
        evaluation = evaluate_representation(subject, are_pseudo_classes=codebook is not None, seed=seed)
        metrics = evaluation.to_json()
        write_json(out_dir / "metrics.json", metrics)
        write_report(out_dir / "report.html", evaluation, temperatures=TEMPERATURES, seed=seed)
        run.count(len(subject.vectors))
        run.finish(metrics)
    _print(evaluation)
    typer.echo(f"report: {out_dir / 'report.html'}")
    emit_json(json_file, {**metrics, "out_dir": str(out_dir)})


def _clips(
    codebook: Path,
    data_root: str,
    feature_encoder: Path | None,
    ckpt_root: Path | None,
    device: str | None,
    max_samples: int,
    seed: int,
) -> "Subject":
    from latentloom.drifting.clips.shard_index import ShardIndex
    from latentloom.drifting.representation.codebook import load_codebook
    from latentloom.drifting.representation.feature_encoder import open_encoder
    from latentloom.drifting.representation.subject import clips_by_codebook
    from latentloom.runs import choose_device

    features = None if feature_encoder is None else open_encoder(feature_encoder, ShardIndex.open(data_root).shape[0])
    return clips_by_codebook(
        load_codebook(codebook, features),
        data_root,
        name=f"codebook {codebook.stem}",
        max_samples=max_samples,
        seed=seed,
        vae_root=ckpt_root,
        device=choose_device(device),
    )


def _images(
    encoder: str,
    data_root: str | None,
    dataset: str | None,
    image_size: int | None,
    input_space: str | None,
    ckpt_root: Path | None,
    max_samples: int,
    seed: int,
) -> "Subject":
    from latentloom.drifting.config import DataConfig
    from latentloom.drifting.encoders import resnet_encoder
    from latentloom.drifting.representation.feature_encoder import open_encoder
    from latentloom.drifting.representation.subject import images_by_encoder
    from latentloom.runs import load_config

    values = {
        "dataset": dataset or "digits",
        "data_root": data_root,
        "image_size": image_size,
        "input_space": input_space,
        "vae_root": ckpt_root,
    }
    config = load_config(DataConfig, None, [f"{name}={value}" for name, value in values.items() if value is not None])
    return images_by_encoder(
        lambda channels: (
            resnet_encoder(None, channels, seed) if encoder == RANDOM else open_encoder(Path(encoder), channels)
        ),
        config,
        name="ResNet with random weights" if encoder == RANDOM else f"encoder {Path(encoder).stem}",
        max_samples=max_samples,
        seed=seed,
    )


def _print(evaluation: "Evaluation") -> None:
    for reading in evaluation.readings:
        typer.echo(f"{reading.question} {reading.verdict} - {reading.found}; rule: {reading.rule}")
    for line in evaluation.missing:
        typer.echo(line)
