"""Rows that are injected past the text embedder: exact at the ends, and as different as was asked for."""

import pytest
import torch
from comfy_nodes.hosts import Rig, assert_same_state, state_of
from comfy_nodes.one_step import encoder, offer_samplers
from steering.host_plans import assert_same, steered

from latentloom.comfy.hosts.host import CONFIG
from latentloom.errors import ConfigError
from latentloom.steering import Operation, Plan, RowsPayload, boost_projection, inject_direct, project
from latentloom.tensors import TextEmbeddings

BOOSTER, DIRECT = "WanVideoProjectionBooster", "WanVideoDirectInjector"
RED, GREEN = "A small red circle moves to the left.", "A large green cross moves up on a white background."


def boosted(rig: Rig, model=None, **settings):
    model = rig.model() if model is None else model
    return rig.run(BOOSTER, model=model, text_embeds=rig.text(RED), injection_embeds=rig.text(GREEN), **settings)


def direct(rig: Rig, **settings):
    settings = {"injection_embeds": rig.text(GREEN), **settings}
    return rig.run(DIRECT, model=rig.model(), text_embeds=rig.text(RED), **settings)


def expected(rig: Rig, move):
    """What diffusers' transformer answers with rows moved by the library, and the model's padding where one ends."""
    text, injected = rig.pipeline.encode([RED]), rig.pipeline.encode([GREEN])
    longest = max(int(text.lengths), int(injected.lengths))
    whole = TextEmbeddings(text.padded(longest)[0], torch.tensor([longest]))
    rows = move(project(rig.pipeline.transformer, whole), project(rig.pipeline.transformer, injected))
    plan = Plan((Operation("context", "replace", (1.0,) * 6, RowsPayload(rows)),))

    return steered(rig.pipeline, plan, prompt=RED)


def test_a_factor_of_1_is_the_injected_prompt(rig):
    model, text, info = boosted(rig, boost_factor=1.0)
    assert_same(rig.predict(model, text), rig.predict(rig.model(), rig.text(GREEN)))
    assert "as injected" in info


@pytest.mark.parametrize("preserve_norm", [True, False])
def test_boosted_rows_are_the_librarys_own(rig, preserve_norm):
    model, text, _ = boosted(rig, boost_factor=3.0, preserve_norm=preserve_norm)
    answer = expected(rig, lambda base, other: boost_projection(base, other, 3.0, preserve_norm))
    assert_same(rig.predict(model, text), answer)
    assert not torch.allclose(answer, rig.predict(rig.model(), rig.text(GREEN)), atol=1e-2)


@pytest.mark.parametrize(("mode", "target"), [("additive", 150), ("replace", 80), ("blend", 50)])
def test_direct_rows_differ_by_the_target(rig, mode, target):
    model, text = direct(rig, injection_mode=mode, difference_target=float(target))
    answer = expected(rig, lambda base, other: inject_direct(base, other, mode, target / 100))
    assert_same(rig.predict(model, text), answer)


@pytest.mark.parametrize("settings", [{"injection_strength": 0.0}, {"block_activations": "0" * 40}])
@pytest.mark.parametrize("node", [BOOSTER, DIRECT])
def test_without_strength_or_blocks_everything_goes_through(rig, node, settings):
    model, text = rig.model(), rig.text(RED)
    given = {"model": model, "text_embeds": text, "injection_embeds": rig.text(GREEN)}
    results = rig.run(node, **given, **settings)
    assert results[0] is model
    assert results[1] is text


def test_inputs_stay_as_they_are(rig):
    model, text, injected = rig.model(), rig.text(RED), rig.text(GREEN)
    before = state_of([model.model_options, text, injected])
    given = {"model": model, "text_embeds": text, "injection_embeds": injected}
    rig.run(BOOSTER, **given)
    rig.run(DIRECT, **given)
    assert_same_state([model.model_options, text, injected], before)
    assert torch.equal(rig.predict(model, text), rig.predict(rig.model(), rig.text(RED)))


def test_the_record_says_how_far_apart_the_rows_are(rig):
    model, text, info = boosted(rig, block_activations="000111", boost_factor=5.0, end_percent=0.5)
    record = model.model_options["transformer_options"][CONFIG]
    assert (text if rig.host == "wrapper" else text[0][1])[CONFIG] == record
    assert record["strengths"] == [0, 0, 0, 1, 1, 1]
    assert record["mode"] == "projection boosted 5 times"
    assert record["window"] == [0.0, 0.5]
    found = record["differences"]
    assert found["raw"] > 0.5
    assert found["projected"] < found["injected"]
    assert f"{found['injected']:.0%} as injected" in info


def test_the_target_is_what_the_record_says(rig):
    model, _ = direct(rig, difference_target=60.0)
    assert model.model_options["transformer_options"][CONFIG]["difference"] == pytest.approx(0.6, abs=0.02)


def test_nodes_in_a_row_keep_each_others_record(rig):
    first, _, _ = boosted(rig)
    second, _, _ = boosted(rig, model=first, boost_factor=2.0)
    (before,) = second.model_options["transformer_options"][CONFIG]["before"]
    assert before["mode"] == "projection boosted 10 times"


def test_a_prompt_is_encoded_by_the_linked_encoder(rig, monkeypatch):
    offer_samplers(monkeypatch, rig)
    by_prompt = direct(rig, injection_prompt=GREEN, injection_embeds=None, encoder=encoder(rig))
    by_embeds = direct(rig)
    assert torch.equal(rig.predict(*by_prompt), rig.predict(*by_embeds))
    assert rig.node(DIRECT).inputs[-1].type == {"native": "CLIP", "wrapper": "WANTEXTENCODER"}[rig.host]


def test_what_to_inject_has_to_be_said_once(rig):
    with pytest.raises(ConfigError, match="both injection_prompt and injection_embeds say what to inject"):
        direct(rig, injection_prompt=GREEN)
    with pytest.raises(ConfigError, match="nothing to inject; link injection_embeds, or an encoder"):
        direct(rig, injection_embeds=None, injection_prompt=GREEN)


def test_a_difference_that_cannot_be_reached_is_refused(rig):
    with pytest.raises(ConfigError, match="blend to a relative difference of 2: it cannot be more than"):
        direct(rig, difference_target=200.0)


def test_prompts_of_two_encoders_are_refused(micro_wan):
    rig = Rig("wrapper", micro_wan)
    other = {"prompt_embeds": [torch.ones(3, 7)]}
    with pytest.raises(ConfigError, match="channels; encode both with one encoder"):
        rig.run(BOOSTER, model=rig.model(), text_embeds=rig.text(RED), injection_embeds=other)
