"""How far prompts are apart on the tokens that they have, and how padding dilutes it."""

import json
import math
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentloom.errors import ShapeError
from latentloom.steering.embeddings.difference import relative_difference
from latentloom.steering.measure import Comparison, Figures, compare, measure_bottleneck
from latentloom.steering.projection import pad_vector, project
from latentloom.tensors import TextEmbeddings
from latentloom.wan.pipeline import WanPipeline

DIM = 8


def prompts(*rows: list[list[float]]) -> TextEmbeddings:
    return TextEmbeddings.from_list([torch.tensor(row) for row in rows])


def random(*lengths: int, seed: int = 0) -> TextEmbeddings:
    generator = torch.Generator().manual_seed(seed)
    return TextEmbeddings(torch.randn(sum(lengths), DIM, generator=generator), torch.tensor(lengths))


def figures_of(figures: Figures, row: int = 0) -> dict[str, float]:
    return {item.name: getattr(figures, item.name)[row].item() for item in fields(figures)}


def all_values(comparison: Comparison) -> list[float]:
    numbers = [*figures_of(comparison.figures).values()]
    if comparison.minus_pad is not None:
        numbers += figures_of(comparison.minus_pad).values()
    shares = (comparison.share_changed, comparison.diluted_share_changed, comparison.diluted_relative_l2)
    return numbers + [share.item() for share in shares]


SAME = {
    "relative_l2": 0.0,
    "cosine_mean": 1.0,
    "cosine_min": 1.0,
    "cosine_p10": 1.0,
    "norm_ratio": 1.0,
    "best_match": 1.0,
}


def test_known_tokens_have_known_figures():
    first = prompts([[3.0, 4.0], [1.0, 0.0]])
    second = prompts([[4.0, -3.0], [2.0, 0.0]])  # orthogonal, and twice as long
    figures = figures_of(compare(first, second).figures)
    assert figures["relative_l2"] == pytest.approx(math.sqrt(51) / math.sqrt(math.sqrt(26) * math.sqrt(29)))
    assert figures["cosine_mean"] == pytest.approx(0.5)
    assert figures["cosine_min"] == pytest.approx(0.0, abs=1e-6)
    assert figures["cosine_p10"] == pytest.approx(0.1)
    assert figures["norm_ratio"] == pytest.approx(3.5 / 3.0)
    # (3,4): 0.6 of (2,0); (1,0): 1 of (2,0); (4,-3): 0.8 of (1,0); (2,0): 1 of (1,0)
    assert figures["best_match"] == pytest.approx((0.8 + 0.9) / 2)


@given(length=st.integers(0, 6), seed=st.integers(0, 1000), with_pad=st.booleans())
def test_a_prompt_is_not_apart_from_itself(length, seed, with_pad):
    text, pad = random(length, seed=seed), torch.ones(DIM) if with_pad else None
    comparison = compare(text, text, pad)
    assert figures_of(comparison.figures) == pytest.approx(SAME, abs=1e-5)
    assert figures_of(comparison.minus_pad or comparison.figures) == pytest.approx(SAME, abs=1e-5)
    assert all_values(comparison)[-3:] == [0.0, 0.0, 0.0]


@given(first=st.integers(1, 12), second=st.integers(1, 12), seed=st.integers(0, 1000), with_pad=st.booleans())
def test_the_padded_share_is_diluted_by_exactly_the_rows_of_the_union_over_512(first, second, seed, with_pad):
    pad = torch.full((DIM,), 0.3) if with_pad else None
    a, b = random(first, seed=seed), random(second, seed=seed + 1)
    comparison = compare(a, b, pad)
    rows = max(first, second)
    assert comparison.diluted_share_changed.item() == pytest.approx(comparison.share_changed.item() * rows / 512)
    fill = torch.zeros(DIM) if pad is None else pad
    padded = [torch.cat([text.tokens, fill.expand(512 - len(text.tokens), -1)]) for text in (a, b)]
    by_hand = ((padded[0] - padded[1]).abs() > 0.01).float().mean().item()
    assert comparison.diluted_share_changed.item() == pytest.approx(by_hand)
    apart = (padded[0] - padded[1]).norm() / (padded[0].norm() * padded[1].norm()).sqrt()
    assert comparison.diluted_relative_l2.item() == pytest.approx(apart.item(), rel=1e-4)


