"""`latentloom drift complete`: a clip out of the keyframes of a storyboard."""

from pathlib import Path
from typing import Annotated

import typer

from latentloom.cli.model import DeviceOption, checkpoint_or_default
from latentloom.cli.options import CkptRootOption, JsonOption, emit_json
from latentloom.cli.stopwatch import Stopwatch
from latentloom.errors import ConfigError, FileError


def command(
    keyframes: Annotated[
        str,
        typer.Option("--keyframes", metavar="FOLDER|FILE,...", help="Images in their order: a folder or a list."),
    ],
    out: Annotated[Path, typer.Option("--out", help="The clip: .mp4, .gif or .png.")],
    times: Annotated[
        str | None,
        typer.Option("--times", metavar="FRAME,...", help="Frame of each keyframe, from 0; evenly if not given."),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="What the clip shows, for a refiner that was trained with prompts.")
    ] = None,
    refiner: Annotated[
        Path | None,
        typer.Option("--refiner", help="File that `latentloom drift train` wrote; MicroWan's own when not given."),
    ] = None,
    alpha: Annotated[float, typer.Option("--alpha", min=1, help="Guidance strength.")] = 1.0,
    compare: Annotated[
        Path | None, typer.Option("--compare", metavar="FILE", help="Also the interpolation alone, as a clip.")
    ] = None,
    ckpt_root: CkptRootOption = None,
    device: DeviceOption = None,
    json_file: JsonOption = None,
) -> None:
    """Complete a storyboard to a clip, in one step."""
    clock = Stopwatch()
    with clock.time("load"):
        import torch

        from latentloom.cli.shipped_refiner import shipped_refiner
        from latentloom.drifting.clips.complete import (
            Completion,
            clip_space,
            complete_storyboard,
            decode_completion,
            require_text_encoder,
        )
        from latentloom.drifting.clips.encode import ClipEncoder, PromptTexts
        from latentloom.drifting.clips.refiner_files import load_clip_refiner
        from latentloom.drifting.clips.storyboard import find_keyframes, keyframe_times, make_storyboard
        from latentloom.runs import choose_device
        from latentloom.storage import write_video
        from latentloom.tensors import TextEmbeddings

        for path in (out, compare):
            if path is not None:
                _require_clip_file(path)
        files = find_keyframes(keyframes)
        chosen = choose_device(device)
        loaded, config = load_clip_refiner(refiner or shipped_refiner(), chosen, ckpt_root)
        trained_at = config.ckpt_root if config.ckpt_root is not None and config.ckpt_root.exists() else None
        root = checkpoint_or_default(ckpt_root or trained_at)
        shape = loaded.classes.encoder.clip_shape
        frames = keyframe_times(read_times(times), len(files), shape[1])
        space = clip_space(loaded, root, chosen)
        text = None
        if loaded.classes.encoder.text_width is not None:
            from latentloom.cli.model import load_text_encoder

            if prompt is None:
                raise ConfigError("the refiner was trained with prompts; give --prompt, what the clip shows")
            require_text_encoder(loaded, root)
            text = TextEmbeddings.from_list(PromptTexts(load_text_encoder(root, device, None)).of([prompt]))
        elif prompt is not None:
            raise ConfigError("the refiner was trained without prompts; leave out --prompt")
    with clock.time("encode"):
        encoder = ClipEncoder(space.space, space.frames or "each", root, chosen)
        storyboard = make_storyboard(files, frames, encoder, shape)
    with clock.time("refine"), torch.no_grad():
        completion = complete_storyboard(loaded, config, storyboard, text, alpha)
    with clock.time("decode"):
        fps = loaded.manifest.fps if loaded.manifest is not None else 16.0
        write_video(out, decode_completion(completion, loaded, root, chosen), fps)
        if compare is not None:
            plain = Completion(completion.interpolated, completion.interpolated, completion.level)
            write_video(compare, decode_completion(plain, loaded, root, chosen), fps)
    kept = bool((completion.clip[:, :, frames] == storyboard.values.to(chosen)[:, :, frames]).all())
    typer.echo(f"{out}: {shape[1]} frames from {len(files)} keyframes at {', '.join(map(str, frames))}")
    emit_json(
        json_file, {"times": frames, "level": completion.level, "keeps_keyframes": kept, "seconds": clock.seconds}
    )


def _require_clip_file(path: Path) -> None:
    """Return if a clip can be written there, which is asked before it is made.

    Raises:
        FileError: another suffix, or a place that cannot be written to.
    """
    from latentloom.storage.atomic import require_writable
    from latentloom.storage.video import SUFFIXES

    if path.suffix.lower() not in SUFFIXES:
        raise FileError(f"{path} ends in {path.suffix!r}; a clip is written as one of {', '.join(SUFFIXES)}")
    require_writable(path)


def read_times(text: str | None) -> list[int] | None:
    """The numbers of a list with commas.

    Raises:
        ConfigError: something else.
    """
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--times {text} is not understood; give frames such as 0,8,16") from error
