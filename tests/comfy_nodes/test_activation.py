"""The editor's injection: exact at both ends of its strength, and gone with the node."""

import logging

import pytest
import torch
from comfy_nodes.hosts import Rig, assert_same_state, state_of

from latentloom.comfy.execute import execute
from latentloom.comfy.hosts.host import CONFIG
from latentloom.comfy.patterns import check_pattern, strengths_for
from latentloom.comfy.schema import Node
from latentloom.errors import ConfigError

EDITOR = "WanVideoActivationEditor"
BUILDER = "WanVideoBlockActivationBuilder"
RED, GREEN = "A small red circle moves to the left.", "A large green cross moves up on a white background."


def edited(rig: Rig, **settings):
    settings = {"injection_strength": 1.0, "block_activations": "all", **settings}
    return rig.run(EDITOR, model=rig.model(), text_embeds=rig.text(RED), injection_embeds=rig.text(GREEN), **settings)


def test_all_blocks_at_strength_1_are_the_injected_prompt(rig):
    model, text = edited(rig)
    assert torch.equal(rig.predict(model, text), rig.predict(rig.model(), rig.text(GREEN)))
    assert not torch.equal(rig.predict(model, text), rig.predict(rig.model(), rig.text(RED)))


@pytest.mark.parametrize(
    "settings", [{"injection_strength": 0.0}, {"block_activations": "0" * 40}, {"enable_patching": False}]
)
def test_without_strength_blocks_or_switched_off_nothing_changes(rig, settings):
    model, text = edited(rig, **settings)
    assert torch.equal(rig.predict(model, text), rig.predict(rig.model(), rig.text(RED)))


def test_inputs_stay_as_they_are(rig):
    model, text, injected = rig.model(), rig.text(RED), rig.text(GREEN)
    before = state_of([model.model_options, text, injected])
    rig.run(EDITOR, model=model, text_embeds=text, injection_embeds=injected, block_activations="late_blocks")
    assert_same_state([model.model_options, text, injected], before)
    assert torch.equal(rig.predict(model, text), rig.predict(rig.model(), rig.text(RED)))


def test_the_configuration_is_where_the_document_says(rig):
    model, text = edited(rig, block_activations="000111", injection_strength=0.25)
    config = model.model_options["transformer_options"][CONFIG]
    assert config["strengths"] == [0, 0, 0, 0.25, 0.25, 0.25]
    assert (text if rig.host == "wrapper" else text[0][1])[CONFIG] == config
    assert config["difference"] > 0.5


def test_a_curve_takes_the_place_of_the_pattern(rig):
    model, _ = edited(rig, injection_strength=0.5, block_strengths=(0.0, 0.2, 0.4, 0.6, 0.8, 1.0))
    strengths = model.model_options["transformer_options"][CONFIG]["strengths"]
    assert strengths == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])


def test_verbose_shows_the_blocks_of_every_call_and_off_shows_nothing(rig, caplog):
    caplog.set_level(logging.INFO)
    model, text = edited(rig, log_level="verbose", block_activations="early_blocks")
    rig.predict(model, text)
    assert "Activation Editor #7" in caplog.text
    assert caplog.text.count("██░░░░") == 2  # once when it is set up, once in the call
    caplog.clear()
    model, text = edited(rig, log_level="off", block_activations="early_blocks")
    rig.predict(model, text)
    assert caplog.text == ""


def test_trace_says_where_in_the_program(rig, caplog):
    caplog.set_level(logging.INFO)
    edited(rig, log_level="trace")
    assert all(record.stack_info for record in caplog.records)


def test_prompts_that_hardly_differ_are_warned_of(rig, caplog):
    rig.run(
        EDITOR, model=rig.model(), text_embeds=rig.text(RED), injection_embeds=rig.text(RED), block_activations="all"
    )
    assert "differ by 0%" in caplog.text


def test_memory_is_given_back_after_a_run_and_after_an_error(rig, comfyui):
    edited(rig)
    assert comfyui.emptied == 1
    with pytest.raises(ConfigError, match="set num_blocks of the Block Activation Builder"):
        edited(rig, block_activations="01" * 20)
    assert comfyui.emptied == 2


def test_presets_scale_with_the_model(rig):
    def pattern(**settings):
        return rig.run(BUILDER, **settings)[0]

    assert pattern(preset="early_blocks") == "1" * 10 + "0" * 30
    assert pattern(preset="mid_blocks") == "0" * 10 + "1" * 20 + "0" * 10
    assert pattern(preset="late_blocks", num_blocks=6) == "000011"
    assert pattern(preset="custom", num_blocks=6, block_1=True, block_4=True) == "010010"


def test_only_one_prompt_is_injected_or_it_is_said(rig):
    text = rig.text(RED)
    if rig.host == "native":
        several = [*rig.text(GREEN), *rig.text(RED)]
    else:
        several = {**text, "prompt_embeds": [*text["prompt_embeds"], *rig.text(GREEN)["prompt_embeds"]]}
    with pytest.raises(ConfigError, match=r"to inject (has 2 entries|hold 2 prompts); link one"):
        rig.run(EDITOR, model=rig.model(), text_embeds=text, injection_embeds=several, block_activations="all")


def test_a_conditioning_for_a_part_of_the_clip_is_not_injected_into_all_of_it(micro_wan):
    rig = Rig("native", micro_wan)
    masked = [[rows, {**options, "mask": torch.ones(1, 4, 4)}] for rows, options in rig.text(GREEN)]
    with pytest.raises(ConfigError, match="limited by mask"):
        rig.run(EDITOR, model=rig.model(), text_embeds=rig.text(RED), injection_embeds=masked, block_activations="all")


def test_a_window_that_is_none_is_refused_before_anything_runs(rig):
    check = rig.node(EDITOR).check
    assert check is not None
    assert check("all", 0.0, 0.5) is None
    assert "give a start below the end" in check("all", 0.5, 0.5)
    assert "give a start below the end" in check("all", start_percent=1.0)


def test_patterns_that_are_none_are_refused_before_anything_runs():
    assert check_pattern("0101") is None
    with pytest.raises(ConfigError, match="not understood"):
        check_pattern("some")


def test_a_curve_for_another_depth_is_refused():
    with pytest.raises(
        ConfigError, match="4 blocks and this model has 6; set num_blocks of the Block Strength Builder"
    ):
        strengths_for("", 6, 1.0, (1.0,) * 4)


def test_a_node_that_returns_too_little_is_a_bug():
    node = Node("X", "X", "X", "", (), (), run=lambda: (1,))
    with pytest.raises(TypeError, match="returned 1 values for 0 outputs"):
        execute(node, {}, None)
