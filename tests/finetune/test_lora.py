"""Adapters inside of a transformer: which layers get one, what they start from, and what they drop."""

import pytest
import torch
from accelerate import init_empty_weights
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from hypothesis import given
from hypothesis import strategies as st
from tiny_checkpoint import tiny_transformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from latentloom.errors import ConfigError
from latentloom.finetune.lora import (
    TARGETS,
    SeededDropout,
    diffusers_name,
    init_lora,
    inject_lora,
    lora_targets,
    official_name,
)

CROSS = ("cross_attn.k", "cross_attn.v")


def run(transformer: WanTransformer3DModel) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 3, 4, 4, generator=generator)
    text = torch.randn(2, 5, 16, generator=generator)
    step = torch.tensor([400.0, 900.0])
    return transformer(hidden_states=latents, timestep=step, encoder_hidden_states=text, return_dict=False)[0]


def test_the_documents_range_is_inclusive_and_only_cross_attention() -> None:
    names = lora_targets(30, (20, 29), CROSS, allow_self_attn=False)
    assert names[:2] == ["blocks.20.attn2.to_k", "blocks.20.attn2.to_v"]
    assert len(names) == 20
    assert names[-1] == "blocks.29.attn2.to_v"
    assert len(lora_targets(30, None, CROSS, allow_self_attn=False)) == 60


def test_every_target_is_a_linear_layer_of_the_model_and_has_a_name_in_both_namings() -> None:
    transformer = tiny_transformer()
    for name in lora_targets(2, None, TARGETS, allow_self_attn=True):
        assert isinstance(transformer.get_submodule(name), nn.Linear)
        assert diffusers_name(official_name(name)) == name


@pytest.mark.parametrize(
    ("blocks", "targets", "words"),
    [
        (None, ("cross_atn.k",), ("'cross_atn.k'", "did you mean cross_attn.k")),
        ((20, 29), CROSS, ("20 to 29", "2 blocks are 0 to 1")),
        ((1, 0), CROSS, ("1 to 0",)),
        ((-1, 1), CROSS, ("-1 to 1",)),
        (None, ("cross_attn.k", "self_attn.q"), ("'self_attn.q'", "artefacts", "allow_self_attn = true")),
        (None, (), ("targets is empty",)),
    ],
)
def test_a_wrong_choice_is_named(blocks: tuple[int, int] | None, targets: tuple[str, ...], words: tuple[str]) -> None:
    with pytest.raises(ConfigError) as error:
        lora_targets(2, blocks, targets, allow_self_attn=False)
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)


def test_a_new_adapter_changes_nothing_and_only_it_is_trained() -> None:
    transformer = tiny_transformer()
    before, state = run(transformer), torch.get_rng_state()
    parameters = inject_lora(transformer, lora_targets(2, None, CROSS, False), 3, 0.0, torch.float32)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(run(transformer), before)
    trained = [parameter for parameter in transformer.parameters() if parameter.requires_grad]
    assert {id(parameter) for parameter in trained} == {id(parameter) for parameter in parameters.values()}
    assert parameters["blocks.1.attn2.to_v.lora_A.weight"].shape == (3, 24)
    assert parameters["blocks.1.attn2.to_v.lora_B.weight"].shape == (24, 3)


def test_trained_weights_have_a_dtype_of_their_own_and_learn() -> None:
    transformer = tiny_transformer().bfloat16()
    parameters = inject_lora(transformer, lora_targets(2, None, CROSS, False), 3, 0.0, torch.float32)
    layer = transformer.get_submodule("blocks.0.attn2.to_k")
    layer(torch.ones(1, 2, 24, dtype=torch.bfloat16)).sum().backward()
    assert layer(torch.ones(1, 2, 24, dtype=torch.bfloat16)).dtype == torch.bfloat16
    gradient = parameters["blocks.0.attn2.to_k.lora_B.weight"].grad
    assert gradient is not None
    assert gradient.dtype == torch.float32
    assert gradient.abs().min() > 0


@given(st.sets(st.sampled_from(lora_targets(2, None, TARGETS, True)), min_size=1), st.integers(0, 5))
def test_first_weights_follow_from_seed_and_name_alone(chosen: set[str], seed: int) -> None:
    whole = inject_lora(tiny_transformer(), lora_targets(2, None, TARGETS, True), 3, 0.0, torch.float32, seed)
    part = inject_lora(tiny_transformer(), sorted(chosen, reverse=True), 3, 0.0, torch.float32, seed)
    assert all(torch.equal(weight, whole[name]) for name, weight in part.items())


