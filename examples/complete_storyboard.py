"""Complete a storyboard of three images with the refiner that comes with the package, and read what the clip shows.

Run: .venv/bin/python examples/complete_storyboard.py
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from PIL import Image

from latentloom.cli.shipped_refiner import shipped_refiner
from latentloom.drifting.clips.complete import complete_storyboard, decode_completion
from latentloom.drifting.clips.encode import ClipEncoder
from latentloom.drifting.clips.refiner_files import load_clip_refiner
from latentloom.drifting.clips.storyboard import find_keyframes, make_storyboard
from latentloom.micro import default_checkpoint
from latentloom.micro.draw import draw_captioned
from latentloom.micro.read import read_clips
from latentloom.micro.score import to_unit_range
from latentloom.wan.pipeline import WanPipeline


def main() -> None:
    device, root, times = torch.device("cpu"), default_checkpoint(), (0, 8, 16)
    clip = next(draw_captioned(1, num_frames=17, split_name="held_out", seed=0))
    refiner, config = load_clip_refiner(shipped_refiner())
    with TemporaryDirectory() as folder:
        for time in times:
            Image.fromarray(clip.frames[time].numpy()).save(Path(folder) / f"{time:02}.png")
        encoder = ClipEncoder("latent", "each", root, device)
        storyboard = make_storyboard(find_keyframes(folder), times, encoder, refiner.classes.encoder.clip_shape)
    text = WanPipeline.load(root).encode([clip.caption])
    frames = decode_completion(complete_storyboard(refiner, config, storyboard, text), refiner, root, device)
    print(clip.caption, read_clips(to_unit_range(frames[None]))[0].attributes, sep="\n")


if __name__ == "__main__":
    main()
