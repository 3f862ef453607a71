"""Stage 1 of MicroWan: a small `AutoencoderKLWan` in the residual style of the Wan 2.2 VAE."""

from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from jaxtyping import Float
from torch import Tensor, nn

from latentloom.micro.attributes import all_attributes
from latentloom.micro.config import NUM_PROCESSES, VaeConfig
from latentloom.micro.loop import step_generator, take_step
from latentloom.micro.world import draw_scene, sample_scene
from latentloom.runs import track
from latentloom.training import (
    Curve,
    WeightAverage,
    load_state,
    make_optimizers,
    save_state,
    set_learning_rate,
    trapezoid,
)

#: Standard deviation of the noise on latents while training: the decoder must not rely on the last digits.
_LATENT_NOISE = 0.1


def make_vae(config: VaeConfig) -> AutoencoderKLWan:
    """An untrained VAE: 4 x 8 x 8 compression, 16 channels, pixels unshuffled by two as in the Wan 2.2 VAE."""
    vae = AutoencoderKLWan(
        base_dim=config.base_dim,
        decoder_base_dim=config.decoder_base_dim,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        z_dim=config.latent_channels,
        attn_scales=[],
        is_residual=True,
        patch_size=2,
        in_channels=12,
        out_channels=12,
        temperal_downsample=[True, True],
        scale_factor_temporal=4,
        scale_factor_spatial=8,
        latents_mean=[0.0] * config.latent_channels,
        latents_std=[1.0] * config.latent_channels,
    )
    # A posterior of standard deviation 0.1 from the start; sampling a wide one stalls the training.
    assert vae.quant_conv.bias is not None
    nn.init.constant_(vae.quant_conv.bias[config.latent_channels :], -4.6)
    return vae


def train_vae(rank: int, config: VaeConfig, seed: int, folder: Path) -> None:
    """Train in two phases - crops, then full clips for the decoder alone - and leave `vae.safetensors` in the folder.

    Runs in every process of a group; interrupted, it continues from the folder's last checkpoint.
    """
    torch.manual_seed(seed)
    vae = make_vae(config)
    average = WeightAverage(vae, config.ema_decay)
    parts = {"vae": vae, "average": average}
    optimizers = make_optimizers([vae], muon_lr=config.muon_lr, adam_lr=config.adam_lr, weight_decay=0.0)
    state_file = folder / "vae_state.safetensors"
    first = load_state(state_file, parts, optimizers) if state_file.exists() else 0
    num_steps = config.crop_steps + config.clip_steps
    curve = Curve(folder / "vae.jsonl", first) if rank == 0 else None
    for step in track(range(first, num_steps), "VAE"):
        crops = step < config.crop_steps
        vae.encoder.requires_grad_(crops)
        vae.quant_conv.requires_grad_(crops)
        set_learning_rate(optimizers, trapezoid(step, num_steps, warmup=config.warmup, decay_share=config.decay_share))
        generator = step_generator(seed, step, rank)
        count = (config.crop_batch if crops else config.clip_batch) // NUM_PROCESSES
        clips, weight = _draw_batch(count, generator, config, config.crop_size if crops else None)
        loss, measures = _loss(vae, clips, weight, generator)
        take_step(loss, [vae], optimizers)
        average.update(vae)
        if curve is not None:
            curve.append(step, **measures)
            if (step + 1) % config.save_every == 0:
                save_state(state_file, step + 1, parts, optimizers)
    average.copy_to(vae)
    if rank == 0:
        save_state(folder / "vae.safetensors", num_steps, {"vae": vae}, [])


def encode_mean(vae: AutoencoderKLWan, clips: Float[Tensor, "B 3 T H W"]) -> Float[Tensor, "B C t h w"]:
    """The mean of the posterior of clips in [-1, 1], not normalised."""
    return vae.encode(clips, return_dict=False)[0].mean


def _draw_batch(
    count: int, generator: torch.Generator, config: VaeConfig, crop: int | None
) -> tuple[Float[Tensor, "B 3 T h w"], Float[Tensor, "B 1 T h w"]]:
    """Clips in [-1, 1] and the weight of each pixel: a share shows random colours, so that the VAE is no palette."""
    choices = list(all_attributes())
    picks = torch.randint(len(choices), (count,), generator=generator).tolist()
    scene = sample_scene([choices[pick] for pick in picks], generator)
    free = torch.rand(count, 1, generator=generator) < config.random_colour_share
    scene = replace(
        scene,
        colour=torch.where(free, torch.rand(count, 3, generator=generator), scene.colour),
        background=torch.where(free, torch.rand(count, 3, generator=generator), scene.background),
    )
    clips = draw_scene(scene, 48)
    near_object = (clips - scene.background[..., None, None, None]).abs().amax(dim=1, keepdim=True) > 0.02
    weight = 1 + config.object_weight * F.max_pool3d(near_object.float(), (1, 5, 5), stride=1, padding=(0, 2, 2))
    if crop is not None:
        top, left = torch.randint((48 - crop) // 8 + 1, (2,), generator=generator).mul(8).tolist()
        clips, weight = (part[..., top : top + crop, left : left + crop] for part in (clips, weight))
    return clips * 2 - 1, weight / weight.mean()


def _loss(
    vae: AutoencoderKLWan, clips: Tensor, weight: Tensor, generator: torch.Generator
) -> tuple[Tensor, dict[str, float]]:
    """L1 + 2 MSE, more on the object; a weak pull of the latents towards a unit Gaussian keeps their scale."""
    mean = encode_mean(vae, clips)
    noise = torch.randn(mean.shape, generator=generator)
    decoded = vae.decode(mean + _LATENT_NOISE * noise, return_dict=False)[0]
    difference = decoded - clips
    l1 = (difference.abs() * weight).mean()
    mse = (difference.square() * weight).mean()
    size = mean.square().mean()
    measures = {"l1": l1.item(), "mse": mse.item(), "latent_rms": size.sqrt().item()}
    return l1 + 2 * mse + 1e-3 * size, measures