def test_first_weights_differ_by_name_and_seed_and_are_as_wide_as_a_linear_layers() -> None:
    names = [f"blocks.{n}.attn2.to_k.lora_A.weight" for n in range(2)]
    first = {name: torch.empty(64, 400) for name in names}
    other = {name: torch.empty(64, 400) for name in names}
    init_lora(first, seed=0)
    init_lora(other, seed=1)
    assert not torch.equal(first[names[0]], first[names[1]])
    assert not torch.equal(first[names[0]], other[names[0]])
    assert 0.0495 < first[names[0]].abs().max() <= 0.05  # 1 / sqrt(400)
    assert first[names[0]].std().item() == pytest.approx(0.05 / 3**0.5, rel=0.02)


def test_blocks_without_memory_wait_for_theirs() -> None:
    with init_empty_weights(include_buffers=False):
        transformer = WanTransformer3DModel(num_layers=30, num_attention_heads=24, ffn_dim=14336)
    layer = transformer.get_submodule("blocks.20.attn2.to_k")
    layer.register_parameter("weight", nn.Parameter(torch.zeros(3072, 3072)))
    parameters = inject_lora(transformer, lora_targets(30, (20, 29), CROSS, False), 16, 0.1, torch.bfloat16)
    real = [name for name, weight in parameters.items() if not weight.is_meta]
    assert real == ["blocks.20.attn2.to_k.lora_A.weight", "blocks.20.attn2.to_k.lora_B.weight"]
    assert all(weight.dtype == torch.bfloat16 for weight in parameters.values())
    assert len(parameters) == 40
    assert parameters[real[0]].abs().max() > 0
    # one layer of the whole model gets what it would have had anywhere else
    later = {name: torch.empty(16, 3072, dtype=torch.bfloat16) for name in real[:1]}
    init_lora(later, seed=0)
    assert torch.equal(later[real[0]], parameters[real[0]])


def test_dropout_drops_its_share_and_keeps_the_mean() -> None:
    dropout = SeededDropout(0.25, "blocks.0.attn2.to_k")
    out = dropout(torch.ones(1000, 100))
    assert (out == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert out.unique().tolist() == [0, pytest.approx(1 / 0.75)]


def test_a_mask_follows_from_seed_and_name_alone() -> None:
    x = torch.ones(4, 50)

    def mask(seed: int, name: str) -> Tensor:
        dropout = SeededDropout(0.5, name)
        torch.rand(seed + 3)  # whatever else was drawn before
        dropout.seed = seed
        return dropout(x)

    assert torch.equal(mask(7, "a"), mask(7, "a"))
    assert not torch.equal(mask(7, "a"), mask(8, "a"))
    assert not torch.equal(mask(7, "a"), mask(7, "b"))


def test_dropout_does_nothing_outside_of_training_and_at_zero() -> None:
    x = torch.ones(4, 50)
    assert SeededDropout(0.5, "a").eval()(x) is x
    assert SeededDropout(0.0, "a")(x) is x


def test_recomputed_activations_see_the_same_mask() -> None:
    kept, recomputed = (gradient_of_b(recompute) for recompute in (False, True))
    assert torch.equal(kept, recomputed)
    assert kept.abs().max() > 0


def gradient_of_b(recompute: bool) -> Tensor:
    torch.manual_seed(0)
    transformer = tiny_transformer().train()
    parameters = inject_lora(transformer, lora_targets(2, None, CROSS, False), 3, 0.5, torch.float32)
    layer = transformer.get_submodule("blocks.0.attn2.to_k")
    dropout = next(part for part in layer.modules() if isinstance(part, SeededDropout))

    def forward(x: Tensor) -> Tensor:
        dropout.seed = 5
        return layer(x).square().sum()

    x = torch.ones(2, 6, 24)
    loss = checkpoint(forward, x, use_reentrant=False, preserve_rng_state=False) if recompute else forward(x)
    dropout.seed = 6  # another batch passes before this one's activations are computed again
    loss.backward()
    gradient = parameters["blocks.0.attn2.to_k.lora_B.weight"].grad
    assert gradient is not None
    return gradient
