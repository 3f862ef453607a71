"""`latentloom drift evaluate-representation`: how well a quantizer or an encoder keeps classes apart."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from latentloom.cli.micro import SeedOption
from latentloom.cli.model import DeviceOption
from latentloom.cli.options import CkptRootOption, JsonOption, emit_json
from latentloom.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from latentloom.drifting.encoders import FeatureEncoder
    from latentloom.drifting.representation.evaluate import Evaluation
    from latentloom.drifting.representation.subject import Subject

RANDOM = "random"


def command(
    codebook: Annotated[
        Path | None, typer.Option("--codebook", help="That `latentloom drift quantize` wrote: classes are its own.")
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            "--encoder", help="File of train-mae, ResNet folder, or 'random'; classes are the images' labels."
        ),
    ] = None,
    data_root: Annotated[
        str | None, typer.Option("--data-root", help="Shards of clips, or folder or file of the dataset.")
    ] = None,
    dataset: Annotated[
        Literal["digits", "fake", "imagefolder", "latents", "shards"] | None,
        typer.Option(
            "--dataset",
            help="Encoder: labelled images (default: digits), or shards, whose classes are those of --codebook, "
            "or without one the families of their prompts.",
        ),
    ] = None,
    image_size: Annotated[
        int | None, typer.Option("--image-size", min=1, help="Encoder of images: height and width in pixels.")
    ] = None,
    input_space: Annotated[
        Literal["pixel", "latent"] | None,
        typer.Option("--input-space", help="Encoder of images: pixels (default) or latents."),
    ] = None,
    feature_encoder: Annotated[
        Path | None, typer.Option("--feature-encoder", help="Codebook: the one that quantize was given.")
    ] = None,
    ckpt_root: CkptRootOption = None,
    max_samples: Annotated[
        int, typer.Option("--max-samples", min=4, help="Samples of all figures but the occupancy, which is of all.")
    ] = 2048,
    out_dir: Annotated[
        Path | None,
        typer.Option(
            "--out-dir", file_okay=False, help="Folder of metrics.json and report.html (default: a new one in runs/)."
        ),
    ] = None,
    seed: SeedOption = 0,
    device: DeviceOption = None,
    json_file: JsonOption = None,
) -> None:
    """Measure how well classes are kept apart: separation, retrieval, occupancy, the drifting kernel; with pictures."""
    has_clips = encoder is None or dataset == "shards"
    options = {"--image-size": image_size, "--input-space": input_space} if has_clips else {}
    options |= {"--dataset": dataset} if encoder is None else {}
    options |= {"--feature-encoder": feature_encoder} if codebook is None else {}
    _refuse_what_does_not_fit(codebook, encoder, data_root, dataset, options)

    from latentloom.drifting.representation.evaluate import TEMPERATURES, evaluate_representation
    from latentloom.drifting.representation.report import write_report
    from latentloom.runs import RunFolder
    from latentloom.storage import write_json

    if has_clips:
        subject = _clips(
            codebook, encoder, str(data_root), feature_encoder, ckpt_root, device, max_samples=max_samples, seed=seed
        )
    else:
        subject = _images(str(encoder), data_root, dataset, image_size, input_space, ckpt_root, max_samples, seed)
    settings = {
        "representation": str(encoder or codebook),
        "classes": str(codebook) if codebook else "prompt families" if has_clips else "labels",
        "data_root": str(data_root or dataset or "digits"),
        "max_samples": max_samples,
        "seed": seed,
    }
    folder = (
        RunFolder.create(Path("runs"), "representation", settings, data=subject.data)
        if out_dir is None
        else RunFolder.at(out_dir, settings, data=subject.data)
    )
    with folder as run:
        evaluation = evaluate_representation(subject, are_pseudo_classes=encoder is None, seed=seed)
        metrics = evaluation.to_json()
        write_json(run.path / "metrics.json", metrics)
        write_report(run.path / "report.html", evaluation, temperatures=TEMPERATURES, seed=seed)
        run.count(len(subject.vectors))
        run.finish(metrics)
    _print(evaluation)
    typer.echo(f"report: {run.path / 'report.html'}")
    emit_json(json_file, {**metrics, "out_dir": str(run.path)})


def _refuse_what_does_not_fit(
    codebook: Path | None, encoder: str | None, data_root: str | None, dataset: str | None, idle: dict[str, object]
) -> None:
    """Return if the options belong together.

    Args:
        codebook, encoder, data_root, dataset: as given.
        idle: options that have no effect beside them.
    """
    if codebook is None and encoder is None:
        raise ConfigError("give either --codebook FILE with --data-root SHARDS, or --encoder FILE with --dataset")
    if codebook is not None and encoder is not None and dataset != "shards":
        raise ConfigError(
            "--codebook beside --encoder names the classes of clips; give --dataset shards too, or one of the two alone"
        )
    if given := [name for name, value in idle.items() if value is not None]:
        beside = "--codebook" if encoder is None else "--encoder"
        beside += " --dataset shards" if dataset == "shards" and encoder is not None else ""
        raise ConfigError(f"{given[0]} has no effect with {beside}; leave it out")
    if (encoder is None or dataset == "shards") and data_root is None:
        given = "--codebook" if encoder is None else "--dataset shards"
        raise ConfigError(f"{given} needs clips to look at; give --data-root SHARDS")


def _clips(
    codebook: Path | None,
    encoder: str | None,
    data_root: str,
    feature_encoder: Path | None,
    ckpt_root: Path | None,
    device: str | None,
    *,
    max_samples: int,
    seed: int,
) -> "Subject":
    from latentloom.drifting.clips.shard_index import ShardIndex
    from latentloom.drifting.representation.clip_subjects import ClipSet, clips_by_codebook, clips_by_encoder
    from latentloom.drifting.representation.codebook import load_codebook
    from latentloom.drifting.representation.feature_encoder import open_encoder
    from latentloom.runs import choose_device

    clips = ClipSet(data_root, max_samples, seed, ckpt_root, choose_device(device))
    classes = None
    if codebook is not None:
        features = feature_encoder and open_encoder(feature_encoder, ShardIndex.open(data_root).shape[0])
        classes = load_codebook(codebook, features)
        if encoder is None:
            return clips_by_codebook(classes, clips, name=f"codebook {codebook.stem}")
    make, name = _encoder(str(encoder), seed)
    return clips_by_encoder(make, clips, codebook=classes, name=name)


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
    make, name = _encoder(encoder, seed)
    return images_by_encoder(make, config, name=name, max_samples=max_samples, seed=seed)


def _encoder(encoder: str, seed: int) -> "tuple[Callable[[int], FeatureEncoder], str]":
    """What makes the encoder for so many channels, and its name."""
    from latentloom.drifting.encoders import resnet_encoder
    from latentloom.drifting.representation.feature_encoder import open_encoder

    if encoder == RANDOM:
        return lambda channels: resnet_encoder(None, channels, seed), "ResNet with random weights"
    return lambda channels: open_encoder(Path(encoder), channels), f"encoder {Path(encoder).stem}"


def _print(evaluation: "Evaluation") -> None:
    for reading in evaluation.readings:
        typer.echo(f"{reading.question} {reading.verdict} - {reading.found}; rule: {reading.rule}")
    for line in evaluation.missing:
        typer.echo(line)
