"""What hosts answer about a model: its text embedder in any state of the weights, and what blocks hold in one step."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from comfy_nodes.hosts import Rig, assert_same_state, state_of
from comfy_nodes.one_step import SHIFT, SIZE, encoder, model_to_run, noise, offer_samplers
from steering.host_plans import assert_same
from torch import Tensor, nn

from latentloom.comfy.hosts import host_named
from latentloom.comfy.hosts.host import NoisedClip
from latentloom.errors import ConfigError
from latentloom.steering import Operation, Plan, PromptPayload, capture_activations, project
from latentloom.tensors import VideoLatents

RED, GREEN = "A small red circle moves to the left.", "A large green cross moves up on a white background."
FP8 = torch.float8_e4m3fn


def weights_of(model: nn.Module) -> dict[str, Any]:
    return {name: (id(value), value.device, value.dtype) for name, value in model.state_dict(keep_vars=True).items()}


@pytest.fixture
def wrapper(micro_wan) -> Rig:
    return Rig("wrapper", micro_wan)


def as_loaded(rig: Rig, layers: dict[str, Tensor]) -> Any:
    """A model of the wrapper before its first run: weights on meta, and what its loader read beside them."""
    patcher = rig.model()
    checkpoint = {**patcher.model.diffusion_model.state_dict(), **layers}
    patcher.model.diffusion_model.to("meta")
    patcher.model.pipeline = {"sd": checkpoint}
    patcher.patches = {}
    return patcher


def test_projected_rows_are_the_models_own_and_nothing_of_it_changes(rig):
    model, text = rig.model(), rig.pipeline.encode([RED, GREEN])
    before = weights_of(model.model.diffusion_model)
    rows = host_named(rig.host).project(model, text)
    torch.testing.assert_close(rows.tokens, project(rig.pipeline.transformer, text).tokens, atol=1e-5, rtol=1e-5)
    assert rows.lengths.tolist() == text.lengths.tolist()
    assert weights_of(model.model.diffusion_model) == before


def test_the_wrappers_embedder_is_read_before_its_weights_are_loaded(wrapper):
    model, text = as_loaded(wrapper, {}), wrapper.pipeline.encode([RED])
    before = weights_of(model.model.diffusion_model)
    rows = host_named("wrapper").project(model, text)
    torch.testing.assert_close(rows.tokens, project(wrapper.pipeline.transformer, text).tokens, atol=1e-5, rtol=1e-5)
    assert weights_of(model.model.diffusion_model) == before


@pytest.mark.parametrize("is_loaded", [False, True])
@pytest.mark.parametrize("is_scaled", [False, True])
def test_weights_in_eight_bits_are_read_with_and_without_a_scale(wrapper, is_loaded, is_scaled):
    model = wrapper.model()
    embedder = model.model.diffusion_model.text_embedding
    weight, text = embedder[0].weight.detach(), wrapper.pipeline.encode([RED])
    scale = (weight.abs().max() / 400).reshape(1) if is_scaled else torch.ones(1)
    stored = (weight / scale).to(FP8)
    if is_loaded:
        embedder[0].weight = nn.Parameter(stored, requires_grad=False)
        embedder[0].scale_weight = scale if is_scaled else None
    else:
        layers = {"text_embedding.0.weight": stored}
        model = as_loaded(wrapper, layers | ({"text_embedding.0.scale_weight": scale} if is_scaled else {}))
    rows = host_named("wrapper").project(model, text).tokens
    expected = wrapper.model().model.diffusion_model.text_embedding
    expected[0].weight = nn.Parameter(stored.float() * scale)
    torch.testing.assert_close(rows, expected(text.tokens).detach(), atol=1e-5, rtol=1e-5)


def test_weights_that_cannot_be_read_are_refused_in_one_line(wrapper):
    text = wrapper.pipeline.encode([RED])
    quantised = as_loaded(wrapper, {"text_embedding.0.weight": torch.zeros(128, 40, dtype=torch.uint8)})
    gone = as_loaded(wrapper, {})
    gone.model.pipeline = {"sd": None}
    for model in (quantised, gone):
        with pytest.raises(ConfigError, match=r"text_embedding.0.weight cannot be read before a run"):
            host_named("wrapper").project(model, text)
    scheduled = as_loaded(wrapper, {})
    scheduled.patches = {"diffusion_model.text_embedding.0.weight": [([1.0, 0.5], None)]}
    with pytest.raises(ConfigError, match="strength per step"):
        host_named("wrapper").project(scheduled, text)


@pytest.mark.parametrize("percent", [0.0, 0.5])
def test_what_blocks_hold_is_what_diffusers_blocks_hold(rig, monkeypatch, percent):
    offer_samplers(monkeypatch, rig)
    model, text = model_to_run(rig), rig.text(RED)
    before = state_of([model.model_options, text])
    clean = torch.randn(1, 16, 3, 12, 12, generator=torch.Generator().manual_seed(9))
    sized: dict[str, Any] = {"image_embeds": {"target_shape": (16, 3, 12, 12)}} if rig.host == "wrapper" else {}
    clip = NoisedClip(seed=5, percent=percent, samples={"samples": clean}, shift=SHIFT, **sized)
    held = host_named(rig.host).capture(model, text, clip, 3)
    timestep = {0.0: 1000.0, 0.5: 750.0}[percent]
    assert held.timestep == pytest.approx(timestep)
    assert list(held.values) == [0, 1, 2, 3]
    noised = VideoLatents(timestep / 1000 * noise(5) + (1 - timestep / 1000) * clean)
    expected = capture_activations(rig.pipeline, noised, timestep, [RED], range(4))
    for block, rows in held.values.items():
        assert_same(rows, expected.values[block])
    assert_same_state([model.model_options, text], before)


def test_a_plan_before_the_recording_acts_in_it(rig, monkeypatch):
    """Its window too, though the recording is a run of a single step."""
    offer_samplers(monkeypatch, rig)
    host, clip = host_named(rig.host), NoisedClip(percent=0.5, num_frames=9, height=96, width=96, shift=SHIFT)
    injected = PromptPayload(rig.pipeline.encode([GREEN]))
    plain = host.capture(model_to_run(rig), rig.text(RED), clip, 3)
    whole = host.capture(model_to_run(rig), rig.text(GREEN), clip, 3)
    for window, expected in (((0.0, 0.5), plain), ((0.5, 1.0), whole)):
        plan = Plan((Operation("context", "replace", (1.0,) * 6, injected, window=window),))
        held = host.capture(host.install(model_to_run(rig), plan), rig.text(RED), clip, 3)
        assert_same(held.values[3], expected.values[3])
    second_run = Plan((Operation("hidden_states", "replace", (0.0, 0.0, 0.0, 1.0, 0.0, 0.0), injected),))
    held = host.capture(host.install(model_to_run(rig), second_run), rig.text(RED), clip, 4)
    assert_same(held.values[2], plain.values[2])
    assert_same(held.values[3], whole.values[3])


def test_a_model_that_is_too_shallow_or_never_runs_is_refused(rig, monkeypatch):
    offer_samplers(monkeypatch, rig)
    host, model = host_named(rig.host), model_to_run(rig)
    with pytest.raises(ConfigError, match="no block after 6 of 6 blocks; capture after 1 to 5"):
        host.capture(model, rig.text(RED), NoisedClip(), 6)
    monkeypatch.setattr(type(model), "predict", lambda *arguments, **settings: None)
    with pytest.raises(ConfigError, match="did not reach the model's blocks"):
        host.capture(model, rig.text(RED), NoisedClip(**SIZE), 3)


def test_prompts_are_encoded_by_the_hosts_own_encoder(rig, monkeypatch):
    offer_samplers(monkeypatch, rig)
    encoded = host_named(rig.host).encode(encoder(rig), GREEN)
    assert torch.equal(encoded.tokens, rig.pipeline.encode([GREEN]).tokens)


def test_without_the_wrapper_its_nodes_are_asked_for(wrapper, monkeypatch):
    offer_samplers(monkeypatch, wrapper)
    sys.modules["nodes"].NODE_CLASS_MAPPINGS.clear()
    with pytest.raises(ConfigError, match="no node WanVideoSampler; install ComfyUI-WanVideoWrapper"):
        host_named("wrapper").capture(wrapper.model(), wrapper.text(RED), NoisedClip(**SIZE), 3)


def test_a_model_of_another_kind_is_refused(rig):
    with pytest.raises(ConfigError, match="Linear is no Wan model"):
        host_named(rig.host).sizes(SimpleNamespace(model=SimpleNamespace(diffusion_model=nn.Linear(1, 1))))
