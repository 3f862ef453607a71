"""MicroWan's encoder learns its words from text alone, and keeps every token at one length."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from latentloom.micro import train_text as stage
from latentloom.micro.config import TextConfig
from latentloom.micro.tokenizer import EOS_ID, PAD_ID, UNK_ID, make_tokenizer
from latentloom.micro.train_text import load_trained_encoder, make_text_encoder, train_text
from latentloom.training import read_curve
from latentloom.wan.text_encoder import WanTextEncoder


@pytest.fixture(scope="module")
def longer(tiny_recipe) -> TextConfig:
    """A hundred steps in a second, fast enough to learn something in them."""
    return tiny_recipe.text.model_copy(update={"batch": 32, "steps": 100, "muon_lr": 2e-2, "adam_lr": 3e-2})


@pytest.fixture(scope="module")
def trained(longer: TextConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    train_text(0, longer, 0, folder)
    return folder


def test_training_lowers_the_loss_of_masked_words_and_of_the_words_that_stand_there(trained: Path):
    curve = read_curve(trained / "text.jsonl")
    guessing = math.log(len(make_tokenizer()))
    for name, at_most in (("masked", 4.7), ("kept", 2.5)):
        values = [line[name] for line in curve]
        assert sum(values[:10]) / 10 == pytest.approx(guessing, abs=0.3)
        assert sum(values[-10:]) / 10 < at_most  # each step reads texts that are drawn anew


def test_the_final_norm_keeps_its_gains_so_that_all_tokens_are_equally_long(longer: TextConfig, trained: Path):
    encoder = load_trained_encoder(longer, trained)
    assert torch.equal(encoder.encoder.final_layer_norm.weight, torch.ones(16))
    embeddings = WanTextEncoder(encoder, make_tokenizer()).encode(["A small red circle rests.", "scarlet ball", "qq"])
    assert embeddings.tokens.norm(dim=-1).tolist() == pytest.approx([4.0] * len(embeddings.tokens), rel=1e-4)


def test_the_trained_encoder_is_frozen(longer: TextConfig, trained: Path):
    encoder = load_trained_encoder(longer, trained)
    assert not encoder.training
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    torch.manual_seed(1)  # the stage's own start
    assert not torch.equal(encoder.shared.weight, make_text_encoder(longer).shared.weight)


@pytest.mark.parametrize("mask_share", [0.0, 0.25, 1.0])
def test_the_encoder_reads_a_mask_for_a_share_of_the_words_and_never_for_the_end(
    longer: TextConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mask_share: float
):
    read: list[Tensor] = []

    def make_watched(config: TextConfig):
        encoder = make_text_encoder(config)
        encoder.register_forward_pre_hook(lambda module, arguments: read.append(arguments[0].flatten()))
        return encoder

    monkeypatch.setattr(stage, "make_text_encoder", make_watched)
    train_text(0, longer.model_copy(update={"steps": 5, "mask_share": mask_share}), 0, tmp_path)
    ids = torch.cat(read)
    assert (ids == EOS_ID).sum() == 5 * 16  # one text each, half of the batch in this process
    words = ids[(ids != EOS_ID) & (ids != PAD_ID)]
    assert (words == UNK_ID).float().mean() == pytest.approx(mask_share, abs=0.05)
    assert all(math.isfinite(line["masked"] + line["kept"]) for line in read_curve(tmp_path / "text.jsonl"))
