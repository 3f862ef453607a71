"""The clips that the DiT is trained on, drawn and encoded once, with the latents' mean and deviation per channel."""

from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed

from latentloom.micro.attributes import Attributes, split
from latentloom.micro.config import CLIPS_AT_ONCE, NUM_PROCESSES, VaeConfig
from latentloom.micro.loop import step_generator
from latentloom.micro.train_vae import encode_mean, make_vae
from latentloom.micro.world import draw_clips
from latentloom.runs import track
from latentloom.storage import atomic_write
from latentloom.training import load_state


def encode_world(rank: int, num_clips: int, config: VaeConfig, seed: int, folder: Path) -> None:
    """Draw and encode each process's share of the training clips into `latents_<rank>.safetensors` of the folder."""
    vae = load_trained_vae(config, folder)
    choices = split("train")
    parts: list[Tensor] = []
    picks: list[Tensor] = []
    for index in track(num_clips // NUM_PROCESSES // CLIPS_AT_ONCE, "encode clips"):
        generator = step_generator(seed + 2, index, rank)
        chosen = torch.randint(len(choices), (CLIPS_AT_ONCE,), generator=generator)
        clips = draw_clips([choices[pick] for pick in chosen.tolist()], generator)
        with torch.no_grad():
            parts.append(encode_mean(vae, clips * 2 - 1))
        picks.append(chosen)
    with atomic_write(folder / f"latents_{rank}.safetensors") as temporary:
        save_file({"latents": torch.cat(parts), "picks": torch.cat(picks)}, temporary)
    distributed.barrier()


def load_trained_vae(config: VaeConfig, folder: Path) -> AutoencoderKLWan:
    """The VAE that the first stage left in the folder."""
    vae = make_vae(config)
    load_state(folder / "vae.safetensors", {"vae": vae}, [])
    return vae.eval().requires_grad_(False)


def load_latents(folder: Path) -> tuple[Float[Tensor, "N C T H W"], list[Attributes]]:
    """All training clips' latents, not yet normalised, and what each shows."""
    parts = [load_file(folder / f"latents_{rank}.safetensors") for rank in range(NUM_PROCESSES)]
    choices = split("train")
    shown = [choices[pick] for part in parts for pick in part["picks"].tolist()]
    return torch.cat([part["latents"] for part in parts]), shown


def latent_statistics(latents: Float[Tensor, "N C T H W"]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, as the VAE's config keeps them."""
    dims = (0, 2, 3, 4)
    return latents.mean(dim=dims).tolist(), latents.std(dim=dims).tolist()
