"""A measured pair in words, tables and pictures: what is said follows from the figures."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from latentloom.steering.functional import FunctionalEffect, Spread
from latentloom.steering.measure import Bottleneck, Comparison, compare
from latentloom.steering.measure_report import plot_map, verdict, write_measure_report
from latentloom.tensors import TextEmbeddings

NUM_BLOCKS, TIMESTEPS = 3, (999.0, 500.0)


def embeddings(seed: int, length: int = 8) -> TextEmbeddings:
    generator = torch.Generator().manual_seed(seed)
    return TextEmbeddings(torch.randn(length, 16, generator=generator), torch.tensor([length]))


def bottleneck_that_keeps(share: float) -> Bottleneck:
    """A text embedder after which this share of the difference is left."""
    raw, projected = compare(embeddings(1), embeddings(2)), compare(embeddings(1), embeddings(2), torch.zeros(16))
    return Bottleneck(raw, scaled(projected, share))


def scaled(comparison: Comparison, share: float) -> Comparison:
    figures = comparison.figures
    return replace(comparison, figures=replace(figures, relative_l2=figures.relative_l2 * share))


def spread(mean: torch.Tensor) -> Spread:
    return Spread(mean, mean - 0.1, mean + 0.1)


def effect(velocity: tuple[float, float] = (1.0, 0.5), floor: tuple[float, float] = (0.2, 0.45)) -> FunctionalEffect:
    attention = torch.tensor([[0.5, 1.0, 2.0], [0.3, 1.0, 4.0]])
    mass = torch.tensor([[0.9, 0.8, 0.7], [0.9, 0.8, 0.7]])
    changes, floors = (spread(torch.tensor(values)) for values in (velocity, floor))
    return FunctionalEffect(
        timesteps=TIMESTEPS,
        sigmas=(1.0, 0.5),
        seeds=(0, 1),
        attention=spread(attention),
        padding_mass=spread(mass),
        velocity=changes,
        guided=changes,
        velocity_floor=floors,
        guided_floor=floors,
    )


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (1.1, "does not destroy the difference: 110 % of it"),
        (0.7, "shrinks the difference to 70 % and does not destroy it"),
        (0.05, "takes away most of the difference: 5 % of it is left"),
    ],
)
def test_whether_the_embedder_destroys_the_difference_is_said_from_the_figures(share, words):
    assert words in verdict(bottleneck_that_keeps(share), effect())[0]


def test_dilution_padding_and_floor_are_told_with_their_numbers():
    _, dilution, attention, velocity = verdict(bottleneck_that_keeps(1.0), effect())
    assert "the 8 rows that hold a token" in dilution
    assert "times 8/512" in dilution
    assert "80.0 % of the attention lands on padding (70.0 % to 90.0 %" in attention
    assert "0.40 (block 0) to 3.00 times its length (block 2)" in attention
    # 1.0 ± 0.1 is above 0.2 ± 0.1, and 0.5 ± 0.1 is not surely above 0.45 ± 0.1
    assert "changes by 0.50 to 1.00 of its length, surely more than by another seed at 1 of 2 points" in velocity


def test_equal_prompts_are_said_to_be_equal():
    same = Bottleneck(compare(embeddings(1), embeddings(1)), compare(embeddings(1), embeddings(1), torch.zeros(16)))
    assert verdict(same, effect()) == [
        "The two prompts are the same to the model: their embeddings are equal, and so is all that follows."
    ]


def test_the_folder_holds_page_figures_and_every_number(tmp_path: Path):
    measured = (bottleneck_that_keeps(1.0), effect())
    page = write_measure_report(tmp_path / "new", ("a red circle", "<b>blue</b>"), measured, {"model": "micro"})
    html = page.read_text(encoding="utf-8")
    assert "&lt;b&gt;blue&lt;/b&gt;" in html
    assert "diluted" in html
    assert html.count('<img class="plot"') == 4
    assert sorted(path.name for path in (tmp_path / "new" / "plots").iterdir()) == [
        "attention.png",
        "figures.png",
        "padding.png",
        "velocity.png",
    ]
    told = json.loads((tmp_path / "new" / "measure.json").read_text())
    assert (told["model"], told["prompts"]) == ("micro", ["a red circle", "<b>blue</b>"])
    assert told["verdict"] == verdict(*measured)
    assert told["effect"]["attention"]["mean"] == measured[1].attention.mean.tolist()


@pytest.mark.parametrize(("num_blocks", "numbers"), [(6, 12), (40, 0)])
def test_a_map_shows_numbers_where_there_is_room(num_blocks, numbers):
    figure = plot_map(effect(), torch.rand(2, num_blocks), "change")
    assert len(figure.axes[0].texts) == numbers
