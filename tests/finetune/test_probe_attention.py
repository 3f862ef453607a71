"""Spreads of attention logits are those of the model's own queries and keys, without and with an adapter."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from torch import Tensor
from torch.overrides import TorchFunctionMode

from latentloom.errors import ConfigError
from latentloom.finetune.adapter_files import Adapter, applied_adapter
from latentloom.finetune.probes.attention import TYPES, AttentionDrift, attention_drift
from latentloom.finetune.probes.attention_report import furthest, layer_rows, plot_ratios, verdict
from latentloom.wan.clip_size import ClipSize
from latentloom.wan.pipeline import WanPipeline
from latentloom.wan.sampling import SamplingSettings, draw_noise

SIZE = ClipSize(5, 32, 32)
PROMPTS = ["a red circle", "a large blue square moves left"]
CROSS, SELF = TYPES.index("cross_attn"), TYPES.index("self_attn")


@pytest.fixture(scope="module")
def pipeline(tiny_checkpoint: Path) -> WanPipeline:
    return WanPipeline.load(tiny_checkpoint, device="cpu")


def adapter_at(*names: str, scale: float = 0.3) -> Adapter:
    generator = torch.Generator().manual_seed(0)
    return {
        name: (torch.randn(4, 24, generator=generator), scale * torch.randn(24, 4, generator=generator))
        for name in names
    }


def probe(pipeline: WanPipeline, adapter: Adapter, **options: Any) -> AttentionDrift:
    settings = SamplingSettings(steps=4, shift=3.0, guidance=(1.0, 1.0))
    given = {"size": SIZE, "settings": settings, "num_points": 2, "num_queries": 10_000, **options}
    return attention_drift(pipeline, adapter, pipeline.encode(PROMPTS), **given)


class SeenAttention(TorchFunctionMode):
    """Keeps the standard deviation of the logits of every attention that torch computes."""

    def __init__(self) -> None:
        super().__init__()
        self.spreads: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            given = {**dict(zip(("query", "key", "value"), args, strict=False)), **(kwargs or {})}
            query, key = given["query"], given["key"]
            logits = query @ key.mT / query.shape[-1] ** 0.5
            self.spreads.append(logits.std(dim=-1, correction=0).mean(dim=(0, 2)))
        return func(*args, **(kwargs or {}))


def spreads_seen(pipeline: WanPipeline, model: WanTransformer3DModel) -> Tensor:
    """[2 blocks, 2 types, heads] of the first step's calls, over both prompts."""
    text, noise = pipeline.encode(PROMPTS), draw_noise(pipeline.grid.shape(SIZE), [0])
    found = []
    for index in range(len(PROMPTS)):
        with torch.no_grad(), SeenAttention() as seen:
            pipeline.predict(model, noise, torch.tensor(999.0), text[[index]])
        by_block = torch.stack(seen.spreads).unflatten(0, (-1, 2))  # self-attention comes first in a block
        found.append(by_block.flip(1))
    return torch.stack(found).mean(dim=0)


def test_a_zero_adapter_leaves_every_ratio_at_exactly_1(pipeline: WanPipeline) -> None:
    drift = probe(
        pipeline, adapter_at("blocks.0.cross_attn.k", "blocks.1.self_attn.q", "blocks.1.self_attn.o", scale=0.0)
    )
    assert bool((drift.ratio == 1).all())
    assert bool((drift.through_ratio == 1).all())
    assert bool((drift.head_ratio == 1).all())
    assert drift.drift == 0
    assert verdict(drift, 0.0) == "The adapter leaves every layer's logits exactly as they were."


def test_spreads_are_those_of_the_models_own_queries_and_keys(pipeline: WanPipeline) -> None:
    drift = probe(pipeline, adapter_at("blocks.0.cross_attn.k"))
    assert drift.timesteps[0] == pytest.approx(999, abs=1)
    torch.testing.assert_close(drift.before[0], spreads_seen(pipeline, pipeline.transformer), rtol=1e-4, atol=1e-6)


def test_through_the_model_is_what_the_merged_adapter_gives(pipeline: WanPipeline) -> None:
    adapter = adapter_at(
        "blocks.0.cross_attn.k", "blocks.0.self_attn.q", "blocks.0.self_attn.o", "blocks.1.cross_attn.q"
    )
    drift = probe(pipeline, adapter)
    with applied_adapter(pipeline.transformer, adapter):
        merged = spreads_seen(pipeline, pipeline.transformer)
    torch.testing.assert_close(drift.through[0], merged, rtol=1e-4, atol=1e-6)
    # block 0's self-attention has no adapter before it, so both ways of asking agree there
    torch.testing.assert_close(drift.after[0, 0, SELF], merged[0, SELF], rtol=1e-4, atol=1e-6)


