"""`latentloom micro score-completions`: whether clips completed from two keyframes show what the prompt says."""

from pathlib import Path
from typing import Annotated

import typer

from latentloom.cli.model import DeviceOption, checkpoint_or_default
from latentloom.cli.options import CkptRootOption, JsonOption, emit_json


def command(
    refiner: Annotated[
        Path | None,
        typer.Option("--refiner", help="File that `latentloom drift train` wrote; MicroWan's own when not given."),
    ] = None,
    num_clips: Annotated[int, typer.Option("--num-clips", min=1, help="Clips of held-out contents.")] = 200,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of contents and geometry.")] = 0,
    ckpt_root: CkptRootOption = None,
    device: DeviceOption = None,
    json_file: JsonOption = None,
) -> None:
    """Complete clips of MicroWan's world from their first and last frame, and read their attributes.

    The middle frame, the farthest from both keyframes, is read alone too.
    """
    from latentloom.cli.accuracy_table import print_accuracy
    from latentloom.cli.model import load_text_encoder
    from latentloom.cli.shipped_refiner import shipped_refiner
    from latentloom.drifting.clips.refiner_files import load_clip_refiner
    from latentloom.micro.completion import evaluate_completions
    from latentloom.runs import choose_device

    chosen, root = choose_device(device), checkpoint_or_default(ckpt_root)
    loaded, config = load_clip_refiner(refiner or shipped_refiner(), chosen, ckpt_root)
    encoder = load_text_encoder(root, device, None)
    found = evaluate_completions(loaded, config, encoder, num_clips, seed=seed, vae_root=root, device=chosen)
    print_accuracy(found.evaluations)
    typer.echo(f"both keyframes bit for bit: {found.num_kept} of {found.num_clips}")
    emit_json(json_file, found.to_json())
