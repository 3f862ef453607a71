"""Strength curves: what each pattern means, and what cannot be one."""

import json

import pytest
from comfy_nodes.hosts import BY_ID, Rig

from latentloom.comfy.checks import answering
from latentloom.comfy.curves import SHAPES, CurveSettings, build_curve, read_points
from latentloom.comfy.pattern_text import analyse, detect, ranges
from latentloom.comfy.schema import Widget
from latentloom.errors import ConfigError

BUILDER = "WanVideoBlockStrengthBuilder"


def curve(shape: str, num_blocks: int = 5, **settings) -> list[float]:
    return list(build_curve(shape, num_blocks, CurveSettings(**settings)))


def test_patterns_keep_the_order_that_saved_workflows_know():
    assert list(SHAPES)[:4] == ["custom", "uniform", "linear_decay", "linear_rise"]
    assert list(SHAPES)[-1] == "curve"


def test_ramps_and_uniform():
    assert curve("uniform", base=0.5) == [0.5] * 5
    assert curve("linear_rise", base=0.8) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])
    assert curve("linear_decay", base=0.8) == pytest.approx([0.8, 0.6, 0.4, 0.2, 0])


def test_a_bell_is_highest_at_its_peak_and_its_inverse_is_a_hole_there():
    bell = curve("gaussian_peak", base=0.6, peak_block=3, spread=1.0)
    assert bell[3] == 0.6
    assert bell[2] == bell[4] == pytest.approx(0.6 * 0.60653, abs=1e-4)
    hole = curve("inverse_gaussian", base=0.6, peak_block=3, spread=1.0)
    assert [a + b for a, b in zip(bell, hole, strict=True)] == pytest.approx([0.6] * 5)


def test_steps_waves_and_focus_follow_the_depth():
    assert curve("stepped", 6, base=1.0, step_size=2) == [1, 1, 0, 0, 1, 1]
    assert curve("sine_wave", base=1.0) == pytest.approx([0.5, 1, 0.5, 0, 0.5])
    assert curve("focus_early", 6, base=1.0) == pytest.approx([1, 1, 0.1, 0.1, 0.1, 0.1])
    assert curve("focus_mid", 40, base=0.5) == pytest.approx([0.05] * 10 + [0.5] * 20 + [0.05] * 10)
    assert curve("focus_late", 6, base=1.0)[3:] == pytest.approx([0.1, 1, 1])


def test_random_strengths_come_from_their_seed_alone():
    first = curve("random", 40, base=0.5, seed=3)
    assert first == curve("random", 40, base=0.5, seed=3) != curve("random", 40, base=0.5, seed=4)
    assert 0 <= min(first) < max(first) <= 0.5


def test_a_drawn_curve_goes_through_its_points_and_stays_between_them():
    points = read_points(json.dumps([[1, 0.2], [0.5, 1.0], [0, 0.0]]))
    assert curve("curve", points=points) == pytest.approx([0, 0.5, 1, 0.6, 0.2])
    assert curve("curve", points=((0.25, 0.3), (0.75, 0.7))) == pytest.approx([0.3, 0.3, 0.5, 0.7, 0.7])
    assert curve("curve", points=((0.5, 0.4),)) == [0.4] * 5
    steep = curve("curve", 6, points=((0.0, 0.0), (0.4, 0.0), (0.4, 1.0), (1.0, 1.0)))
    assert steep == pytest.approx([0, 0, 1, 1, 1, 1])


@pytest.mark.parametrize("text", ["{}", "[]", "[[0]]", "[[0, 2]]", "[[0, NaN]]", "[[true, 0]]", "none", "[" * 100_000])
def test_a_curve_that_is_none_is_refused(text):
    with pytest.raises(ConfigError, match=r"curve .* is not understood; give points from 0 to 1"):
        read_points(text)


def test_one_block_is_a_model_too():
    for shape in SHAPES:
        strengths = curve(shape, 1, peak_block=0, points=((0.0, 0.3),), custom={0: 0.2})
        assert len(strengths) == 1


def test_the_node_shows_its_strengths_and_says_what_it_did_not_use(micro_wan):
    rig = Rig("native", micro_wan)
    (strengths, text), shown = rig.run_and_show(
        BUILDER, pattern="custom", num_blocks=6, block_1_strength=0.5, block_5_strength=1.0, block_20_strength=0.3
    )
    assert strengths == (0, 0.5, 0, 0, 0, 1)
    assert text.startswith("░▒░░░█\ncustom: 2 of 6 blocks")
    assert "not used: the strengths of blocks 20; the model has 6 blocks" in text
    assert "images" not in shown  # the page draws the curve where it is edited
    (_, text), _ = rig.run_and_show(BUILDER, pattern="uniform", block_1_strength=0.5, curve="[[0, 1]]")
    assert "pattern uniform does not read them" in text
    assert "not used: the drawn curve" in text


def test_what_cannot_go_together_is_refused_before_anything_runs():
    check = BY_ID[BUILDER].check
    assert check is not None
    ask = answering(check)
    assert ask(pattern="gaussian_peak", peak_block=3, num_blocks=6, curve="") is True
    assert ask(pattern="uniform", peak_block=20, num_blocks=6, curve="") is True
    refused = ask(pattern="gaussian_peak", peak_block=20, num_blocks=6, curve="")
    assert refused == "peak_block is 20 and the model has 6 blocks; give 0 to 5"
    assert "draw one" in str(ask(pattern="curve", peak_block=0, num_blocks=6, curve=" "))
    assert "not understood" in str(ask(pattern="uniform", peak_block=0, num_blocks=6, curve="x"))
    assert "give 1 to 40" in str(ask(pattern="uniform", peak_block=0, num_blocks=41, curve=""))
    assert "is unknown" in str(ask(pattern="flat", peak_block=0, num_blocks=6, curve=""))


def test_every_tooltip_says_which_pattern_reads_the_widget():
    tooltips = {part.name: part.tooltip for part in BY_ID[BUILDER].inputs if isinstance(part, Widget)}
    for name in tooltips.keys() - {"pattern", "num_blocks", "base_strength"}:
        assert "Read by" in tooltips[name]


@pytest.mark.parametrize(
    ("digits", "name"),
    [
        ("000000", "none"),
        ("111111", "all"),
        ("110000", "early"),
        ("001100", "mid"),
        ("000011", "late"),
        ("111000", "first half"),
        ("101010", "alternating"),
        ("010101", "alternating"),
        ("100010", "sparse"),
        ("010010010", "sparse, every 3 blocks"),
        ("110100", "custom"),
    ],
)
def test_patterns_are_recognised(digits, name):
    assert detect([float(digit) for digit in digits]) == name


def test_slopes_are_recognised():
    assert detect([0.1, 0.2, 0.3, 0.4]) == "all, ramp up"
    assert detect([0, 0.9, 0.5, 0.1, 0, 0]) == "custom, ramp down"
    assert detect([0.1, 0.9, 0.5]) == "all, peak"
    assert detect([0.5, 0.1, 0.5]) == "all, uneven"
    assert ranges([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"
    assert analyse([0.5, 0.5, 0, 0, 0, 0])[1] == "pattern: early (early 2/2, mid 0/2, late 0/2)"
