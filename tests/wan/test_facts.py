"""The known models: their sizes against the classes they are loaded into, and how an unknown one is placed."""

import math
from dataclasses import replace

import pytest
import torch
from accelerate import init_empty_weights
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

from latentloom.errors import ConfigError
from latentloom.wan import facts
from latentloom.wan.facts import TransformerDims


def build_on_meta(dims: TransformerDims) -> WanTransformer3DModel:
    with init_empty_weights(include_buffers=False):
        return WanTransformer3DModel(
            patch_size=dims.patch_size,
            num_attention_heads=dims.num_heads,
            attention_head_dim=dims.dim // dims.num_heads,
            in_channels=dims.in_channels,
            out_channels=dims.out_channels,
            text_dim=dims.text_dim,
            freq_dim=dims.freq_dim,
            ffn_dim=dims.ffn_dim,
            num_layers=dims.num_layers,
        )


@pytest.mark.parametrize(("key", "billions"), [("ti2v-5b", "5.000"), ("t2v-a14b", "14.288"), ("t2v-1.3b", "1.419")])
def test_a_full_size_model_has_as_many_parameters_as_published(key: str, billions: str) -> None:
    dims = facts.get(key).transformer
    assert dims is not None
    model = build_on_meta(dims)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert all(parameter.device == torch.device("meta") for parameter in model.parameters())
    assert count == dims.num_parameters
    assert f"{count / 1e9:.3f}" == billions


def test_the_two_experts_run_in_the_order_of_their_guidance() -> None:
    a14b = facts.get("T2V-A14B")
    assert (a14b.experts, a14b.guidance, a14b.boundary) == (("high", "low"), (4.0, 3.0), 0.875)


def test_every_default_clip_fits_the_strides() -> None:
    for model in facts.KNOWN.values():
        assert model.height % (model.spatial_stride * 2) == 0
        assert model.width % (model.spatial_stride * 2) == 0
        assert model.num_frames % model.temporal_stride == 1


def test_an_unknown_key_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'5b'.*ti2v-5b, t2v-a14b, t2v-1.3b, micro"):
        facts.get("5b")


def test_other_sizes_get_the_nearest_models_defaults_under_their_own_sizes() -> None:
    dims = facts.get("t2v-a14b").transformer
    assert dims is not None
    image_to_video = replace(dims, in_channels=36)
    lent, is_known = facts.identify(image_to_video, num_experts=2)
    assert not is_known
    assert (lent.key, lent.title) == ("unknown", "unknown, nearest Wan2.2-T2V-A14B")
    assert lent.transformer == image_to_video
    assert (lent.boundary, lent.shift) == (0.875, 12.0)


def test_a_single_unknown_transformer_never_asks_for_two_experts() -> None:
    dims = facts.get("t2v-a14b").transformer
    assert dims is not None
    lent, _ = facts.identify(replace(dims, num_layers=39), num_experts=1)
    assert (lent.experts, lent.boundary, lent.guidance) == ((), None, 4.0)


def test_two_unknown_experts_are_never_taken_for_a_single_model() -> None:
    lent, is_known = facts.identify(TransformerDims(24, 32, 2, 2, in_channels=4, out_channels=4), num_experts=2)
    assert not is_known
    assert lent.experts == ("high", "low")
    assert math.isclose(lent.boundary or 0, 0.875)
