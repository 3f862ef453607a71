"""Three shapes of the same prompts are adjusted alike, whoever holds them; what is not a token stays as it was."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentloom.delta.apply import apply_to_prompt_embeds, apply_to_text_embeddings, apply_to_wan_video_embeds
from latentloom.errors import ShapeError

DIM = 24
seeds = st.integers(0, 2**31)
lengths = st.lists(st.integers(0, 6), min_size=1, max_size=4)
strengths = st.floats(-2, 2)
dtypes = st.sampled_from([torch.float32, torch.bfloat16])


@given(lengths, seeds, strengths, dtypes)
def test_the_hosts_shapes_agree_with_one_another(make_prompts, make_adapter, lengths, seed, strength, dtype):
    batch, adapter = make_prompts(lengths, seed=seed, dtype=dtype), make_adapter(seed)
    expected = adapter(batch, strength)
    as_list = apply_to_text_embeddings(batch.to_list(), lengths, adapter, strength)
    as_wan_video = apply_to_wan_video_embeds({"prompt_embeds": batch.to_list()}, adapter, strength)["prompt_embeds"]
    for prompts in (as_list, as_wan_video):
        assert [len(prompt) for prompt in prompts] == lengths
        assert torch.equal(torch.cat(prompts), expected.tokens)
    for mask in (batch.mask(), batch.mask().long(), None):
        padded = apply_to_prompt_embeds(batch.padded(), adapter, strength, mask)
        assert padded.dtype == dtype
        assert torch.equal(padded, expected.padded())  # 512 positions, zeros after each prompt


@given(lengths, seeds, strengths, st.integers(0, 3))
def test_rows_past_a_prompts_length_come_back_as_they_are(make_prompts, make_adapter, lengths, seed, strength, extra):
    adapter = make_adapter(seed)
    rows = make_prompts([length + extra for length in lengths], seed=seed).to_list()
    before = [prompt.clone() for prompt in rows]
    found = apply_to_text_embeddings(rows, torch.tensor(lengths), adapter, strength)
    cut = [prompt[:length] for prompt, length in zip(rows, lengths, strict=True)]
    expected = apply_to_text_embeddings(cut, lengths, adapter, strength)
    for length, prompt, result, adjusted in zip(lengths, before, found, expected, strict=True):
        assert torch.equal(result[:length], adjusted)
        assert torch.equal(result[length:], prompt[length:])
        result.fill_(7)
    assert all(torch.equal(one, other) for one, other in zip(rows, before, strict=True))


def test_strength_0_keeps_the_bits_of_every_shape(make_prompts, make_adapter):
    batch, adapter = make_prompts([3, 0, 5], dtype=torch.bfloat16), make_adapter()
    batch.tokens[0, 0] = -0.0
    found = apply_to_text_embeddings(batch.to_list(), [3, 0, 5], adapter, 0.0)
    assert torch.equal(torch.cat(found).view(torch.int16), batch.tokens.view(torch.int16))
    padded = apply_to_prompt_embeds(batch.padded(), adapter, 0.0)
    assert torch.equal(padded.view(torch.int16), batch.padded().view(torch.int16))


def test_a_row_of_zeros_within_a_prompt_does_not_end_it(make_prompts, make_adapter):
    batch, adapter = make_prompts([4, 2]), make_adapter(cap_mode="absolute")
    batch.tokens[1] = 0
    assert torch.equal(apply_to_prompt_embeds(batch.padded(), adapter), adapter(batch).padded())


def test_only_the_positive_prompts_of_wan_video_are_adjusted(make_prompts, make_adapter):
    batch, negative = make_prompts([3, 5]), make_prompts([2], seed=1).to_list()
    text_embeds = {
        "prompt_embeds": batch.to_list(),
        "negative_prompt_embeds": negative,
        "echoshot": False,
        "nag_prompt_embeds": negative,
        "nag_params": {"nag_scale": 11.0},
    }
    before = dict(text_embeds)
    found = apply_to_wan_video_embeds(text_embeds, make_adapter())
    assert found.keys() == before.keys()
    for name in found.keys() - {"prompt_embeds"}:
        assert found[name] is before[name]
    assert all(text_embeds[name] is before[name] for name in before)
    assert not torch.equal(found["prompt_embeds"][0], batch.to_list()[0])
    assert torch.equal(torch.cat(text_embeds["prompt_embeds"]), batch.tokens)


def test_prompts_that_are_views_of_a_padded_batch_leave_it_alone(make_prompts, make_adapter):
    padded = make_prompts([3, 5]).padded(8)
    before = padded.clone()
    views = [padded[0, :3], padded[1, :5]]  # as Wan's text encoder cuts them
    apply_to_wan_video_embeds({"prompt_embeds": views}, make_adapter())
    apply_to_text_embeddings(views, [3, 5], make_adapter())
    assert torch.equal(padded, before)


def test_no_prompts_are_none_adjusted(make_adapter):
    assert apply_to_text_embeddings([], [], make_adapter()) == []


@pytest.mark.parametrize(
    ("lengths", "message"), [([3], "1 lengths for 2 prompts"), ([3, 6], "a length of 6"), ([3, -1], "a length of -1")]
)
def test_wrong_lengths_are_refused(make_prompts, make_adapter, lengths, message):
    with pytest.raises(ShapeError, match=f"^{message}"):
        apply_to_text_embeddings(make_prompts([3, 5]).to_list(), lengths, make_adapter())


def test_a_mask_with_a_hole_and_another_width_are_refused(make_prompts, make_adapter):
    mask = torch.tensor([[True, False, True]])
    with pytest.raises(ShapeError, match="zeros before a one"):
        apply_to_prompt_embeds(torch.ones(1, 3, DIM), make_adapter(), mask=mask)
    with pytest.raises(ShapeError, match="have 7 channels and the adapter was trained on 24"):
        apply_to_prompt_embeds(torch.ones(1, 3, 7), make_adapter())
    with pytest.raises(ShapeError, match="have 7 channels"):
        apply_to_text_embeddings([torch.ones(3, 7)], [3], make_adapter())


@pytest.mark.parametrize("prompts", [None, "a boat", [torch.ones(1, 3, DIM)], ["a boat"]])
def test_wan_video_embeds_without_a_list_of_prompts_are_refused(make_adapter, prompts):
    with pytest.raises(ShapeError, match=r"without a list of tensors \[L, D\] under 'prompt_embeds'"):
        apply_to_wan_video_embeds({"prompt_embeds": prompts}, make_adapter())
