"""The size of an adapter's changes is that of the formed changes, whatever the keys' style; the base must fit."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from latentloom.errors import CheckpointError
from latentloom.finetune.adapter_files import Adapter, read_adapter
from latentloom.finetune.lora import diffusers_name
from latentloom.finetune.probes.lora_delta import (
    TargetDelta,
    above,
    change_norms,
    frobenius_norm,
    lora_deltas,
    summarise,
)
from latentloom.finetune.probes.lora_delta_report import plot_ratios, summary_rows, verdict
from latentloom.wan.checkpoints import load_transformer
from latentloom.wan.layouts import Component, recognise

LAYERS = {"cross_attn.k": (24, 24), "cross_attn.v": (24, 24), "self_attn.q": (24, 24), "ffn.0": (24, 32)}
SOURCE = Path("adapter.safetensors")


@pytest.fixture
def base(tiny_checkpoint: Path) -> Component:
    return recognise(tiny_checkpoint).component("transformer")


def random_adapter(rank: int = 3, seed: int = 0) -> Adapter:
    """A change in both blocks of the tiny checkpoint, and one outside the blocks."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {f"blocks.{block}.{layer}": size for block in (0, 1) for layer, size in LAYERS.items()}
    sizes["text_embedding.0"] = (16, 24)
    return {
        name: (
            torch.randn(rank, width, generator=generator),
            torch.randn(height, rank, generator=generator) * 0.01,
        )
        for name, (width, height) in sizes.items()
    }


@given(sizes=st.tuples(*[st.integers(1, 9)] * 3), scale=st.sampled_from([1e-25, 1.0, 1e25]), seed=st.integers(0, 2**31))
def test_norms_from_small_matrices_are_those_of_the_formed_change(
    sizes: tuple[int, int, int], scale: float, seed: int
) -> None:
    rank, width, height = sizes
    generator = torch.Generator().manual_seed(seed)
    down, up = torch.randn(rank, width, generator=generator), torch.randn(height, rank, generator=generator) * scale
    formed = up.double() @ down.double()
    frobenius, spectral = change_norms(down, up)
    assert frobenius == pytest.approx(float(torch.linalg.matrix_norm(formed)), rel=1e-9)
    assert spectral == pytest.approx(float(torch.linalg.matrix_norm(formed, ord=2)), rel=1e-9)


def test_ratios_are_those_of_the_formed_changes(base: Component, tiny_checkpoint: Path) -> None:
    adapter, weights = random_adapter(), dict(load_transformer(tiny_checkpoint).named_parameters())
    targets = lora_deltas(adapter, base, SOURCE)
    assert {target.target for target in targets} == set(adapter)
    for target in targets:
        down, up = adapter[target.target]
        weight = weights[f"{diffusers_name(target.target)}.weight"].double()
        expected = float((up.double() @ down.double()).norm() / weight.norm())
        assert target.ratio == pytest.approx(expected, rel=1e-6)
        assert 1 <= target.stable_rank <= target.rank == 3


def test_targets_are_told_by_type_layer_and_block(base: Component) -> None:
    targets = lora_deltas(random_adapter(), base, SOURCE)
    told = [(target.block, target.layer, target.type) for target in targets]
    assert told[0] == (None, "text_embedding.0", "other")
    assert told[1:5] == [
        (0, "cross_attn.k", "cross_attn"),
        (0, "cross_attn.v", "cross_attn"),
        (0, "ffn.0", "ffn"),
        (0, "self_attn.q", "self_attn"),
    ]
    by_type = summarise(targets, "type")
    assert {name: of_type.count for name, of_type in by_type.items()} == {
        "other": 1,
        "cross_attn": 4,
        "ffn": 2,
        "self_attn": 2,
    }
    cross = [target for target in targets if target.type == "cross_attn"]
    assert by_type["cross_attn"].mean == pytest.approx(sum(target.ratio for target in cross) / 4)
    assert by_type["cross_attn"].max == max(target.ratio for target in cross)
    assert [row[0] for row in summary_rows(targets)] == ["cross_attn", "self_attn", "ffn", "other"]


