"""How far the velocity moves, block set by block set, on a tiny model of two blocks."""

import json

import pytest
import torch
from torch import Tensor

from latentloom.errors import ConfigError
from latentloom.steering.functional import seed_floor
from latentloom.steering.sweep import velocity as sweep_module
from latentloom.steering.sweep.parts import Part
from latentloom.steering.sweep.prompts import PromptPair
from latentloom.steering.sweep.velocity import VelocitySweep, sweep_velocity
from latentloom.wan.clip_size import ClipSize
from latentloom.wan.pipeline import WanPipeline
from latentloom.wan.sampling import SamplingSettings, build_scheduler, draw_noise

SIZE = ClipSize(5, 16, 32)
PAIRS = [
    PromptPair("a small red circle moves left on black", "a large blue square", 3),
    PromptPair("a green square", "a small red circle moves down on white background", 4),
    PromptPair("a red circle", "a red circle", 5),
]
NONE, FIRST, LAST, BOTH = Part(()), Part((0,)), Part((1,)), Part((0, 1))


@pytest.fixture(scope="module")
def pipeline(tiny_checkpoint) -> WanPipeline:
    return WanPipeline.load(tiny_checkpoint, device="cpu")


@pytest.fixture(scope="module")
def settings(pipeline) -> SamplingSettings:
    return SamplingSettings.for_model(pipeline.facts, steps=4)


@pytest.fixture(scope="module")
def swept(pipeline, settings) -> VelocitySweep:
    return sweep_velocity(pipeline, PAIRS, [NONE, FIRST, LAST, BOTH], num_points=2, size=SIZE, settings=settings)


def test_no_block_is_no_change_and_an_equal_prompt_none_either(swept):
    assert torch.equal(swept.changes[NONE], torch.zeros(3, 2))
    assert torch.equal(swept.changes[BOTH][2], torch.zeros(2))
    assert (swept.changes[BOTH][:2] > 0.01).all()
    assert not torch.allclose(swept.changes[FIRST], swept.changes[LAST], rtol=0.05)


def test_all_blocks_are_the_other_prompt_itself_along_the_base_prompts_own_trajectory(pipeline, settings, swept):
    base, injected = pipeline.encode([PAIRS[0].base]), pipeline.encode([PAIRS[0].injected])
    passed = [draw_noise(pipeline.grid.shape(SIZE), [3])]

    def keep(step: int, timestep: float, latents: Tensor) -> None:
        passed.append(latents.clone())

    pipeline.sample(base, size=SIZE, settings=settings, seeds=[3], callback=keep)
    timesteps = build_scheduler(settings).timesteps
    for point, step in enumerate((0, 3)):
        assert swept.timesteps[point] == float(timesteps[step])
        before, after = (pipeline.velocity(passed[step], timesteps[step], text) for text in (base, injected))
        expected = (after - before).norm() / before.norm()
        assert float(swept.changes[BOTH][0, point]) == pytest.approx(float(expected), rel=1e-4)


def test_the_floor_is_another_seed_under_the_base_prompt(pipeline, settings, swept):
    base = pipeline.encode([PAIRS[0].base])[[0, 0]]
    scheduler = build_scheduler(settings)
    latents = draw_noise(pipeline.grid.shape(SIZE), [3, 6])  # one above the largest seed of the pairs
    answers = pipeline.velocity(latents, scheduler.timesteps[0], base)
    expected = seed_floor(latents, answers, float(scheduler.sigmas[0]))[0]
    assert float(swept.floor[0, 0]) == pytest.approx(float(expected), rel=1e-4)


def test_intervals_are_over_pairs(swept):
    overall = swept.overall(BOTH)
    values = swept.changes[BOTH].mean(dim=1)
    assert float(overall.mean) == pytest.approx(float(values.mean()), rel=1e-5)
    # Student's t with two degrees of freedom: 4.3027
    assert float(overall.high - overall.mean) == pytest.approx(4.3027 * float(values.std()) / 3**0.5, rel=1e-4)
    assert swept.by_timestep(None).mean.tolist() == pytest.approx(swept.floor.mean(dim=0).tolist())
    written = json.loads(json.dumps(swept.to_json()))
    assert written["parts"]["0-1"]["overall"]["mean"] == pytest.approx(float(overall.mean))
    assert list(written["parts"]) == ["none", "0", "1", "0-1"]
    assert len(written["floor"]["by_timestep"]["low"]) == 2


def test_pairs_that_do_not_fit_into_one_batch_give_the_same(pipeline, settings, swept, monkeypatch):
    def in_twos(self: WanPipeline, count: int, *size: object) -> list[slice]:
        return [slice(start, min(start + 2, count)) for start in range(0, count, 2)]

    monkeypatch.setattr(WanPipeline, "batches", in_twos)
    parted = sweep_velocity(pipeline, PAIRS, [BOTH, LAST], num_points=2, size=SIZE, settings=settings)
    torch.testing.assert_close(parted.changes[BOTH], swept.changes[BOTH], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(parted.floor, swept.floor, rtol=1e-3, atol=1e-5)


def test_a_sweep_goes_on_where_it_stopped(pipeline, settings, swept, monkeypatch):
    kept: dict = {}
    options = {"num_points": 2, "size": SIZE, "settings": settings}
    sweep_velocity(pipeline, PAIRS, [FIRST], **options, kept=kept)
    asked = []

    def change(run, rows, part):
        asked.append(part)
        return [[0.5] * len(run.steps)] * len(PAIRS)

    monkeypatch.setattr(sweep_module._Run, "change", change)
    again = sweep_velocity(pipeline, PAIRS, [FIRST, LAST], **options, kept=kept)
    assert asked == [LAST]
    torch.testing.assert_close(again.changes[FIRST], swept.changes[FIRST], rtol=1e-4, atol=1e-6)
    assert torch.equal(again.changes[LAST], torch.full((3, 2), 0.5))
    sweep_velocity(pipeline, PAIRS, [FIRST], **{**options, "num_points": 1}, kept=kept)
    assert asked == [LAST, FIRST]  # other points of the schedule are other results


def test_too_few_pairs_and_too_many_points_are_refused(pipeline, settings):
    with pytest.raises(ConfigError, match="1 pair; intervals are over pairs"):
        sweep_velocity(pipeline, PAIRS[:1], [BOTH])
    with pytest.raises(ConfigError, match="5 points of a schedule of 4 steps; give 1 to 4"):
        sweep_velocity(pipeline, PAIRS, [BOTH], num_points=5, settings=settings)