def test_zeros_as_padding_dilute_the_share_and_a_pad_vector_dilutes_the_distance_too():
    a, b = random(10, seed=1), random(10, seed=2)
    raw = compare(a, b)
    assert raw.diluted_relative_l2.item() == pytest.approx(raw.figures.relative_l2.item())
    projected = compare(a, b, torch.ones(DIM))
    assert projected.diluted_relative_l2.item() < 0.2 * projected.figures.relative_l2.item()
    assert projected.share_changed.item() == raw.share_changed.item()


def test_a_token_that_only_one_prompt_has_counts_in_full():
    short, long = prompts([[1.0, 0.0]]), prompts([[1.0, 0.0], [0.0, 2.0]])
    figures = compare(short, long).figures
    assert figures.relative_l2.item() == pytest.approx(2 / math.sqrt(math.sqrt(5)))
    assert figures.cosine_mean.item() == pytest.approx(0.5)
    assert figures.relative_l2.item() == pytest.approx(relative_difference(short, long).item())
    # where the shorter one has ended, the model reads the pad vector
    pad = torch.tensor([0.0, 1.0])
    padded = compare(short, long, pad)
    assert padded.figures.relative_l2.item() == pytest.approx(1 / math.sqrt(math.sqrt(2 * 5)))
    assert padded.figures.cosine_mean.item() == pytest.approx(1.0)
    assert padded.minus_pad is not None
    assert padded.minus_pad.cosine_min.item() == pytest.approx(0.0)


def test_what_all_rows_share_makes_prompts_look_alike_until_the_pad_vector_is_taken_off():
    a, b, common = random(6, seed=1), random(6, seed=2), torch.full((DIM,), 50.0)
    shifted = [TextEmbeddings(side.tokens + common, side.lengths) for side in (a, b)]
    measured, plain = compare(shifted[0], shifted[1], common), figures_of(compare(a, b).figures)
    assert measured.figures.cosine_mean.item() > 0.99
    assert measured.figures.relative_l2.item() < 0.05
    assert measured.minus_pad is not None
    assert figures_of(measured.minus_pad) == pytest.approx(plain, abs=1e-4)


@given(seed=st.integers(0, 1000), scale=st.sampled_from([1e-3, 1.0, 1e3]))
def test_distances_and_angles_are_free_of_scale_and_of_which_prompt_comes_first(seed, scale):
    a, b = random(5, seed=seed), random(3, seed=seed + 1)
    plain = figures_of(compare(a, b).figures)
    larger = [TextEmbeddings(side.tokens * scale, side.lengths) for side in (b, a)]
    turned = figures_of(compare(larger[0], larger[1]).figures)
    assert turned.pop("norm_ratio") == pytest.approx(1 / plain.pop("norm_ratio"), rel=1e-4)
    assert turned == pytest.approx(plain, rel=1e-4, abs=1e-6)


def test_the_best_match_does_not_see_the_order_or_repetitions():
    text = random(5)
    shuffled = TextEmbeddings(text.tokens[[3, 1, 4, 0, 2, 2]], torch.tensor([6]))
    figures = compare(text, shuffled).figures
    assert figures.best_match.item() == pytest.approx(1.0, abs=1e-5)
    assert figures.cosine_mean.item() < 0.7


@pytest.mark.parametrize("pad", [None, torch.ones(DIM)], ids=["zeros", "pad"])
def test_empty_prompts_and_zero_tokens_have_figures(pad):
    empty, one, zero = random(0), random(1), TextEmbeddings(torch.zeros(2, DIM), torch.tensor([2]))
    assert figures_of(compare(empty, empty, pad).figures) == SAME
    assert figures_of(compare(zero, zero, pad).figures) == pytest.approx(SAME)
    assert compare(empty, zero).figures.relative_l2.item() == 0.0
    against_nothing = figures_of(compare(empty, one, pad).figures)
    assert against_nothing["best_match"] == 0.0
    assert against_nothing["norm_ratio"] == math.inf
    for pair in ((empty, one), (zero, one), (one, zero), (one, empty)):
        assert not any(math.isnan(value) for value in all_values(compare(*pair, pad)))


