"""A frozen layer in eight bits computes, forward and backward, as a layer with the rounded weight does."""

import copy

import pytest
import torch
from diffusers.hooks.layerwise_casting import apply_layerwise_casting
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, inject_adapter_in_model
from tiny_checkpoint import tiny_transformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from latentloom.finetune.frozen_linear import FP8, FrozenFp8Linear, store_frozen_in_fp8


def frozen_layer(seed: int = 0, size: float = 0.02, bias: bool = True) -> nn.Linear:
    torch.manual_seed(seed)
    layer = nn.Linear(24, 16, bias=bias).requires_grad_(False)
    layer.weight.normal_(std=size)
    return layer


def gradient_of(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None
    return tensor.grad


def twin_of(layer: FrozenFp8Linear) -> nn.Linear:
    """An ordinary layer with the weight that the eight bits stand for."""
    twin = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    state = {"weight": layer.dequantised().float()} | ({} if layer.bias is None else {"bias": layer.bias.float()})
    twin.load_state_dict(state)
    return twin.requires_grad_(False)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(3, 24), (2, 5, 24)])
def test_result_and_gradient_are_those_of_the_rounded_weight(bias, shape):
    layer = FrozenFp8Linear(frozen_layer(bias=bias), torch.float32)
    x = torch.randn(shape, requires_grad=True)
    again = x.detach().clone().requires_grad_()
    y, expected = layer(x), twin_of(layer)(again)
    assert torch.allclose(y, expected, atol=1e-6)
    gradient = torch.randn(y.shape)
    y.backward(gradient)
    expected.backward(gradient)
    assert torch.allclose(gradient_of(x), gradient_of(again), atol=1e-6)


@given(seed=st.integers(0, 100), exponent=st.integers(-12, 12))
def test_four_significant_bits_are_kept_of_weights_of_any_size(seed, exponent):
    original = frozen_layer(seed, size=2.0**exponent)
    layer = FrozenFp8Linear(original, torch.float32)
    large = original.weight.abs() > original.weight.abs().amax(dim=1, keepdim=True) * 2**-12
    error = (layer.dequantised() - original.weight).abs() / original.weight.abs()
    assert layer.weight.dtype == FP8
    assert error[large].max() <= 2**-4


@pytest.mark.parametrize(("size", "share"), [(0.02, 0.9), (0.004, 0.3)])
def test_of_small_weights_more_is_kept_than_a_plain_cast_keeps(size, share):
    original = frozen_layer(size=size)
    ours = (FrozenFp8Linear(original, torch.float32).dequantised() - original.weight).norm()
    assert ours < share * (original.weight.to(FP8).float() - original.weight).norm()


def test_weights_of_zero_stay_zero():
    original = frozen_layer()
    original.weight[3] = 0
    assert torch.equal(FrozenFp8Linear(original, torch.float32).dequantised()[3], torch.zeros(24))


def test_moving_to_another_dtype_changes_nothing():
    layer = FrozenFp8Linear(frozen_layer(), torch.float32)
    before = layer.dequantised()
    for dtype in (torch.bfloat16, torch.float32):
        layer.to(dtype)
        assert layer.weight.dtype == FP8
        assert torch.equal(layer.dequantised(), before)


def saved_for_backward(module: nn.Module, x: Tensor) -> set[torch.dtype]:
    """The dtypes of the matrices that a forward pass leaves behind for the backward pass."""
    kept: set[torch.dtype] = set()

    def pack(tensor: Tensor) -> Tensor:
        kept.update([tensor.dtype] if sorted(tensor.shape) == [16, 24] else [])
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(x)
    return kept


def test_only_eight_bits_wait_for_the_backward_pass_where_diffusers_hooks_leave_the_cast_weight():
    x = torch.randn(5, 24, requires_grad=True)
    assert saved_for_backward(FrozenFp8Linear(frozen_layer(), torch.float32), x) == {FP8}
    hooked = nn.Sequential(frozen_layer())
    apply_layerwise_casting(hooked, FP8, torch.float32, skip_modules_pattern=("none",))
    assert saved_for_backward(hooked, x) == {torch.float32}


@pytest.mark.parametrize("inject_first", [True, False])
def test_an_adapter_trains_on_it_in_full_precision_whichever_comes_first(inject_first):
    model = nn.ModuleDict({"k": frozen_layer()})
    twin = nn.ModuleDict({"k": twin_of(FrozenFp8Linear(frozen_layer(), torch.float32))})
    config = LoraConfig(r=4, lora_alpha=4, target_modules=["k"])
    for net, in_fp8 in ((model, True), (twin, False)):
        if in_fp8 and not inject_first:
            store_frozen_in_fp8(net, torch.float32)
        torch.manual_seed(1)
        inject_adapter_in_model(config, net)
        torch.manual_seed(2)
        nn.init.normal_(net.get_parameter("k.lora_B.default.weight"))
        if in_fp8 and inject_first:
            store_frozen_in_fp8(net, torch.float32)
    assert isinstance(model.get_submodule("k.base_layer"), FrozenFp8Linear)
    x = torch.randn(5, 24)
    results = []
    for net in (model, twin):
        net.get_submodule("k")(x).square().sum().backward()
        results.append([net.get_parameter(f"k.lora_{part}.default.weight") for part in "AB"])
    for ours, expected in zip(*results, strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, expected)
        assert torch.allclose(gradient_of(ours), gradient_of(expected), rtol=1e-5, atol=1e-5)


def test_of_a_transformer_the_blocks_linear_layers_are_stored_and_nothing_else():
    transformer = tiny_transformer().requires_grad_(False)
    before = copy.deepcopy(transformer)
    stored = store_frozen_in_fp8(transformer, torch.float32)
    layers = ["attn1", "attn2"]
    expected = {f"blocks.{n}.{a}.{p}" for n in range(2) for a in layers for p in ("to_q", "to_k", "to_v", "to_out.0")}
    expected |= {f"blocks.{n}.ffn.net.{part}" for n in range(2) for part in ("0.proj", "2")}
    assert set(stored) == expected
    for name, parameter in transformer.named_parameters():
        in_eight_bits = name.endswith(".weight") and name.removesuffix(".weight") in expected
        assert (parameter.dtype == FP8) == in_eight_bits, name
        if not in_eight_bits:
            assert torch.equal(parameter, before.get_parameter(name))


def test_layers_that_are_trained_or_named_stay():
    model = nn.ModuleDict({"a": frozen_layer(), "b": frozen_layer().requires_grad_(True), "c": frozen_layer()})
    assert set(store_frozen_in_fp8(model, torch.float32, skip=["^c$"])) == {"a"}


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputed_in_the_backward_pass_it_gives_the_same_gradient(reentrant):
    layer = FrozenFp8Linear(frozen_layer(), torch.float32)
    x, again = (torch.linspace(-1, 1, 72).view(3, 24).requires_grad_() for _ in range(2))
    layer(x).square().sum().backward()
    checkpoint(layer, again, use_reentrant=reentrant).square().sum().backward()
    assert torch.equal(gradient_of(x), gradient_of(again))


def test_products_are_computed_in_the_dtype_that_was_asked_for():
    layer = FrozenFp8Linear(frozen_layer(), torch.bfloat16)
    x = torch.randn(3, 24, requires_grad=True)
    y = layer(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert gradient_of(x).dtype == torch.float32
    assert torch.allclose(y.float(), twin_of(layer)(x), atol=0.02)
