"""The velocity's part of a sweep's page, and pictures for few blocks and for many."""

from pathlib import Path

import pytest
import torch

from latentloom.steering.sweep.attribution import Contributions
from latentloom.steering.sweep.parts import Units, part_families
from latentloom.steering.sweep.plots import Panel, plot_contributions, plot_maps
from latentloom.steering.sweep.report import velocity_section, velocity_table, write_sweep_report
from latentloom.steering.sweep.velocity import VelocitySweep


def sweep_of(num_blocks: int) -> tuple[VelocitySweep, dict, Units]:
    """Made-up changes: a part of k blocks moves the velocity by k, give or take a tenth."""
    units, windows = Units.of_blocks(num_blocks), Units.of_windows(3, num_blocks)
    families = part_families(["single", "prefix", "left_out", "presets", "windows"], units, windows, num_blocks)
    parts = [part for found in families.values() for part in found.values()]
    spread = torch.tensor([[-0.1, -0.1], [0.1, 0.1]])
    changes = {part: len(part.blocks) + spread for part in parts}
    return VelocitySweep((900.0, 300.0), changes, torch.full((2, 2), 0.25)), families, units


def test_the_page_shows_maps_and_a_table_with_intervals(tmp_path: Path):
    sweep, families, units = sweep_of(4)
    page = write_sweep_report(tmp_path, "Two pairs.", [velocity_section(sweep, families, units)])
    text = page.read_text()
    assert page == tmp_path / "report.html"
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == ["velocity.svg", "velocity_map.svg"]
    assert text.count("<img") == 2
    assert "another seed (floor)" in text
    assert "block 2 alone" in text
    assert "until" not in text  # windows say nothing about one call


def test_a_row_holds_mean_and_interval_and_every_timestep():
    sweep, families, units = sweep_of(4)
    columns, rows = velocity_table(sweep, {"left_out": families["left_out"]}, units.noun)
    assert columns == ["prompt swapped in", "blocks", "mean", "at 900", "at 300"]
    assert rows[0] == ["another seed (floor)", "", "0.250 (0.250-0.250)", "0.25", "0.25"]
    # two pairs: the mean's interval reaches 12.7062 standard errors, each 0.1
    assert rows[1] == ["all but 0", "1-3", "3.000 (1.729-4.271)", "3.00", "3.00"]
    assert len(rows) == 5


def test_a_deep_model_is_drawn_too(tmp_path: Path):
    sweep, families, units = sweep_of(40)
    deep = {"single": families["single"], "prefix": families["prefix"]}
    page = write_sweep_report(tmp_path, "Many blocks.", [velocity_section(sweep, deep, units)])
    assert "first 40" in page.read_text()


def test_wide_maps_stand_below_each_other_and_carry_no_numbers():
    few, many = (Panel("t", [str(number) for number in range(count)], torch.rand(3, count)) for count in (5, 40))
    side_by_side, stacked = plot_maps([few, few], list("abc"), "l", 1.0), plot_maps([many, many], list("abc"), "l", 1.0)
    beside, below = side_by_side.axes[:2], stacked.axes[:2]
    for figure in (side_by_side, stacked):
        figure.draw_without_rendering()
    assert beside[0].get_position().y0 == pytest.approx(beside[1].get_position().y0)
    assert below[0].get_position().x0 == pytest.approx(below[1].get_position().x0)
    assert [len(axis.texts) for axis in (*beside, *below)] == [15, 15, 0, 0]


def test_contributions_are_drawn_in_points():
    found = Contributions.of(torch.tensor([[0.5, 0.1], [0.3, 0.1]]))
    figure = plot_contributions({"colour": found, "shape": found}, ["0", "1"], "points", "block")
    heights = [
        [bar.get_extents().transformed(axis.transData.inverted()).height for bar in axis.patches]
        for axis in figure.axes
    ]
    assert heights == [pytest.approx([40.0, 10.0])] * 2
    assert [axis.get_title() for axis in figure.axes] == ["colour", "shape"]
