"""Compares harmonic with inverse-distance interpolation of keypatches: which has the smaller error, and where.

Images are scikit-learn's: 90 crops of two photographs, 128 pixels wide and reduced to 64, in patches of 4; and 1,797
digits of 8 x 8 pixels in patches of 2.
Run: .venv/bin/python benchmarks/bench_interpolation.py > benchmarks/results/interpolation.txt
"""

import math

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits, load_sample_images
from torch import Tensor

from latentloom.keyframes import interpolate_harmonic, interpolate_idw, interpolation_errors, nested_masks, patchify

SIGMAS = (math.inf, 1.0, 0.3, 0.1)
DRAWS = 4


def main() -> None:
    print("IDW: mean squared error of missing patches, values from -1 to 1")
    print("by sigma_feature: the harmonic error over IDW's; below 1 the harmonic fill is the better one")
    print(f"lambda_reg 1e-4, sigma_space 1, {DRAWS} draws of the given patches per image\n")
    print(f"{'':8}{'given':>10}{'IDW':>9}" + "".join(f"{f'{sigma:g}':>8}" for sigma in SIGMAS))
    for name, images, patch, counts in (
        ("photos", photographs(), 4, (1, 4, 8, 16, 32, 64, 128)),
        ("digits", digits(), 2, (1, 2, 4, 8, 12)),
    ):
        side = images.shape[-1] // patch
        for num_given in counts:
            idw, *ratios = errors(patchify(images, patch).repeat(DRAWS, 1, 1), num_given, (side, side))
            print(f"{name:8}{f'{num_given}/{side**2}':>10}{idw:9.4f}" + "".join(f"{ratio:8.3f}" for ratio in ratios))


def errors(tokens: Tensor, num_given: int, grid: tuple[int, int]) -> list[float]:
    """IDW's error, and for every sigma_feature the harmonic one divided by it."""
    num_patches = grid[0] * grid[1]
    given = nested_masks((num_given,), num_patches, len(tokens), torch.Generator().manual_seed(num_given))[0]
    fills = [interpolate_idw(tokens, given, grid)]
    for sigma in SIGMAS:
        settings = {"sigma_feature": sigma, "sigma_space": 1.0, "lambda_reg": 1e-4}
        fills.append(interpolate_harmonic(tokens, given, grid, **settings))
    idw, *harmonic = [interpolation_errors(filled, tokens, given)["interp/mse_missing"] for filled in fills]
    return [idw, *(error / idw for error in harmonic)]


def photographs() -> Tensor:
    crops = []
    for photograph in load_sample_images().images:
        pixels = torch.tensor(photograph).permute(2, 0, 1).float() / 127.5 - 1
        crops += pixels.unfold(1, 128, 64).unfold(2, 128, 64).permute(1, 2, 0, 3, 4).flatten(0, 1)
    return F.interpolate(torch.stack(crops), (64, 64), mode="area")


def digits() -> Tensor:
    return torch.tensor(load_digits().images, dtype=torch.float32).unsqueeze(1) / 8 - 1


if __name__ == "__main__":
    main()
