import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentloom.drifting.features import feature_groups
from latentloom.errors import ConfigError


def deviation(cells: torch.Tensor) -> torch.Tensor:
    """Of cells [B, S, n], with the small number under the root that keeps gradients finite."""
    return (cells.var(dim=2, correction=0) + 1e-6).sqrt()


def all_groups(*maps: torch.Tensor) -> dict[str, torch.Tensor]:
    return feature_groups(maps, global_stats=True, local=True, patch_stats=True)


def test_each_feature_is_the_statistic_it_is_named_after():
    values = torch.randn(3, 5, 8, 8, generator=torch.Generator().manual_seed(0))
    groups = all_groups(values)
    assert torch.allclose(groups["stage1/mean"][:, 0], values.mean(dim=(2, 3)), atol=1e-6)
    assert torch.allclose(groups["stage1/std"][:, 0], deviation(values.flatten(2)), atol=1e-6)
    assert torch.equal(groups["stage1/local"][:, 8 * 2 + 5], values[:, :, 2, 5])
    for side in (2, 4):
        window = values[:, :, side : 2 * side, :side]  # second row of patches, first column
        place = 8 // side
        assert groups[f"stage1/patch{side}/mean"].shape == (3, (8 // side) ** 2, 5)
        assert torch.allclose(groups[f"stage1/patch{side}/mean"][:, place], window.mean(dim=(2, 3)), atol=1e-6)
        spread = deviation(window.flatten(2))
        assert torch.allclose(groups[f"stage1/patch{side}/std"][:, place], spread, atol=1e-6)


def test_features_that_repeat_others_or_never_change_are_left_out():
    groups = all_groups(torch.randn(2, 3, 4, 4), torch.randn(2, 3, 2, 2), torch.randn(2, 3, 1, 1))
    assert list(groups) == [
        *("stage1/mean", "stage1/std", "stage1/local", "stage1/patch2/mean", "stage1/patch2/std"),
        *("stage2/mean", "stage2/std", "stage2/local", "stage3/mean"),
    ]
    only_patches = feature_groups([torch.randn(2, 3, 2, 2)], global_stats=False, local=False, patch_stats=True)
    assert list(only_patches) == ["stage1/patch2/mean", "stage1/patch2/std"]  # nothing else says it, so it stays


def test_patches_at_the_edge_are_of_the_cells_that_are_there():
    values = torch.randn(2, 3, 5, 3)
    groups = all_groups(values)
    assert groups["stage1/patch2/mean"].shape == (2, 6, 3)
    assert torch.allclose(groups["stage1/patch2/mean"][:, 5], values[:, :, 4, 2], atol=1e-6)
    column = values[:, :, 2:4, 2]
    assert torch.allclose(groups["stage1/patch2/std"][:, 3], deviation(column), atol=1e-6)


@given(st.integers(1, 9), st.integers(1, 9))
def test_each_patch_grid_covers_maps_of_any_size_once(height, width):
    values = torch.randn(2, 3, height, width, dtype=torch.float64)
    for name, group in all_groups(values).items():
        if "patch" in name and name.endswith("/mean"):
            side = int(name.split("patch")[1][0])
            ones = feature_groups([torch.ones_like(values)], global_stats=True, local=True, patch_stats=True)[name]
            assert torch.equal(ones, torch.ones_like(ones))
            assert group.shape[1] == -(-height // side) * -(-width // side)


def test_gradients_are_finite_where_maps_are_constant():
    values = torch.full((2, 3, 8, 8), 0.7, requires_grad=True)
    torch.cat([group.flatten() for name, group in all_groups(values).items() if name.endswith("std")]).sum().backward()
    assert values.grad is not None
    assert values.grad.abs().max() < 1e-4


def test_a_common_offset_does_not_change_deviations():
    values = torch.randn(2, 3, 8, 8)
    near, far = all_groups(values), all_groups(values + 100)
    for name in near:
        if name.endswith("std"):
            assert torch.allclose(near[name], far[name], atol=1e-4)


def test_half_precision_maps_give_float32_features():
    groups = all_groups(torch.randn(2, 3, 8, 8, dtype=torch.bfloat16))
    assert {group.dtype for group in groups.values()} == {torch.float32}


def test_choosing_no_features_is_refused():
    with pytest.raises(ConfigError, match="no features"):
        feature_groups([torch.randn(2, 3, 4, 4)], global_stats=False, local=False, patch_stats=False)
