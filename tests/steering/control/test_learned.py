"""Learned control vectors: they close the gap to the target's velocity, and the model is as before."""

from typing import Any

import pytest
import torch

from latentloom.errors import ConfigError
from latentloom.steering.control.learned import LearnedControl, learn_control
from latentloom.steering.hosts.diffusers import steer
from latentloom.steering.plan import Plan
from latentloom.tensors import TextEmbeddings
from latentloom.wan.clip_size import ClipSize
from latentloom.wan.pipeline import WanPipeline
from latentloom.wan.sampling import SamplingSettings, draw_noise

SIZE = ClipSize(1, 32, 32)
SETTINGS = SamplingSettings(steps=2, shift=3.0, guidance=(2.0, 2.0))
TEXTS = ["a small red circle moves left", "a large red square on white", "red square moves up"]
TARGETS = [text.replace("red", "blue") for text in TEXTS]


@pytest.fixture(scope="module")
def pipeline(tiny_checkpoint) -> WanPipeline:
    return WanPipeline.load(tiny_checkpoint, device="cpu")


def learn(pipeline: WanPipeline, **changes: Any) -> LearnedControl:
    given = {"texts": pipeline.encode(TEXTS), "target_texts": pipeline.encode(TARGETS), "seeds": [0, 1, 2]}
    given |= {"generator": torch.Generator().manual_seed(0), "steps": 30, "size": SIZE, "settings": SETTINGS}
    given |= changes
    return learn_control(pipeline, given.pop("texts"), given.pop("target_texts"), **given)


def error(pipeline: WanPipeline, text: TextEmbeddings, target: TextEmbeddings, plan: Plan | None) -> float:
    latents, timestep = draw_noise((4, 1, 4, 4), [0, 1, 2]), torch.tensor(999)
    wanted = pipeline.velocity(latents, timestep, target)
    if plan is None:
        return float((pipeline.velocity(latents, timestep, text) - wanted).norm())
    with steer(pipeline, plan):
        return float((pipeline.velocity(latents, timestep, text) - wanted).norm())


def test_the_vector_brings_the_velocity_to_the_targets(pipeline):
    control, history = learn(pipeline)
    assert history.after < 0.5 * history.before
    assert len(history.losses) == 30
    assert sum(history.losses[-10:]) < sum(history.losses[:10])
    # and so does the plan that applies it, where sampling starts
    texts, targets = pipeline.encode(TEXTS), pipeline.encode(TARGETS)
    with torch.no_grad():
        plain = error(pipeline, texts, targets, None)
        steered = error(pipeline, texts, targets, Plan(control.operations()))
    assert steered < 0.7 * plain


def test_the_vector_says_how_it_was_learned(pipeline):
    control, history = learn(pipeline, steps=2, provenance={"pairs": [["red", "blue"]]})
    assert (control.site, control.model, control.windows) == ("context", "micro", ((0.0, 1.0),))
    assert control.directions.shape == (1, 2, 24)
    assert not control.directions.requires_grad
    assert control.provenance == {
        "pairs": [["red", "blue"]],
        "method": "learned",
        "num_pairs": 3,
        "seeds": [0, 1, 2],
        "steps": 2,
        "lr": 0.05,
        "batch_size": 8,
        "blocks": [0, 1],
        "loss_before": history.before,
        "loss_after": history.after,
    }


def test_only_the_chosen_blocks_get_a_direction(pipeline):
    control, history = learn(pipeline, blocks=[1], steps=5)
    assert control.directions.any(dim=-1).tolist() == [[False, True]]
    assert history.after < history.before


def test_equal_generators_give_equal_bits_and_others_do_not(pipeline):
    first, second, other = (
        learn(pipeline, steps=4, generator=torch.Generator().manual_seed(seed), batch_size=2) for seed in (3, 3, 4)
    )
    assert torch.equal(first.control.directions, second.control.directions)
    assert first.history == second.history
    assert not torch.equal(first.control.directions, other.control.directions)


def test_the_model_is_as_before(pipeline):
    weights = dict(pipeline.transformer.named_parameters())
    weights["proj_out.weight"].requires_grad_(False)
    try:
        before = {name: (weight.clone(), weight.requires_grad) for name, weight in weights.items()}
        learn(pipeline, steps=2)
        for lr, message in ((1e38, "lower lr"), (-1.0, "lr=-1.0")):
            with pytest.raises(ConfigError, match=message):
                learn(pipeline, lr=lr, steps=5)
        for name, weight in weights.items():
            assert torch.equal(weight, before[name][0])
            assert weight.requires_grad == before[name][1]
            assert weight.grad is None
        assert pipeline.around_call is None
        assert not any(module._forward_pre_hooks for module in pipeline.transformer.modules())
    finally:
        weights["proj_out.weight"].requires_grad_(True)


def test_calls_without_the_prompt_play_no_part(pipeline):
    ways = [SamplingSettings(2, 3.0, (2.0, 2.0), batched_guidance=True), SamplingSettings(2, 3.0, (1.0, 1.0))]
    together, unguided = (learn(pipeline, steps=2, settings=settings).history for settings in ways)
    assert together.losses == pytest.approx(learn(pipeline, steps=2).history.losses, rel=1e-3)
    assert unguided.after < unguided.before


def test_a_model_in_bfloat16_is_learned_for_in_float32(tiny_checkpoint):
    control, history = learn(WanPipeline.load(tiny_checkpoint, dtype=torch.bfloat16, device="cpu"), steps=10)
    assert control.directions.dtype == torch.float32
    assert history.after < 0.9 * history.before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": [0, 1]}, "3 texts, 3 targets and 2 seeds"),
        ({"steps": 0}, "steps=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"blocks": [2]}, "give some of 0 to 1"),
        ({"blocks": []}, "give some of 0 to 1"),
        ({"blocks": [-1]}, "give some of 0 to 1"),
    ],
)
def test_settings_out_of_range_are_refused_in_one_line(pipeline, changes, message):
    with pytest.raises(ConfigError, match=message) as refusal:
        learn(pipeline, **changes)
    assert "\n" not in str(refusal.value)
