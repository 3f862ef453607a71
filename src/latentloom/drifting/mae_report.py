"""The page of an autoencoder's training: settings, curves, and held-out images before and after."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure
from torch import Tensor

from latentloom.drifting.config import MaeConfig
from latentloom.drifting.data import ImageData
from latentloom.drifting.images import bytes_from_pixels
from latentloom.drifting.mae import LatentMae, load_mae
from latentloom.drifting.mae_evaluate import held_out_loss, reconstruct
from latentloom.runs import Report
from latentloom.training import read_curve

_IMAGES_SHOWN = 12
_GAP = 1  # white pixels between the images of a grid


def write_mae_report(
    data: ImageData, config: MaeConfig, weights: Path, folder: Path, effective_batch: int
) -> dict[str, Any]:
    """Write `report.html` into the run folder; returns the figures in it.

    Args:
        data: the images.
        config: the settings.
        weights: the autoencoder's file.
        folder: of the run, which holds the curve.
        effective_batch: images per step, of all processes.
    """
    mae = load_mae(weights).to(data.held_out.load(torch.zeros(1, dtype=torch.int64)).device)
    curve = read_curve(folder / "curve.jsonl")
    results = {
        "held_out_loss": held_out_loss(mae, data.held_out, config),
        "effective_batch": effective_batch,
        "training_seconds": curve[-1]["seconds"],
        "parameters": sum(weight.numel() for weight in mae.parameters()),
    }
    report = Report("Masked autoencoder")
    report.paragraph(
        f"An encoder whose feature maps drifting compares, trained to fill in the {config.mask_ratio:.0%} of each "
        f"image that it does not see. Data: {data.description}."
    )
    report.heading("Result")
    report.table(["figure", "value"], list(results.items()))
    report.paragraph("The held-out loss is the mean squared error on hidden cells, of the averaged weights.")
    report.figure(plot_losses(curve), "Mean squared error on hidden cells by step.")
    report.heading("Held-out images")
    if data.has_pixels:
        report.image(
            grid(mae, data, config),
            "From above: images; what the encoder sees of them (hidden squares are 0, grey); hidden squares filled in.",
        )
    else:
        report.paragraph("No pictures: the VAE of these latents is not known. The checkpoint that has it is vae_root.")
    report.heading("Settings")
    report.table(["setting", "value"], [[name, str(value)] for name, value in config.model_dump().items()])
    report.write(folder / "report.html")
    return results


def plot_losses(curve: list[dict[str, float]]) -> Figure:
    """Training and held-out loss by step, logarithmic."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    panel = figure.subplots()
    panel.plot([line["step"] for line in curve], [line["reconstruction"] for line in curve], label="training")
    held_out = [line for line in curve if "held_out_loss" in line]
    panel.plot(
        [line["step"] for line in held_out],
        [line["held_out_loss"] for line in held_out],
        marker="o",
        label="held out, averaged weights",
    )
    panel.set(xlabel="step", ylabel="mean squared error", yscale="log")
    panel.legend(frameon=False)
    return figure


@torch.no_grad()
def grid(mae: LatentMae, data: ImageData, config: MaeConfig) -> UInt8[np.ndarray, "H W 3"]:
    """The first held-out images in three rows: whole, as the encoder sees them, filled in."""
    rows = torch.arange(min(len(data.held_out), _IMAGES_SHOWN))
    samples, hidden, reconstructed = reconstruct(mae, data.held_out, rows, config)
    hidden = hidden.unsqueeze(1)
    strips = (samples, samples.masked_fill(hidden, 0.0), torch.where(hidden, reconstructed, samples))
    return np.concatenate([_strip(data.to_pixels(images)) for images in strips])


def _strip(pixels: Float[Tensor, "B C H W"]) -> np.ndarray:
    """Images side by side, [H, W, 3]."""
    frames = bytes_from_pixels(pixels.cpu()).expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()
    framed = np.pad(frames, ((0, 0), (0, _GAP), (0, _GAP), (0, 0)), constant_values=255)
    return np.concatenate(list(framed), axis=1)
