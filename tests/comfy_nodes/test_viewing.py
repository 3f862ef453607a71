"""What the viewer and the tester say, and that it is true."""

import pytest
import torch
from comfy_nodes.hosts import Rig, assert_same_state, state_of
from steering.host_plans import TIMESTEP

from latentloom.comfy.edits import Edit
from latentloom.comfy.hosts import host_named
from latentloom.comfy.hosts.host import CONFIG
from latentloom.comfy.installed import plan_of, without_plan
from latentloom.comfy.nodes import viewing
from latentloom.comfy.pictures import figure_picture
from latentloom.comfy.plots import plot_edits
from latentloom.errors import ConfigError
from latentloom.steering import compare
from latentloom.steering.hosts import comfy_native, wan_video_wrapper

EDITOR, VIEWER, TESTER = "WanVideoActivationEditor", "WanVideoBlockActivationViewer", "WanVideoInjectionTester"
APPLY, LOADER = "WanVideoControlVectorApply", "LatentLoomControlVectorLoader"
RED, GREEN = "A small red circle moves to the left.", "A large green cross moves up on a white background."


def edited(rig: Rig, model=None, **settings):
    settings = {"block_activations": "early_blocks", **settings}
    model = rig.model() if model is None else model
    return rig.run(EDITOR, model=model, text_embeds=rig.text(RED), injection_embeds=rig.text(GREEN), **settings)


def viewed(rig: Rig, **inputs) -> str:
    return rig.run(VIEWER, show_visual=False, **inputs)[0]


@pytest.fixture
def undrawn(monkeypatch):
    """Leave the drawing out, which takes longer than all else, where the text is looked at."""
    monkeypatch.setattr(viewing, "figure_picture", lambda figure: torch.zeros(2, 2, 3))


def test_nothing_installed_is_said_plainly(rig):
    values, shown = rig.run_and_show(VIEWER, model=rig.model())
    assert values[0] == "Nothing is installed on this model: sampling with it is plain."
    assert "images" not in shown


def test_an_edit_is_shown_with_blocks_window_side_and_difference(rig):
    model, _ = edited(rig, side="both", start_percent=0.25, injection_strength=0.5, injection_mode="both")
    (text,), shown = rig.run_and_show(VIEWER, model=model)
    assert text.startswith("1 edit active on this model of 6 blocks.")
    assert "injection into the context and hidden states: active" in text
    assert "██░░░░" in text
    assert "2 of 6 blocks: 0-1" in text
    assert "pattern: early" in text
    assert "strength 0.50 in each" in text
    assert "during 25% to 100% of the schedule, side both" in text
    assert "differs by 1" in text
    assert len(shown["images"]) == 1
    assert shown["text"] == [text]


def test_text_alone_without_the_picture(rig):
    _, shown = rig.run_and_show(VIEWER, model=edited(rig)[0], show_visual=False)
    assert "images" not in shown


def test_a_record_whose_plan_is_gone_is_not_active(rig):
    text = viewed(rig, model=without_plan(edited(rig)[0]))
    assert text.startswith("Nothing is installed on this model: sampling with it is plain. 1 only written down")
    assert "injection into the context: not active" in text


def test_a_plan_without_a_record_is_shown_too(rig):
    model = edited(rig)[0].clone()
    options = {key: value for key, value in model.model_options["transformer_options"].items() if key != CONFIG}
    model.model_options = {**model.model_options, "transformer_options": options}
    text = viewed(rig, model=model)
    assert "1 edit active" in text
    assert "lerp on context of PromptPayload: active" in text


def test_edits_of_several_nodes_are_shown_in_order_each_once(rig):
    control, group = (rig.run(LOADER, name=f"microwan/colour_{name}")[0] for name in ("blue.safetensors", "*"))
    model, _ = edited(rig)
    model = rig.run(APPLY, model=model, control_vector=control, ablate=group)[0]
    model, _ = edited(rig, model, block_activations="late_blocks")
    model, _ = edited(rig, model, block_activations="late_blocks")
    text = viewed(rig, model=model)
    heads = [line for line in text.splitlines() if line[:1].isdigit()]
    assert heads == [
        "4 edits active on this model of 6 blocks.",
        "1. injection into the context: active",
        "2. control vector, add 4, after 6 were taken out: active",
        "3. injection into the context: active",
        "4. injection into the context: active",
    ]


def test_a_pattern_is_looked_at_before_it_is_used(rig):
    (text,), shown = rig.run_and_show(VIEWER, model=rig.model(), block_activations="010101")
    assert "1. block_activations: a pattern, not an edit" in text
    assert "pattern: alternating" in text
    assert len(shown["images"]) == 1
    with pytest.raises(ConfigError, match="pattern is for 40 blocks and this model has 6"):
        viewed(rig, model=rig.model(), block_activations="01" * 20)


def test_a_prompt_with_a_record_and_a_model_without_is_pointed_out(rig):
    _, text_embeds = edited(rig)
    assert "link the editor's model output" in viewed(rig, model=rig.model(), text_embeds=text_embeds)
    assert "link" not in viewed(rig, model=rig.model(), text_embeds=rig.text(RED))


def test_a_map_shows_window_and_blocks_and_nothing_of_what_is_not_active():
    def picture(**settings) -> torch.Tensor:
        return figure_picture(plot_edits([Edit("x", (0.0, 1.0, 0.5), **settings)]))

    everywhere, late, gone = picture(), picture(window=(0.5, 1.0)), picture(state="not active")

    def blue(image: torch.Tensor, part: slice) -> int:
        return int(((image[..., 2] - image[..., 0] > 0.2)[:, part]).sum())

    left, right = slice(60, 300), slice(360, 600)  # of the map; the scale is beyond
    assert blue(everywhere, left) > 1000
    assert blue(late, left) == 0
    assert blue(late, right) > 1000
    assert blue(gone, slice(60, 600)) == 0


