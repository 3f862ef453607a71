"""What an adapter may do to a token: orthogonal, capped, gated by its prompt alone, exact where it changes nothing."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentloom.delta.model import DeltaConfig, EmbeddingDelta, apply_deltas, gate_features
from latentloom.errors import ShapeError
from latentloom.tensors import TextEmbeddings

DIM = 24
seeds = st.integers(0, 2**31)
lengths = st.lists(st.integers(0, 7), min_size=1, max_size=5)
caps = st.sampled_from([None, 1e-3, 0.22, 2.0])
cap_modes = st.sampled_from(["relative", "absolute"])
shapes = st.fixed_dictionaries(
    {
        "rank": st.integers(1, 5),
        "cap": caps,
        "cap_mode": cap_modes,
        "orthogonal": st.booleans(),
        "gated": st.booleans(),
    }
)
powers = st.integers(-12, 12)  # of ten, of a token's scale


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


def close(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


# ---- padding and batches


@given(lengths, shapes, seeds, st.integers(0, 9))
def test_padding_changes_neither_tokens_nor_gates(make_prompts, make_adapter, lengths, shape, seed, extra):
    batch, adapter = make_prompts(lengths, seed=seed), make_adapter(seed, **shape)
    size = max(lengths) + extra
    padded = batch.padded(size)
    padded[~batch.mask(size)] = 1e3  # whatever stands in the padding
    cut = TextEmbeddings.from_padded(padded, lengths=lengths)
    assert torch.equal(adapter(cut).tokens, adapter(batch).tokens)
    assert torch.equal(adapter.gate(cut), adapter.gate(batch))


@given(lengths, shapes, seeds, st.randoms(use_true_random=False))
def test_batch_order_changes_neither_tokens_nor_gates(make_prompts, make_adapter, lengths, shape, seed, random):
    batch, adapter = make_prompts(lengths, seed=seed), make_adapter(seed, **shape)
    order = random.sample(range(len(lengths)), len(lengths))
    close(adapter(batch[order]).tokens, adapter(batch)[order].tokens)
    close(adapter.gate(batch[order]), adapter.gate(batch)[order])


@given(lengths, shapes, seeds)
def test_batch_mates_change_neither_tokens_nor_gates(make_prompts, make_adapter, lengths, shape, seed):
    batch, adapter = make_prompts(lengths, seed=seed), make_adapter(seed, **shape)
    together, gates = adapter(batch), adapter.gate(batch)
    for row, alone in enumerate(batch):
        close(adapter(alone).tokens, together[row].tokens)
        close(adapter.gate(alone), gates[row : row + 1])


# ---- orthogonality


def assert_orthogonal(deltas: torch.Tensor, tokens: torch.Tensor) -> None:
    deltas, tokens = deltas.double(), tokens.double()
    along = (deltas * tokens).sum(dim=1).abs()
    assert bool((along <= 1e-5 * deltas.norm(dim=1) * tokens.norm(dim=1)).all())


@given(st.integers(1, 12), caps, cap_modes, seeds, powers)
def test_deltas_are_orthogonal_after_every_nonlinearity(make_prompts, make_adapter, num, cap, mode, seed, power):
    adapter = make_adapter(seed, cap=cap, cap_mode=mode)
    tokens = make_prompts([num], seed=seed).tokens * 10.0**power
    deltas = adapter.deltas(tokens)
    assert bool((deltas.norm(dim=1) > 0).all())
    assert_orthogonal(deltas, tokens)
    assert_orthogonal(adapter.correction(TextEmbeddings(tokens, torch.tensor([num]))), tokens)


@given(caps, cap_modes, seeds, powers, st.integers(-6, 0), st.sampled_from([-1.0, 1.0]))
def test_deltas_are_orthogonal_where_nearly_all_of_z_lies_along_the_token(
    make_prompts, make_adapter, cap, mode, seed, power, nearness, sign
):
    adapter = make_adapter(seed, cap=cap, cap_mode=mode, size=0.0)
    direction, aside = make_prompts([2], seed=seed).tokens
    adapter.bias.copy_(sign * (direction + 10.0**nearness * aside))
    tokens = (direction * 10.0**power).unsqueeze(0)
    assert_orthogonal(adapter.deltas(tokens), tokens)


@given(seeds, powers)
def test_what_is_left_of_z_exactly_along_the_token_is_less_than_rounding(make_prompts, make_adapter, seed, power):
    adapter = make_adapter(seed, cap=None, size=0.0)
    direction = make_prompts([1], seed=seed).tokens
    adapter.bias.copy_(direction[0])
    assert adapter.deltas(direction * 10.0**power).norm() <= 1e-6 * direction.norm()


def test_without_orthogonality_the_correction_is_z_itself(make_prompts, make_adapter):
    adapter, tokens = make_adapter(orthogonal=False, cap=None), make_prompts([5]).tokens
    normed = (tokens - tokens.mean(1, keepdim=True)) / (tokens.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    close(adapter.deltas(tokens), (normed - adapter.centre) @ adapter.down.T @ adapter.up.T + adapter.bias)


# ---- the cap


@given(lengths, shapes, seeds, powers, st.floats(0.01, 100))
def test_no_token_moves_more_than_the_cap_at_strength_1(make_prompts, make_adapter, lengths, shape, seed, power, size):
    adapter = make_adapter(seed, size=size, **{**shape, "cap": shape["cap"] or 0.22})
    batch = make_prompts(lengths, seed=seed)
    batch = TextEmbeddings(batch.tokens * 10.0**power, batch.lengths)
    norms = batch.tokens.double().norm(dim=1)
    allowed = adapter.config.cap * (norms if adapter.config.cap_mode == "relative" else torch.ones_like(norms))
    assert bool((adapter.correction(batch).double().norm(dim=1) <= allowed * (1 + 1e-5)).all())
    # the sum is rounded to the token's own precision
    moved = (adapter(batch).tokens.double() - batch.tokens.double()).norm(dim=1)
    assert bool((moved <= allowed * (1 + 1e-5) + 1e-6 * norms).all())


@given(seeds, cap_modes)
def test_the_cap_shortens_and_never_turns(make_prompts, make_adapter, seed, mode):
    tokens = make_prompts([6], seed=seed).tokens
    free = make_adapter(seed, cap=None).deltas(tokens)
    capped = make_adapter(seed, cap=0.01, cap_mode=mode).deltas(tokens)
    limit = 0.01 * (tokens.norm(dim=1) if mode == "relative" else torch.ones(6))
    torch.testing.assert_close(capped, free * (limit / free.norm(dim=1)).unsqueeze(1), rtol=1e-5, atol=1e-7)
    close(make_adapter(seed, cap=1e6, cap_mode=mode).deltas(tokens), free)


@pytest.mark.parametrize("mode", ["relative", "absolute"])
@pytest.mark.parametrize("cap", [None, 0.22])
def test_a_token_of_zeros_stays_finite(make_adapter, cap, mode):
    zeros = TextEmbeddings(torch.zeros(3, DIM), torch.tensor([2, 1]))
    adapter = make_adapter(cap=cap, cap_mode=mode)
    assert bool(adapter(zeros).tokens.isfinite().all())
    assert bool(adapter.gate(zeros).isfinite().all())
    if cap is not None and mode == "relative":
        assert torch.equal(adapter(zeros).tokens, zeros.tokens)


# ---- identity


@given(lengths, shapes, seeds, st.sampled_from([0.0, -0.0]), st.sampled_from([torch.float32, torch.bfloat16]))
def test_strength_0_gives_the_same_bits(make_prompts, make_adapter, lengths, shape, seed, strength, dtype):
    batch = make_prompts(lengths, seed=seed, dtype=dtype)
    if len(batch.tokens):
        batch.tokens[0, :4] = torch.tensor([-0.0, math.inf, math.nan, 1e-40])
    same = make_adapter(seed, **shape)(batch, strength)
    assert torch.equal(bits(same.tokens), bits(batch.tokens))
    assert torch.equal(same.lengths, batch.lengths)
    assert not len(batch.tokens) or same.tokens.data_ptr() != batch.tokens.data_ptr()


@given(lengths, shapes, seeds, st.floats(-3, 3), st.sampled_from([torch.float32, torch.bfloat16]))
def test_an_untrained_adapter_changes_nothing(make_prompts, lengths, shape, seed, strength, dtype):
    batch = make_prompts(lengths, seed=seed, dtype=dtype)
    assert torch.equal(EmbeddingDelta(DeltaConfig(d_model=DIM, **shape))(batch, strength).tokens, batch.tokens)


# ---- dtypes, lengths, the caller's tensors


@given(lengths, shapes, seeds, st.floats(-2, 2), st.sampled_from([torch.bfloat16, torch.float16]))
def test_half_precision_is_float32_rounded_once(make_prompts, make_adapter, lengths, shape, seed, strength, dtype):
    batch, adapter = make_prompts(lengths, seed=seed, dtype=dtype), make_adapter(seed, **shape)
    result = adapter(batch, strength)
    assert result.dtype == dtype
    assert torch.equal(result.tokens, adapter(batch.to(dtype=torch.float32), strength).tokens.to(dtype))


@pytest.mark.parametrize("lengths", [[0], [0, 0, 0], [512], [0, 512, 3]])
def test_prompts_without_tokens_and_of_512_work(make_prompts, make_adapter, lengths):
    result, adapter = make_prompts(lengths), make_adapter()
    assert adapter(result).lengths.tolist() == lengths
    assert bool(adapter(result).tokens.isfinite().all())
    gates = adapter.gate(result)
    assert gates.shape == (len(lengths),)
    assert bool(((gates > 0) & (gates < 1)).all())


@given(lengths, shapes, seeds, st.floats(-2, 2))
def test_the_callers_tensors_stay_as_they_were(make_prompts, make_adapter, lengths, shape, seed, strength):
    batch = make_prompts(lengths, seed=seed)
    before = batch.tokens.clone()
    result = make_adapter(seed, **shape)(batch, strength)
    result.tokens.fill_(7)
    assert torch.equal(batch.tokens, before)
    assert batch.lengths.tolist() == lengths


def test_a_negative_strength_goes_the_other_way(make_prompts, make_adapter):
    batch, adapter = make_prompts([4, 2]), make_adapter()
    close((adapter(batch, 0.5).tokens + adapter(batch, -0.5).tokens) / 2, batch.tokens)
    close(adapter(batch, 0.5).tokens - batch.tokens, 0.5 * adapter.correction(batch))


def test_embeddings_of_another_width_are_refused(make_prompts, make_adapter):
    with pytest.raises(ShapeError, match="have 7 channels and the adapter was trained on 24"):
        make_adapter()(make_prompts([2], dim=7))


# ---- the gate


def test_gate_features_by_hand():
    tokens = torch.tensor([[3.0, 0.0], [0.0, 4.0], [2.0, 0.0]])
    found = gate_features(TextEmbeddings(tokens, torch.tensor([2, 0, 1])))
    # pooled (1.5, 2): length 2.5, mean square 12.5
    expected = [[0.6, 0.8, math.log2(3), 1 - 6.25 / 12.5], [0, 0, 0, 0], [1, 0, 1, 0]]
    close(found, torch.tensor(expected))


def test_a_gate_scales_the_correction_of_its_prompt(make_prompts, make_adapter):
    batch, adapter = make_prompts([3, 5]), make_adapter()
    gates = adapter.gate(batch)
    assert gates[0] != gates[1]
    close(adapter.correction(batch), gates.repeat_interleave(batch.lengths).unsqueeze(1) * adapter.deltas(batch.tokens))
    adapter.gate_net.out.bias.fill_(-torch.inf)
    assert torch.equal(adapter(batch).tokens, batch.tokens)


def test_fitted_scales_give_features_of_mean_0_and_deviation_1(make_prompts, make_adapter):
    features = gate_features(make_prompts([1, 2, 3, 4, 5, 6]))
    net = make_adapter().gate_net
    net.fit_scale(features)
    scored = (features - net.mean) / net.deviation
    torch.testing.assert_close(scored.mean(dim=0), torch.zeros(DIM + 2), rtol=0, atol=1e-5)
    torch.testing.assert_close(scored.std(dim=0, correction=0), torch.ones(DIM + 2), rtol=1e-4, atol=0)


# ---- several adapters


@given(lengths, st.lists(shapes, min_size=2, max_size=3), seeds, st.data())
def test_several_adapters_move_a_token_no_more_than_the_largest_cap(
    make_prompts, make_adapter, lengths, several, seed, data
):
    adapters = [make_adapter(seed + row, **{**shape, "cap": shape["cap"] or 0.22}) for row, shape in enumerate(several)]
    strengths = data.draw(st.lists(st.floats(-2, 2), min_size=len(adapters), max_size=len(adapters)))
    batch = make_prompts(lengths, seed=seed)
    norms = batch.tokens.norm(dim=1)
    limits = [abs(s) * adapter.limits(norms) for s, adapter in zip(strengths, adapters, strict=True)]
    result = apply_deltas(batch, adapters, strengths)
    moved = (result.tokens - batch.tokens).norm(dim=1)
    assert bool((moved <= torch.stack(limits).amax(dim=0) * (1 + 1e-5) + 1e-6 * norms).all())
    order = data.draw(st.permutations(range(len(adapters))))
    again = apply_deltas(batch, [adapters[row] for row in order], [strengths[row] for row in order])
    close(again.tokens, result.tokens)


@given(lengths, seeds, st.floats(-1, 1), st.floats(-1, 1))
def test_corrections_under_the_cap_add_up_from_the_original_token(make_prompts, make_adapter, lengths, seed, one, two):
    batch = make_prompts(lengths, seed=seed)
    adapters = [make_adapter(seed, cap=None), make_adapter(seed + 1, cap=1e6, orthogonal=False)]
    expected = one * adapters[0].correction(batch) + two * adapters[1].correction(batch)
    close(apply_deltas(batch, adapters, [one, two]).tokens, batch.tokens + expected)


@given(lengths, shapes, seeds, st.floats(-2, 2))
def test_one_adapter_composed_is_the_adapter_itself(make_prompts, make_adapter, lengths, shape, seed, strength):
    batch, adapter = make_prompts(lengths, seed=seed), make_adapter(seed, **shape)
    alone = adapter(batch, strength).tokens
    assert torch.equal(apply_deltas(batch, [adapter], [strength]).tokens, alone)
    assert torch.equal(apply_deltas(batch, [adapter, make_adapter(seed + 1)], [strength, 0.0]).tokens, alone)


def test_no_adapters_change_nothing_and_each_needs_a_strength(make_prompts, make_adapter):
    batch = make_prompts([2])
    assert torch.equal(apply_deltas(batch, [], []).tokens, batch.tokens)
    with pytest.raises(ShapeError, match="2 strengths for 1 adapters"):
        apply_deltas(batch, [make_adapter()], [1.0, 2.0])