@pytest.mark.parametrize("style", ["comfy", "diffusers", "peft", "kohya"])
def test_every_style_of_keys_gives_the_same_ratios(style: str, tmp_path: Path, base: Component) -> None:
    adapter = random_adapter()
    tensors: dict[str, Tensor] = {}
    for name, (down, up) in adapter.items():
        ours = diffusers_name(name)
        if style == "kohya":  # alpha of half the rank halves the change, so B is stored doubled
            tensors[f"diffusion_model.{name}.lora_down.weight"] = down
            tensors[f"diffusion_model.{name}.lora_up.weight"] = up * 2
            tensors[f"diffusion_model.{name}.alpha"] = torch.tensor(1.5)
            continue
        prefix = {"comfy": "diffusion_model.", "diffusers": "transformer.", "peft": "base_model.model."}[style]
        stem = f"{prefix}{name if style == 'comfy' else ours}"
        tensors |= {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}
    save_file(tensors, tmp_path / "a.safetensors")
    expected = {target.target: target.ratio for target in lora_deltas(adapter, base, SOURCE)}
    found = lora_deltas(read_adapter(tmp_path / "a.safetensors"), base, SOURCE)
    assert {target.target: target.ratio for target in found} == pytest.approx(expected, rel=1e-6)


def test_an_adapter_that_changes_nothing_has_ratio_0(base: Component) -> None:
    adapter = {"blocks.0.cross_attn.k": (torch.randn(2, 24), torch.zeros(24, 2))}
    (target,) = lora_deltas(adapter, base, SOURCE)
    assert (target.ratio, target.stable_rank) == (0.0, 0.0)
    assert above([target], 0.0) == []


def test_another_shape_is_refused_with_both_shapes(base: Component) -> None:
    adapter = {"blocks.1.cross_attn.k": (torch.zeros(2, 24), torch.zeros(48, 2))}
    with pytest.raises(CheckpointError, match=r"blocks\.1\.cross_attn\.k.*\[48, 24\].*\[24, 24\]"):
        lora_deltas(adapter, base, SOURCE)


def test_a_target_that_the_base_lacks_is_refused(base: Component) -> None:
    with pytest.raises(CheckpointError, match=r"changes blocks\.7\.cross_attn\.k, which"):
        lora_deltas({"blocks.7.cross_attn.k": (torch.zeros(2, 24), torch.zeros(24, 2))}, base, SOURCE)


def test_a_large_norm_is_summed_in_float64() -> None:
    weight = torch.full((5, 2**20), 3.0, dtype=torch.bfloat16)
    assert frobenius_norm(weight) == pytest.approx(3.0 * (5 * 2**20) ** 0.5, rel=1e-12)


def delta(target: str, ratio: float) -> TargetDelta:
    _, block, layer = target.split(".", 2)
    return TargetDelta(target, int(block), layer, layer.split(".")[0], 4, ratio, 1.0, ratio)


def test_what_is_above_the_cap_comes_worst_first() -> None:
    targets = [delta("blocks.0.cross_attn.k", 0.05), delta("blocks.1.cross_attn.k", 0.3), delta("blocks.2.ffn.0", 0.2)]
    assert [target.target for target in above(targets, 0.1)] == ["blocks.1.cross_attn.k", "blocks.2.ffn.0"]
    assert "2 of them are above the cap of 10.00%" in verdict(targets, 0.1)
    assert "All are within the cap" in verdict(targets, 0.3)
    assert "self-attention" not in verdict(targets, None)
    assert "self-attention" in verdict([delta("blocks.0.self_attn.q", 0.1)], None)


def test_the_map_has_a_row_per_layer_and_a_column_per_block_between_the_first_and_the_last() -> None:
    targets = [delta("blocks.3.cross_attn.k", 0.05), delta("blocks.6.cross_attn.k", 0.3), delta("blocks.4.ffn.0", 0.2)]
    axes = plot_ratios(targets, cap=0.1).axes[0]
    values = axes.images[0].get_array()
    assert values is not None
    assert values.shape == (2, 4)
    assert values[0, 3] == pytest.approx(30)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cross_attn.k", "ffn.0"]
    assert len(axes.patches) == 2  # framed
