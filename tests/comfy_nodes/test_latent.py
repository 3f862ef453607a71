"""Recording what blocks hold and injecting it: what the library does with diffusers' model, and no noise unasked."""

import gc
import logging

import pytest
import torch
from comfy_nodes.hosts import Rig, assert_same_state, state_of
from comfy_nodes.one_step import SHIFT, SIZE, model_to_run, noise, offer_samplers
from steering.host_plans import assert_same, steered

from latentloom.comfy.hosts.host import CONFIG
from latentloom.comfy.nodes import latent
from latentloom.errors import ConfigError
from latentloom.steering import (
    ActivationsPayload,
    BlockActivations,
    Operation,
    Plan,
    capture_activations,
)
from latentloom.tensors import VideoLatents

ENCODER, INJECTOR = "WanVideoLatentEncoder", "WanVideoLatentInjector"
RED, GREEN = "A small red circle moves to the left.", "A large green cross moves up on a white background."


@pytest.fixture(autouse=True)
def calls(rig, monkeypatch):
    return offer_samplers(monkeypatch, rig)


def recorded(rig: Rig, prompt: str, model=None, **settings):
    model = model_to_run(rig) if model is None else model
    shift = {"shift": SHIFT} if rig.host == "wrapper" else {}
    return rig.run(ENCODER, model=model, text_embeds=rig.text(prompt), **{**SIZE, **shift, **settings})


def injected(rig: Rig, **settings):
    settings = {"main_latent": recorded(rig, RED)[0], "injection_latent": recorded(rig, GREEN)[0], **settings}
    return rig.run(INJECTOR, model=rig.model(), **{"block_activations": "011100", **settings})[0]


def expected(rig: Rig, method: str, strength: float):
    """What diffusers' transformer answers with activations of its own, from the same noise."""
    main, other = (
        capture_activations(rig.pipeline, VideoLatents(noise(0)), 1000.0, [prompt], range(4)) for prompt in (RED, GREEN)
    )
    if method == "add":
        other = BlockActivations({block: other.values[block] - main.values[block] for block in range(4)}, other.site, 0)
    strengths = tuple(strength if block in (1, 2, 3) else 0.0 for block in range(6))
    plan = Plan((Operation("hidden_states", method, strengths, ActivationsPayload(other)),))  # pyright: ignore[reportArgumentType]
    return steered(rig.pipeline, plan, prompt=RED)


@pytest.mark.parametrize(("method", "by"), [("difference", "add"), ("blend", "lerp")])
def test_what_is_injected_is_what_the_library_injects(rig, method, by):
    model = injected(rig, injection_strength=0.75, method=method)
    answer = expected(rig, by, 0.75)
    assert_same(rig.predict(model, rig.text(RED)), answer)
    assert (answer - rig.predict(rig.model(), rig.text(RED))).abs().max() > 0.1


def test_prompts_that_are_the_same_change_nothing(rig, caplog):
    main = recorded(rig, RED)[0]
    model = injected(rig, main_latent=main, injection_latent=main)
    assert_same(rig.predict(model, rig.text(RED)), rig.predict(rig.model(), rig.text(RED)))
    assert "the recordings differ by 0.0% at most" in caplog.text


def test_the_recording_says_what_it_is(rig):
    latents, info = recorded(rig, RED, capture_after_blocks=2, clip_seed=7)
    assert list(latents.values) == [0, 1, 2]
    assert all(rows.shape == (1, 108, 128) for rows in latents.values.values())
    assert "blocks 0 to 2: 108 tokens of 128 channels" in info
    assert "timestep 1000, seed 7" in info


