"""What ComfyUI's page tells of the nodes, and what is written from their declarations."""

import json
import re
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from latentloom.comfy import pages
from latentloom.comfy.pages import ROOT, help_page, twin, write_pages
from latentloom.comfy.registry import NODES
from latentloom.comfy.schema import Node, Output, Socket, Widget, for_both_hosts

LINE = re.compile(r"[^\n]+")
WRITTEN = pages.pages()

EXAMPLE = Node(
    id="WanVideoExample",
    name="Example",
    topic="Test",
    description="Does nothing.",
    inputs=(
        Socket("model", "HOST_MODEL", "A model.", optional=True),
        *(Widget(f"block_{block}", False, f"Whether block {block} is on.") for block in range(3)),
        Widget("strength", 0.5, "A share | part.", low=0, high=1, step=0.05),
        Widget("pattern", "0" * 40, "Digits."),
        Widget("mode", "b", "A choice.", options=("a", "b")),
        Widget("name", "", "A file.", options=lambda: ["mine.safetensors"]),
    ),
    outputs=(Output("model", "HOST_MODEL", "The same {model}."),),
    run=lambda: (None,),
    help="Look out.",
)


def named(node: Node) -> str:
    return node.id


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_committed_is_what_would_be_written_now(name):
    path = ROOT / name
    assert path.is_file(), f"{name} is missing: run make comfy-pages"
    assert path.read_text(encoding="utf-8") == WRITTEN[name], f"{name} is out of date: run make comfy-pages"


def test_no_page_is_left_of_a_node_that_is_no_more():
    assert {path.stem for path in (ROOT / pages.HELP).glob("*.md")} == {node.id for node in NODES}


@pytest.mark.parametrize("node", NODES, ids=named)
def test_every_node_explains_itself(node):
    assert node.description.endswith(".")
    for part in (*node.inputs, *node.outputs):
        assert part.tooltip.endswith("."), f"{part.name} has no tooltip, or one that is no sentence"
    assert node.help.strip(), "no help"


def test_a_page_shows_inputs_outputs_notes_and_the_twin():
    wrapper, native = for_both_hosts(EXAMPLE)
    page = help_page(wrapper, (wrapper, native))
    rows = LINE.findall(page)
    assert rows[0] == "# Example (WanVideoWrapper)"
    assert "- **model** (WANVIDEOMODEL, optional): A model." in rows
    assert "- **block_0** to **block_2** (BOOLEAN, default off): Whether block 0 to 2 is on." in rows
    assert "- **strength** (FLOAT, 0 to 1, step 0.05, default 0.5): A share | part." in rows
    assert "- **pattern** (STRING, default 40 times 0): Digits." in rows
    assert "- **mode** (COMBO, one of a, b, default b): A choice." in rows
    assert "- **name** (COMBO): A file." in rows
    assert "- **model** (WANVIDEOMODEL): The same {model}." in rows
    assert "Look out." in rows
    assert rows[-1].endswith("there is **Example** (`LatentLoomExample`).")


def test_twins_find_each_other():
    wrapper, native = for_both_hosts(EXAMPLE)
    other = replace(native, id="LatentLoomOther")
    assert twin(wrapper, (other, native, wrapper)) is native
    assert twin(native, (other, native, wrapper)) is wrapper
    assert twin(other, (other, native, wrapper)) is None
    assert twin(EXAMPLE, (wrapper, native)) is None


def test_texts_keep_signs_that_the_translations_would_take_for_their_own():
    (texts,) = json.loads(pages.pages(for_both_hosts(EXAMPLE)[1:])[pages.TEXTS]).values()
    assert texts["inputs"]["strength"] == {"name": "strength", "tooltip": "A share {'|'} part."}
    assert texts["outputs"]["0"]["tooltip"] == "The same {'{'}model{'}'}."


def test_writing_again_changes_nothing_and_removes_what_is_gone(tmp_path: Path):
    write_pages(tmp_path)
    (tmp_path / pages.HELP / "WanVideoGone.md").write_text("old")
    write_pages(tmp_path)
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert written == set(WRITTEN)


def test_comfyui_manager_installs_what_the_project_depends_on_except_torch():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert lines == [name for name in project["dependencies"] if not re.match(r"torch\b", name)]
    assert len(lines) == len(project["dependencies"]) - 1