def test_negative_strengths_and_forty_blocks_can_be_drawn():
    picture = figure_picture(plot_edits([Edit("x", (-2.0, 0.0) * 20), Edit("y", (1.0,) * 40)]))
    assert picture.shape[1:] == (720, 3)


def test_the_tester_reports_before_and_after_the_projection(rig):
    model, text, other = rig.model(), rig.text(RED), rig.text(GREEN)
    before = state_of([model.model_options, text, other])
    (report, plot), shown = rig.run_and_show(TESTER, model=model, text_embeds=text, injection_embeds=other)
    assert_same_state([model.model_options, text, other], before)
    raw = compare(rig.embeddings(text), rig.embeddings(other))
    assert f"relative L2 {float(raw.figures.relative_l2):.3f}" in report
    assert f"padding, which is equal in any two prompts: {float(raw.diluted_share_changed):.1%}" in report
    assert "channels that differ most: " in report
    assert "Nothing is installed on this model: sampling with it is plain." in report
    assert report.endswith("Switch trial_run on to run the model once and see which blocks the edits change.")
    assert plot.shape[0] == 1
    assert plot.shape[-1] == 3
    assert len(shown["images"]) == 1


@pytest.mark.usefixtures("undrawn")
def test_the_tester_projects_as_the_model_does(micro_wan):
    rig = Rig("native", micro_wan)
    model, text, other = rig.model(), rig.text(RED), rig.text(GREEN)
    report, _ = rig.run(TESTER, model=model, text_embeds=text, injection_embeds=other)
    embed = model.model.diffusion_model.text_embedding
    with torch.no_grad():
        first, second = (embed(rows[0]) for rows in (text[0][0], other[0][0]))
    rows = max(len(rig.embeddings(each).tokens) for each in (text, other))
    apart = (first[:rows] - second[:rows]).norm() / (first[:rows].norm() * second[:rows].norm()).sqrt()
    assert f"relative L2 {float(apart):.3f}" in report
    raw = compare(rig.embeddings(text), rig.embeddings(other)).figures.relative_l2
    assert f"keeps {float(apart) / float(raw):.0%} of the difference" in report


@pytest.mark.usefixtures("undrawn")
def test_a_projection_that_cannot_be_measured_leaves_the_rest(rig, monkeypatch):
    def refuse(self, model, text):
        raise ConfigError("the weights are elsewhere; load them")

    monkeypatch.setattr(type(host_named(rig.host)), "project", refuse)
    report, _ = rig.run(TESTER, model=rig.model(), text_embeds=rig.text(RED), injection_embeds=rig.text(GREEN))
    assert "not measured. the weights are elsewhere; load them" in report
    assert "relative L2" in report


@pytest.mark.usefixtures("undrawn")
def test_two_prompts_of_zeros_are_refused(rig):
    text = rig.text(RED)
    zeros = (
        [[torch.zeros_like(rows), options] for rows, options in text]
        if rig.host == "native"
        else {**text, "prompt_embeds": [torch.zeros_like(rows) for rows in text["prompt_embeds"]]}
    )
    with pytest.raises(ConfigError, match="both prompts are zeros"):
        rig.run(TESTER, model=rig.model(), text_embeds=zeros, injection_embeds=zeros)


def test_a_trial_run_of_a_model_that_takes_an_image_is_refused(rig):
    model = rig.model()
    model.model.diffusion_model.in_dim = 36
    with pytest.raises(ConfigError, match="also takes an image; switch it off"):
        rig.run(TESTER, model=model, text_embeds=rig.text(RED), injection_embeds=rig.text(GREEN), trial_run=True)


def test_equal_prompts_have_nothing_to_inject(rig):
    report = rig.run(TESTER, model=edited(rig)[0], text_embeds=rig.text(RED), injection_embeds=rig.text(RED))[0]
    assert report.startswith("The prompts are equal")
    assert "injection into the context: active" in report


@pytest.fixture
def one_step(rig, monkeypatch):
    """The host's sampler as one call of its stand-in."""

    def run_once(self, model, text, clip, recording) -> float:
        record = (comfy_native if rig.host == "native" else wan_video_wrapper).record
        rig.predict(record(model, recording), text)
        return TIMESTEP

    monkeypatch.setattr(type(host_named(rig.host)), "_run_once", run_once)


def trial_report(rig: Rig, model) -> str:
    inputs = {"model": model, "text_embeds": rig.text(RED), "injection_embeds": rig.text(GREEN)}
    return rig.run(TESTER, trial_run=True, **inputs)[0]


@pytest.mark.usefixtures("one_step", "undrawn")
def test_a_trial_run_shows_what_the_edits_change(rig):
    model, _ = edited(rig, block_activations="2", injection_strength=1.0)
    report = trial_report(rig, model)
    assert "6 of 6 blocks called" in report
    changes = report.split("by the edits by")[1].split()
    assert changes[:6] == ["0:", "0.0%", "1:", "0.0%", "2:", "0.0%"]
    assert float(changes[7].rstrip("%")) > 1
    assert plan_of(without_plan(model)) is None
    assert plan_of(model) is not None
    assert trial_report(rig, model) == report


@pytest.mark.usefixtures("one_step", "undrawn")
def test_a_trial_run_says_when_nothing_acts(rig):
    assert "no edit whose effect" in trial_report(rig, rig.model())
    late, _ = edited(rig, side="uncond")
    assert "what enters the blocks is the same with and without" in trial_report(rig, late)