def test_noise_comes_from_the_seed_alone(rig):
    first, again, other = (recorded(rig, RED, clip_seed=seed, use_cache=False)[0].values[3] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_linked_clip_is_noised_and_gives_the_size(rig, calls):
    clean = torch.randn(1, 16, 3, 12, 12, generator=torch.Generator().manual_seed(9))
    linked = {"samples": {"samples": clean}}
    before = state_of(linked)
    latents = recorded(rig, RED, percent=0.5, **linked, **({"width": 8192} if rig.host == "native" else {}))[0]
    noised = VideoLatents(0.75 * noise(0) + 0.25 * clean)
    own = capture_activations(rig.pipeline, noised, 750.0, [RED], [3])
    assert_same(latents.values[3], own.values[3])
    assert_same_state(linked, before)


def test_the_wrappers_image_embeds_go_to_its_sampler(rig, calls):
    if rig.host == "native":
        assert {part.name for part in rig.node(ENCODER).inputs}.isdisjoint({"shift", "image_embeds"})
        return
    embeds = {"target_shape": (16, 3, 12, 12), "vace_context": None}
    recorded(rig, RED, image_embeds=embeds, width=8192)
    assert calls[0]["image_embeds"] is embeds


def test_equal_runs_are_made_once_for_a_model_and_not_for_another(rig, calls):
    model = model_to_run(rig)
    first = recorded(rig, RED, model)[0]
    assert recorded(rig, RED, model)[0] is first
    assert len(calls) == 1
    for changed in ({"clip_seed": 1}, {"use_cache": False}, {"capture_after_blocks": 2}, {"percent": 0.3}):
        recorded(rig, RED, model, **changed)
    recorded(rig, GREEN, model)
    recorded(rig, RED)
    assert len(calls) == 7


def test_another_start_image_is_another_recording_and_another_clip(rig, calls):
    model, name = model_to_run(rig), "concat_latent_image" if rig.host == "native" else "nag_prompt_embeds"

    def with_image(prompt: str, value: float):
        text = rig.text(prompt)
        (text[0][1] if rig.host == "native" else text)[name] = torch.full((1, 2), value)
        shift = {"shift": SHIFT} if rig.host == "wrapper" else {}
        return rig.run(ENCODER, model=model, text_embeds=text, **SIZE, **shift)[0]

    first, second, other = with_image(RED, 0.0), with_image(RED, 1.0), with_image(GREEN, 1.0)
    assert len(calls) == 3
    assert second is not first
    assert injected(rig, main_latent=second, injection_latent=other) is not None
    with pytest.raises(ConfigError, match="different clips"):
        injected(rig, main_latent=first, injection_latent=other)


def test_few_recordings_are_kept_and_none_without_its_model(rig, calls):
    model = model_to_run(rig)
    for seed in range(5):
        recorded(rig, RED, model, clip_seed=seed)
    assert len(latent._recorded[model]) == latent.KEPT_PER_MODEL
    kept = len(latent._recorded)
    del model
    calls.clear()
    gc.collect()
    assert len(latent._recorded) < kept


def test_inputs_stay_as_they_are(rig):
    model, text = model_to_run(rig), rig.text(RED)
    before = state_of([model.model_options, text])
    recorded(rig, RED, model)
    pair = [recorded(rig, prompt)[0] for prompt in (RED, GREEN)]
    values = state_of([one.values for one in pair])
    rig.run(INJECTOR, model=model, main_latent=pair[0], injection_latent=pair[1], block_activations="011100")
    assert_same_state([model.model_options, text], before)
    assert_same_state([one.values for one in pair], values)
    assert torch.equal(rig.predict(model, text), rig.predict(rig.model(), text))


def test_without_strength_or_blocks_the_model_goes_through(rig):
    pair = {"main_latent": recorded(rig, RED)[0], "injection_latent": recorded(rig, GREEN)[0]}
    for settings in ({"injection_strength": 0.0, "block_activations": "all"}, {"block_activations": "0" * 40}):
        model = rig.model()
        assert rig.run(INJECTOR, model=model, **pair, **settings) == (model,)


def test_the_record_and_the_log_say_how_far_apart_the_recordings_are(rig, caplog):
    caplog.set_level(logging.INFO)
    model = injected(rig, log_level="verbose", start_percent=0.2)
    record = model.model_options["transformer_options"][CONFIG]
    assert record["mode"] == "recorded difference"
    assert record["window"] == [0.2, 1.0]
    assert set(record["differences"]) == {"1", "2", "3"}
    assert min(record["differences"].values()) > 0.1
    assert "Latent Injector #7: block 3: the recordings differ by" in caplog.text


def test_blocks_that_were_not_recorded_are_named(rig):
    with pytest.raises(
        ConfigError, match=r"block 4 was not recorded, blocks 0 to 3 were; set capture_after_blocks .* 5"
    ):
        injected(rig, block_activations="all")


def test_recordings_of_different_clips_are_refused(rig):
    with pytest.raises(ConfigError, match="come from different clips, so their difference is noise"):
        injected(rig, injection_latent=recorded(rig, GREEN, clip_seed=1)[0])
    with pytest.raises(ConfigError, match="give both Latent Encoders one clip size"):
        injected(rig, injection_latent=recorded(rig, GREEN, width=64)[0])


def test_a_run_of_another_size_is_refused(rig):
    pair = {name: recorded(rig, RED, width=64)[0] for name in ("main_latent", "injection_latent")}
    with pytest.raises(ConfigError, match="record them from clips of the same number and size"):
        rig.predict(injected(rig, **pair), rig.text(RED))
