"""`latentloom drift make-shards`: clips of videos or of MicroWan's world as shards that drifting trains on."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from latentloom.cli.model import DeviceOption, checkpoint_or_default
from latentloom.cli.options import CkptRootOption, JsonOption, emit_json
from latentloom.cli.stopwatch import Stopwatch
from latentloom.errors import ConfigError, FileError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from latentloom.drifting.clips.encode import ClipEncoder, SourceClip

logger = logging.getLogger(__name__)

WORLD_SIZE = 48


def command(
    out: Annotated[Path, typer.Option("--out", file_okay=False, help="A new folder for the shards.")],
    videos: Annotated[
        Path | None,
        typer.Option("--videos", metavar="FOLDER", help="Videos; the caption of NAME.mp4 stands in NAME.txt."),
    ] = None,
    world: Annotated[
        int | None, typer.Option("--world", min=1, metavar="N", help="Instead: N clips of MicroWan's captioned world.")
    ] = None,
    space: Annotated[Literal["latent", "pixel"], typer.Option("--space", help="What clips are stored as.")] = "latent",
    frames: Annotated[
        Literal["each", "clip"] | None,
        typer.Option("--frames", help="Latents: of each frame as an image (default), or of the clip as a whole."),
    ] = None,
    num_frames: Annotated[
        int, typer.Option("--num-frames", min=1, help="Frames of a clip; of the world 9 or 17.")
    ] = 17,
    frame_size: Annotated[
        int | None, typer.Option("--frame-size", help="World: side of a frame, 48 (default) or 64.")
    ] = None,
    height: Annotated[
        int | None, typer.Option("--height", min=1, help="About this high, by averaging blocks of pixels.")
    ] = None,
    tile: Annotated[
        int | None, typer.Option("--tile", min=1, help="Videos: cut square tiles of so many pixels.")
    ] = None,
    hop: Annotated[
        int | None,
        typer.Option("--hop", min=1, help="Videos: frames between the starts of clips (default: no overlap)."),
    ] = None,
    held_out_share: Annotated[
        float | None,
        typer.Option("--held-out-share", help="Videos: last share of each, for OUT/held_out; the rest is OUT/train."),
    ] = None,
    split: Annotated[
        Literal["train", "held_out", "unseen_pair"] | None,
        typer.Option("--split", help="World: which of its contents (default: train)."),
    ] = None,
    clips_per_shard: Annotated[int, typer.Option("--clips-per-shard", min=1, help="Clips of a tar.")] = 256,
    no_text: Annotated[bool, typer.Option("--no-text", help="Store prompts without their embeddings.")] = False,
    ckpt_root: CkptRootOption = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, max=2**32 - 1, help="World: start of all randomness (default: 0).")
    ] = None,
    device: DeviceOption = None,
    json_file: JsonOption = None,
) -> None:
    """Cut videos into clips, or draw clips of MicroWan's world, and write them as webdataset shards with a manifest.

    A damaged video is named and left out.
    """
    if (videos is None) == (world is None):
        raise ConfigError("give either --videos FOLDER or --world N")
    if out.exists() and any(out.iterdir()):
        raise FileError(f"{out} is not empty; give a new folder to --out")
    idle = {"--frame-size": frame_size, "--split": split, "--seed": seed} if videos else {}
    idle |= {"--tile": tile, "--hop": hop, "--held-out-share": held_out_share} if world else {}
    _refuse_idle("--videos" if videos else "--world", idle)
    _refuse_idle("--space pixel", {"--frames": frames} if space == "pixel" else {})
    models = {"--ckpt-root": ckpt_root, "--device": device}
    _refuse_idle("--space pixel --no-text", models if space == "pixel" and no_text else {})

    clock = Stopwatch()
    with clock.time("load"):
        from latentloom.drifting.clips.encode import ClipEncoder, PromptTexts, ShardFacts, write_clips
        from latentloom.runs import choose_device

        root = checkpoint_or_default(ckpt_root)
        encoder = ClipEncoder(space, frames or "each", root, choose_device(device))
        texts = None
        if not no_text:
            from latentloom.cli.model import load_text_encoder

            texts = PromptTexts(load_text_encoder(root, device, None))
    if world is not None:
        from latentloom.cli.shard_sources import world_clips
        from latentloom.wan import facts

        size, chosen = frame_size or WORLD_SIZE, split or "train"
        encoder.require_size(num_frames, size, size)
        clips, fps = world_clips(world, num_frames, size, height, chosen, seed or 0), facts.get("micro").fps
        source, has_parts = f"{world} clips of MicroWan's world, split {chosen}, seed {seed or 0}", False
    else:
        has_parts = bool(held_out_share)
        clips, fps, source = _video_clips(
            videos or Path(), encoder, num_frames, hop or num_frames, height, tile, held_out_share or 0.0
        )
    folders = {"train": out / "train", "held_out": out / "held_out"} if has_parts else {"train": out}
    with clock.time("encoding"):
        written = write_clips(clips, encoder, texts, folders, ShardFacts(float(fps), clips_per_shard, source))
    for part, folder in folders.items():
        typer.echo(f"{folder}: {written[part]} clips in {-(-written[part] // clips_per_shard)} shards")
    measured = {"clips": {str(folder): written[part] for part, folder in folders.items()}, "seconds": clock.seconds}
    emit_json(json_file, {**measured, "source": source, "prompts_encoded": texts.num_encoded if texts else 0})


def _video_clips(
    folder: Path,
    encoder: "ClipEncoder",
    num_frames: int,
    hop: int,
    height: int | None,
    tile: int | None,
    held_out_share: float,
) -> "tuple[Iterator[SourceClip], float, str]":
    """The clips of a folder of videos, their frames per second, and the folder in words."""
    from latentloom.drifting.clips.video_windows import Windows, cut_videos, find_videos

    encoder.require_size(num_frames, encoder.multiple, encoder.multiple)
    windows = Windows(num_frames, hop, height, tile, encoder.multiple, held_out_share)
    videos = find_videos(folder)
    names = ", ".join(video.path.name for video in videos[:3]) + (", ..." if len(videos) > 3 else "")
    share = f", the last {held_out_share:g} of each held out" if held_out_share else ""
    about = f"{len(videos)} videos of {folder.name} ({names}), a clip every {hop} frames{share}"
    rates = {round(video.fps, 3): video.path.name for video in reversed(videos)}
    if len(rates) > 1:
        named = ", ".join(f"{rate:g} ({rates[rate]})" for rate in sorted(rates))
        logger.warning(
            "videos of %s frames per second: their motion differs in speed, and the manifest says %g",
            named,
            videos[0].fps,
        )
    return cut_videos(videos, windows), videos[0].fps, about


def _refuse_idle(beside: str, options: dict[str, object]) -> None:
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise ConfigError(f"{given[0]} has no effect with {beside}; leave it out")
