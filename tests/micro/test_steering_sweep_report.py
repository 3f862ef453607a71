"""What a sweep over MicroWan says and shows, from made-up readings."""

from pathlib import Path

import pytest
import torch

from latentloom.micro.attributes import Attributes
from latentloom.micro.score import Question
from latentloom.micro.steering_sweep import AttributeSweep, QuestionPair
from latentloom.micro.steering_sweep_report import (
    attribute_section,
    clips_section,
    contributions_of,
    contributions_table,
    outcome_table,
    verdict,
    window_contributions,
    window_section,
)
from latentloom.steering.sweep.parts import Units, part_families, plain_orders
from latentloom.steering.sweep.report import write_sweep_report

BASE = Attributes("red", "circle", "small", "left", "black")
INJECTED = Attributes("blue", "square", "large", "right", "white")
UNITS, WINDOWS = Units.of_blocks(3), Units.of_windows(2, 3)
FAMILIES = part_families(["single", "prefix", "suffix", "windows"], UNITS, WINDOWS, 3)
PAIRS = [QuestionPair(Question("base", BASE), Question("injected", INJECTED), seed) for seed in range(10)]


@pytest.fixture
def swept() -> AttributeSweep:
    """Colour sits in block 0; shape needs 1 and 2 together; the rest never changes. All of it in the last window."""

    def shown(part) -> Attributes:
        late = part.window[1] == 1
        return Attributes(
            "blue" if 0 in part.blocks and late else "red",
            "square" if {1, 2} <= set(part.blocks) and late else "circle",
            *("small", "left", "black"),
        )

    parts = [*UNITS.subsets(), *(part for found in FAMILIES.values() for part in found.values())]
    return AttributeSweep(PAIRS, {part: [shown(part)] * len(PAIRS) for part in parts})


def test_exact_contributions_find_the_blocks(swept):
    found = contributions_of(swept, UNITS)
    torch.testing.assert_close(found["colour"].mean, torch.tensor([1.0, 0.0, 0.0]))
    torch.testing.assert_close(found["shape"].mean, torch.tensor([0.0, 0.5, 0.5]))
    assert found["size"].mean.tolist() == [0.0] * 3
    assert contributions_table(found, UNITS)[1] == [
        ["0", "100.0 (100 to 100)", *["0.0 (0 to 0)"] * 4],
        ["1", "0.0 (0 to 0)", "50.0 (50 to 50)", *["0.0 (0 to 0)"] * 3],
        ["2", "0.0 (0 to 0)", "50.0 (50 to 50)", *["0.0 (0 to 0)"] * 3],
        ["sum", "100.0", "100.0", "0.0", "0.0", "0.0"],
    ]


def test_the_two_plain_orders_need_prefixes_and_suffixes_alone(swept):
    needed = {part: swept.readings[part] for family in ("prefix", "suffix") for part in FAMILIES[family].values()}
    needed[UNITS.join([])] = swept.readings[UNITS.join([])]
    found = contributions_of(AttributeSweep(PAIRS, needed), UNITS, plain_orders(3))
    assert found["shape"].mean.tolist() == [0.0, 0.5, 0.5]


def test_windows_contribute_too(swept):
    found = window_contributions(swept, WINDOWS)
    assert found["colour"].mean.tolist() == [0.0, 1.0]


def test_the_verdict_names_the_blocks_in_plain_words(swept):
    sentences = verdict(swept, UNITS.every(), contributions_of(swept, UNITS), UNITS)
    assert sentences[0].startswith(
        "With the other prompt in all blocks the clips follow it: colour in 100.0 (72-100) %, shape in 100.0"
    )
    assert sentences[1] == "colour: of 100 points, by block: 0 (100)."
    assert sentences[2] == "shape: of 100 points, by block: 1 (50), 2 (50)."
    assert sentences[3] == "size: of 0 points, by block: no block surely."


def test_the_table_holds_percent_and_wilson_intervals(swept):
    columns, rows = outcome_table(swept, {"single": FAMILIES["single"]}, "block")
    assert columns == ["prompt swapped in", "colour", "shape", "size", "motion", "background"]
    assert rows[0] == ["block 0 alone", "100.0 (72-100)", *["0.0 (0-28)"] * 4]
    assert [row[0] for row in rows] == ["block 0 alone", "block 1 alone", "block 2 alone"]


def test_the_page_holds_every_section(swept, tmp_path: Path):
    contributions = contributions_of(swept, UNITS)
    frames = torch.zeros(3, 48, 48, 3, dtype=torch.uint8)
    sections = [
        attribute_section(swept, FAMILIES, UNITS, contributions, "exact Shapley values"),
        window_section(swept, FAMILIES, WINDOWS, window_contributions(swept, WINDOWS)),
        clips_section([("Base: a red circle", [("block 0", frames, 8)])]),
    ]
    text = write_sweep_report(tmp_path, "Ten pairs.", sections).read_text()
    for words in ("Which blocks carry which attribute", "When in the schedule", "until 0.5", "window 0-0.5 alone"):
        assert words in text
    assert text.count("<video") == 1
    names = ["attributes", "fates", "window_contributions", "windows"]
    assert sorted(path.stem for path in (tmp_path / "plots").iterdir()) == names


def test_without_contributions_the_map_stands_alone(swept, tmp_path: Path):
    write_sweep_report(tmp_path, "Ten pairs.", [attribute_section(swept, FAMILIES, UNITS, {}, "")])
    assert sorted(path.stem for path in (tmp_path / "plots").iterdir()) == ["attributes", "fates"]
