"""Control vectors: files, sums, and what they change in both hosts."""

import shutil
from pathlib import Path

import pytest
import torch
from comfy_nodes.hosts import Rig, assert_same_state, state_of

from latentloom.comfy.hosts.host import CONFIG
from latentloom.comfy.installed import plan_of
from latentloom.comfy.nodes.control import control_files_state, control_names
from latentloom.errors import ConfigError
from latentloom.micro.attributes import COLOURS
from latentloom.micro.steering_control import set_value
from latentloom.steering import ControlVector, save_control

LOADER, COMBINE, APPLY = (
    "LatentLoomControlVectorLoader",
    "LatentLoomControlVectorCombine",
    "WanVideoControlVectorApply",
)
RED = "A small red circle moves to the left."


def loaded(rig: Rig, name: str) -> tuple[ControlVector, ...]:
    return rig.run(LOADER, name=f"microwan/colour_{name}")[0]


def prediction(rig: Rig, **settings) -> torch.Tensor:
    model = rig.run(APPLY, model=rig.model(), **settings)[0]
    return rig.predict(model, rig.text(RED))


def test_the_colours_ship_one_by_one_and_as_a_group(rig):
    assert {f"microwan/colour_{colour}.safetensors" for colour in COLOURS} < set(control_names())
    assert len(loaded(rig, "*")) == len(COLOURS)
    assert loaded(rig, "red.safetensors")[0].num_blocks == 6


def test_files_of_the_models_folder_are_found_and_grouped(rig, comfyui):
    folder: Path = comfyui.folder / "models/latentloom/control_vectors/mine"
    folder.mkdir(parents=True)
    red = loaded(rig, "red.safetensors")[0]
    before = control_files_state("x")
    for name in ("tone_dark.safetensors", "tone_dark.gguf", "tone_light.gguf"):
        save_control(folder / name, red)
    assert control_files_state("x") != before
    assert control_names()[:3] == ["mine/tone_dark.gguf", "mine/tone_dark.safetensors", "mine/tone_light.gguf"]
    assert len(rig.run(LOADER, name="mine/tone_*")[0]) == 2  # one per stem
    assert torch.equal(rig.run(LOADER, name="mine/tone_light.gguf")[0][0].directions, red.directions)
    shutil.rmtree(folder)
    with pytest.raises(ConfigError, match=r"there is no file 'mine/tone_dark.gguf'; put it into ComfyUI/models"):
        rig.run(LOADER, name="mine/tone_dark.gguf")


def test_setting_a_colour_is_the_plan_that_micro_measured(rig):
    family = {colour: loaded(rig, f"{colour}.safetensors")[0] for colour in COLOURS}
    model, group = rig.model(), tuple(family[colour] for colour in sorted(family))
    applied = rig.run(APPLY, model=model, control_vector=(family["blue"],), ablate=group, strength=4.0)[0]
    plan, wanted = plan_of(applied), set_value({name: family[name] for name in sorted(family)}, "blue", 4.0)
    assert plan is not None
    assert plan.describe() == wanted.describe()
    assert not torch.equal(rig.predict(applied, rig.text(RED)), rig.predict(model, rig.text(RED)))


def test_inputs_stay_as_they_are(rig):
    model, control = rig.model(), loaded(rig, "blue.safetensors")
    before = state_of(model.model_options)
    directions = control[0].directions.clone()
    rig.run(APPLY, model=model, control_vector=control, ablate=loaded(rig, "*"))
    assert_same_state(model.model_options, before)
    assert torch.equal(control[0].directions, directions)
    assert plan_of(model) is None


def test_strength_0_or_no_block_is_the_model_itself(rig):
    model, control = rig.model(), loaded(rig, "blue.safetensors")
    assert rig.run(APPLY, model=model, control_vector=control, strength=0.0)[0] is model
    assert rig.run(APPLY, model=model, control_vector=control, blocks="none")[0] is model
    assert rig.run(APPLY, model=model, control_vector=control, method="ablate", strength=0.0)[0] is model


def test_blocks_side_window_and_strength_reach_the_plan(rig):
    settings = {"blocks": "late_blocks", "side": "both", "start_percent": 0.25, "end_percent": 0.5, "strength": -2.0}
    model = rig.run(APPLY, model=rig.model(), control_vector=loaded(rig, "blue.safetensors"), **settings)[0]
    plan = plan_of(model)
    assert plan is not None
    (operation,) = plan.operations
    assert operation.strengths == (0, 0, 0, 0, -2, -2)
    assert (operation.side, operation.window, operation.method) == ("both", (0.25, 0.5), "add")
    record = model.model_options["transformer_options"][CONFIG]
    assert (record["strengths"], record["window"]) == ([0, 0, 0, 0, -2, -2], [0.25, 0.5])


def test_a_vectors_own_windows_are_narrowed(rig):
    red = loaded(rig, "red.safetensors")[0]
    early = ControlVector(red.site, red.directions, red.model, ((0.0, 0.5),))
    model = rig.run(APPLY, model=rig.model(), control_vector=(early,), start_percent=0.25)[0]
    plan = plan_of(model)
    assert plan is not None
    assert plan.operations[0].window == (0.25, 0.5)
    with pytest.raises(ConfigError, match=r"acts from 0 to 0.5 of the schedule, not from 0.6 to 1"):
        rig.run(APPLY, model=rig.model(), control_vector=(early,), start_percent=0.6)
    with pytest.raises(ConfigError, match=r"start_percent 0.6 is not below end_percent 0.6"):
        rig.run(APPLY, model=rig.model(), control_vector=(early,), start_percent=0.6, end_percent=0.6)


def test_a_group_can_be_taken_out_and_not_added(rig):
    group = loaded(rig, "*")
    assert not torch.equal(
        prediction(rig, control_vector=group, method="ablate", strength=1.0),
        rig.predict(rig.model(), rig.text(RED)),
    )
    with pytest.raises(ConfigError, match="add takes one control vector and this is a group of 6"):
        prediction(rig, control_vector=group)
    with pytest.raises(ConfigError, match="use 0 to 2: 1 removes the direction"):
        prediction(rig, control_vector=group, method="ablate", strength=4.0)


def test_a_vector_for_another_model_is_refused(rig):
    red = loaded(rig, "red.safetensors")[0]
    deeper = ControlVector(red.site, red.directions.repeat(1, 2, 1), red.model)
    with pytest.raises(ConfigError, match="for 12 blocks of 128 channels and this model has 6 of 128; fit one"):
        prediction(rig, control_vector=(deeper,))


def test_a_difference_of_two_vectors_remembers_both(rig):
    red, blue = loaded(rig, "red.safetensors"), loaded(rig, "blue.safetensors")
    (apart,) = rig.run(COMBINE, a=red, b=blue, weight_a=1.0, weight_b=-1.0)[0]
    assert torch.equal(apart.directions, red[0].directions - blue[0].directions)
    assert apart.provenance["weights"] == [1, -1]
    with pytest.raises(ConfigError, match="combine takes one control vector"):
        rig.run(COMBINE, a=loaded(rig, "*"), b=blue)