def test_each_pair_of_a_batch_is_measured_as_if_alone():
    first, second, pad = random(3, 0, 7, seed=1), random(5, 1, 2, seed=2), torch.ones(DIM)
    together = compare(first, second, pad)
    for row in range(3):
        alone = compare(first[row], second[row], pad)
        assert figures_of(together.figures, row) == pytest.approx(figures_of(alone.figures), rel=1e-5, abs=1e-6)
        assert together.share_changed[row].item() == alone.share_changed.item()
    assert together.lengths.tolist() == [[3, 5], [0, 1], [7, 2]]
    assert len(compare(first[[]], second[[]]).figures.relative_l2) == 0


def test_half_precision_is_measured_in_float32():
    a, b = (
        TextEmbeddings(random(3, seed=seed).tokens * 2e4, torch.tensor([3])).to(dtype=torch.float16) for seed in (1, 2)
    )
    comparison = compare(a, b)
    assert comparison.figures.relative_l2.dtype == torch.float32
    assert all(math.isfinite(value) for value in all_values(comparison))


def test_prompts_that_do_not_pair_are_refused():
    with pytest.raises(ShapeError, match="1 prompts of width 8 against 2"):
        compare(random(1), random(1, 1))
    with pytest.raises(ShapeError, match="a prompt of 513 tokens; the model reads 512"):
        compare(random(513), random(1))


@pytest.fixture(scope="module")
def pipeline(tiny_checkpoint: Path) -> WanPipeline:
    return WanPipeline.load(tiny_checkpoint, device="cpu")


def test_the_bottleneck_is_measured_on_both_sides_of_the_text_embedder(pipeline):
    first, second = ["a red circle", ""], ["a large blue square moves up", "a red circle"]
    measured = measure_bottleneck(pipeline, first, second)
    raw = [pipeline.encode(side) for side in (first, second)]
    assert torch.equal(measured.raw.figures.relative_l2, relative_difference(*raw))
    rows = [project(pipeline.transformer, side) for side in raw]
    by_hand = compare(rows[0], rows[1], pad_vector(pipeline.transformer))
    assert torch.equal(measured.projected.figures.relative_l2, by_hand.figures.relative_l2)
    assert torch.allclose(measured.ratio * measured.raw.figures.relative_l2, by_hand.figures.relative_l2)
    assert by_hand.minus_pad is not None
    assert torch.allclose(measured.ratio_minus_pad * relative_difference(*raw), by_hand.minus_pad.relative_l2)
    assert measured.raw.minus_pad is None


def test_a_text_embedder_that_destroys_the_difference_is_found_out(pipeline, tiny_checkpoint):
    blind = WanPipeline.load(tiny_checkpoint, device="cpu")
    with torch.no_grad():
        blind.transformer.condition_embedder.text_embedder.linear_1.weight.mul_(1e-4)
    pair = (["a red circle"], ["a blue square"])
    before, after = (measure_bottleneck(model, *pair) for model in (pipeline, blind))
    assert before.ratio.item() > 0.2
    assert after.ratio.item() < 0.01 * before.ratio.item()
    assert after.raw.figures.relative_l2.item() == before.raw.figures.relative_l2.item()


def test_json_marks_what_is_diluted(pipeline):
    told = json.loads(json.dumps(measure_bottleneck(pipeline, ["a red circle"], ["blue"]).to_json()))
    assert told["projected"]["diluted"]["rows"] == 512
    assert told["projected"]["diluted"]["share_changed"][0] < 0.05 < told["projected"]["share_changed"][0]
    assert told["raw"]["minus_pad"] is None
    assert told["ratio"][0] == pytest.approx(told["projected"]["relative_l2"][0] / told["raw"]["relative_l2"][0])