def test_at_the_same_inputs_only_adapted_layers_move(pipeline: WanPipeline) -> None:
    drift = probe(pipeline, adapter_at("blocks.0.cross_attn.k"))
    moved = (drift.ratio - 1).abs().amax(dim=0) > 1e-4
    assert moved.tolist() == [[True, False], [False, False]]
    assert float((drift.through_ratio[:, 1] - 1).abs().min()) > 0
    assert bool((drift.through_ratio[:, 0, SELF] == 1).all())


def test_an_adapter_of_values_moves_no_logits_of_its_own_layer(pipeline: WanPipeline) -> None:
    drift = probe(pipeline, adapter_at("blocks.0.cross_attn.v"))
    assert bool((drift.ratio == 1).all())
    assert bool((drift.through_ratio[:, 0] == 1).all())
    assert float((drift.through_ratio[:, 1] - 1).abs().max()) > 0
    assert drift.drift == pytest.approx(float((drift.through_ratio - 1).abs().max()))
    assert furthest(drift).endswith("through the whole model")


def test_some_queries_stand_for_all(pipeline: WanPipeline) -> None:
    adapter = adapter_at("blocks.0.cross_attn.k")
    # 8 video tokens in all
    every, some = probe(pipeline, adapter, num_queries=8), probe(pipeline, adapter, num_queries=4)
    assert not torch.equal(every.before, some.before)
    torch.testing.assert_close(some.before, every.before, rtol=0.25, atol=0)


def test_unfolded_padding_counts_once_too(pipeline: WanPipeline) -> None:
    adapter = adapter_at("blocks.0.cross_attn.k", "blocks.1.self_attn.k")
    narrow = replace(pipeline, transformer=pipeline.transformer, dtype=torch.float64)
    assert pipeline.folds_padding
    assert not narrow.folds_padding
    with wider(pipeline.transformer):
        unfolded = probe(narrow, adapter, num_points=1)
    torch.testing.assert_close(unfolded.before, probe(pipeline, adapter, num_points=1).before, rtol=1e-4, atol=1e-6)


@contextmanager
def wider(model: WanTransformer3DModel) -> Iterator[None]:
    """The model in float64, where no padding is folded."""
    model.double()
    yield
    model.float()


def test_weights_and_hooks_are_as_before(pipeline: WanPipeline) -> None:
    before = {name: weight.clone() for name, weight in pipeline.transformer.state_dict().items()}
    probe(pipeline, adapter_at("blocks.0.cross_attn.k"))
    after = pipeline.transformer.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(module._forward_hooks for module in pipeline.transformer.modules())


def test_an_expert_is_asked_at_its_own_timesteps(pipeline: WanPipeline, tiny_low_expert: WanTransformer3DModel) -> None:
    facts = replace(pipeline.facts, boundary=0.875)
    both = replace(pipeline, facts=facts, transformer_2=tiny_low_expert)
    low = probe(both, adapter_at("blocks.0.cross_attn.k"), transformer=tiny_low_expert)
    high = probe(both, adapter_at("blocks.0.cross_attn.k"))
    assert max(low.timesteps) < 875 <= min(high.timesteps)


def test_more_points_than_steps_are_refused(pipeline: WanPipeline) -> None:
    with pytest.raises(ConfigError, match="5 points, and this transformer has 4 of the schedule's 4 steps"):
        probe(pipeline, adapter_at("blocks.0.cross_attn.k"), num_points=5)


def test_the_report_names_the_layer_that_moves_most() -> None:
    before = torch.ones(2, 3, 2, 4)
    after = before.clone()
    after[1, 2, CROSS] *= 1.2
    after[0, 0, SELF, 0] *= 1.4
    drift = AttentionDrift((999.0, 500.0), before, after, before)
    assert drift.drift == pytest.approx(0.2)
    assert furthest(drift) == "blocks.2.cross_attn at timestep 500 at the same inputs"
    assert verdict(drift, 0.1).endswith("it is exceeded.")
    assert verdict(drift, 0.3).endswith("all layers are within it.")
    first = dict(zip(("timestep", "block", "type"), layer_rows(drift)[1], strict=False))
    assert first == {"timestep": 999.0, "block": 0, "type": "self_attn"}
    assert layer_rows(drift)[1][5:8] == pytest.approx([1.1, 1.0, 1.4])
    assert len(plot_ratios(drift, None).axes) == 4
