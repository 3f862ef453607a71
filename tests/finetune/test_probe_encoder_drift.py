"""Drift is none for the base itself, and tells a change of length from one of direction and of neighbours."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentloom.errors import ConfigError, ShapeError
from latentloom.finetune.encoder_files import load_text_encoder_file, save_text_encoder
from latentloom.finetune.probes.encoder_drift import encoder_drift, neighbour_overlap
from latentloom.finetune.probes.encoder_drift_report import plot_prompts, verdict
from latentloom.finetune.probes.prompts import NEUTRAL_PROMPTS
from latentloom.tensors import TextEmbeddings
from latentloom.wan import checkpoints
from latentloom.wan.text_encoder import WanTextEncoder

WORDS = "red green blue circle square left right small large"


def random_text(num_prompts: int = 12, dim: int = 16, seed: int = 0) -> TextEmbeddings:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 7, (num_prompts,), generator=generator)
    return TextEmbeddings(torch.randn(int(lengths.sum()), dim, generator=generator), lengths)


def test_the_base_against_itself_has_cosine_1_and_overlap_1() -> None:
    text = random_text()
    drift = encoder_drift(text, text)
    for name in ("token_cosine", "lowest_token_cosine", "pooled_cosine", "overlap"):
        assert getattr(drift, name).tolist() == [1.0] * 12, name
    assert drift.relative_change.tolist() == drift.norm_change.tolist() == [0.0] * 12
    assert drift.num_neighbours == 5
    assert verdict(drift) == "The encoder gives every prompt exactly what its base gives."


@given(factor=st.floats(0.1, 10), seed=st.integers(0, 2**31))
def test_a_change_of_length_is_no_change_of_direction(factor: float, seed: int) -> None:
    text = random_text(seed=seed)
    drift = encoder_drift(text, TextEmbeddings(text.tokens * factor, text.lengths))
    assert drift.token_cosine.tolist() == pytest.approx([1.0] * 12, abs=1e-6)
    assert drift.norm_change.tolist() == pytest.approx([factor - 1] * 12, rel=1e-4, abs=1e-5)
    assert drift.relative_change.tolist() == pytest.approx([abs(factor - 1)] * 12, rel=1e-4, abs=1e-5)
    assert drift.overlap.tolist() == [1.0] * 12


@given(seed=st.integers(0, 2**31))
def test_turning_the_whole_space_keeps_lengths_and_neighbours(seed: int) -> None:
    text = random_text(seed=seed)
    turn = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(seed))).Q
    drift = encoder_drift(text, TextEmbeddings(text.tokens @ turn, text.lengths))
    assert float(drift.overlap.mean()) > 0.97  # rounding may swap two neighbours that are equally near
    assert drift.norm_change.tolist() == pytest.approx([0.0] * 12, abs=1e-5)
    assert float(drift.pooled_cosine.mean()) < 0.9


def test_neighbours_that_are_lost_are_counted() -> None:
    corners = torch.tensor([[1.0, 0.0], [0.9, 0.1], [-1.0, 0.0], [-0.9, -0.1]])
    assert neighbour_overlap(corners, corners, 1).tolist() == [1.0, 1.0, 1.0, 1.0]
    assert neighbour_overlap(corners, corners[[0, 2, 1, 3]], 1).tolist() == [0.0, 0.0, 0.0, 0.0]


def test_neighbours_are_told_apart_behind_a_direction_that_all_share() -> None:
    corners = torch.tensor([[1.0, 0.0], [0.9, 0.1], [-1.0, 0.0], [-0.9, -0.1]])
    shifted = corners + torch.tensor([1000.0, 1000.0])
    assert neighbour_overlap(corners, shifted, 1).tolist() == [1.0, 1.0, 1.0, 1.0]


def test_few_prompts_have_few_neighbours_or_none() -> None:
    assert encoder_drift(random_text(4), random_text(4)).num_neighbours == 1
    alone = encoder_drift(random_text(2), random_text(2))
    assert (alone.num_neighbours, alone.overlap.tolist()) == (0, [1.0, 1.0])
    assert "nearest" not in verdict(encoder_drift(random_text(2), TextEmbeddings(*_doubled(random_text(2)))))


def _doubled(text: TextEmbeddings) -> tuple[torch.Tensor, torch.Tensor]:
    return text.tokens * 2, text.lengths


def test_other_prompts_are_refused() -> None:
    with pytest.raises(ShapeError, match="give the same prompts in both encoders"):
        encoder_drift(random_text(3), random_text(4))
    with pytest.raises(ConfigError, match="0 neighbours"):
        encoder_drift(random_text(3), random_text(3), 0)


def test_a_tuned_part_drifts_and_the_rest_of_the_base_stays(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model = checkpoints.load_text_encoder(tiny_checkpoint)
    encoder = WanTextEncoder(model, checkpoints.load_tokenizer(tiny_checkpoint))
    base = encoder.encode(WORDS.split())
    name = "encoder.block.1.layer.1.DenseReluDense.wo.weight"
    save_text_encoder(tmp_path / "same.safetensors", {name: model.state_dict()[name]}, partial=True)
    save_text_encoder(tmp_path / "tuned.safetensors", {name: model.state_dict()[name] * 1.5}, partial=True)
    load_text_encoder_file(model, tmp_path / "same.safetensors")
    assert encoder_drift(base, encoder.encode(WORDS.split())).token_cosine.tolist() == [1.0] * 9
    load_text_encoder_file(model, tmp_path / "tuned.safetensors")
    drift = encoder_drift(base, encoder.encode(WORDS.split()))
    assert 0 < float(drift.token_cosine.mean()) < 1
    assert float(drift.relative_change.min()) > 0


def test_the_picture_has_the_prompts_as_they_are_written() -> None:
    prompts = ["costs $5 and $6", "a_b", *NEUTRAL_PROMPTS[:10]]
    text = random_text()
    figure = plot_prompts(encoder_drift(text, TextEmbeddings(*_doubled(text))), prompts, [1, 0])
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a_b", "costs $5 and $6"]
