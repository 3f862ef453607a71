"""The encoded world: what each process wrote, joined in order, and its statistics."""

import pytest
import torch
from safetensors.torch import save_file

from latentloom.micro.attributes import split
from latentloom.micro.latents import latent_statistics, load_latents


def test_the_shares_of_the_processes_are_joined_in_order_with_what_they_show(tmp_path):
    shares = [torch.randn(3, 4, 2, 3, 3), torch.randn(2, 4, 2, 3, 3)]
    picks = [torch.tensor([5, 0, 591]), torch.tensor([7, 7])]
    for rank in range(2):
        save_file({"latents": shares[rank], "picks": picks[rank]}, tmp_path / f"latents_{rank}.safetensors")
    latents, shown = load_latents(tmp_path)
    assert torch.equal(latents, torch.cat(shares))
    assert shown == [split("train")[pick] for pick in (5, 0, 591, 7, 7)]


def test_the_statistics_make_every_channel_standard():
    scale, shift = torch.tensor([0.5, 2.0, 1.0, 3.0]), torch.tensor([0.0, -1.0, 4.0, 0.1])
    form = (1, 4, 1, 1, 1)
    latents = torch.randn(6, 4, 3, 6, 6, generator=torch.Generator().manual_seed(0)) * scale.view(form) + shift.view(
        form
    )
    mean, deviation = latent_statistics(latents)
    assert mean == pytest.approx(shift.tolist(), abs=0.3)
    assert deviation == pytest.approx(scale.tolist(), rel=0.1)
    normal = (latents - torch.tensor(mean).view(form)) / torch.tensor(deviation).view(form)
    assert normal.mean(dim=(0, 2, 3, 4)).abs().max() < 1e-5
    assert (normal.std(dim=(0, 2, 3, 4)) - 1).abs().max() < 1e-5
