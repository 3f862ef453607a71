"""The workflows that ship fit the nodes as they are; that they also run is asked in a real ComfyUI."""

import json
from pathlib import Path
from typing import Any

import pytest

from latentloom.comfy.registry import NODES
from latentloom.comfy.schema import Widget

FOLDER = Path(__file__).resolve().parents[2] / "example_workflows"
BY_ID = {node.id: node for node in NODES}
TOPICS = ("simple", "amplified", "arithmetic", "control_vector", "database", "debug")
HOSTS = {"native": "wrapper", "wan_video_wrapper": "native"}
NAMES = [f"{topic}_{host}" for topic in TOPICS for host in HOSTS]


def read(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def ours(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    return [node for node in workflow["nodes"] if node_of(node)]


def node_of(saved: dict[str, Any]) -> Any:
    return BY_ID.get(saved["type"])


def test_each_topic_is_there_for_both_hosts():
    assert sorted(path.stem for path in FOLDER.glob("*.json")) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_nodes_of_ours_are_registered_and_of_one_host(name):
    workflow = read(name)
    unknown = [
        node["type"] for node in workflow["nodes"] if node["type"].startswith("LatentLoom") and not node_of(node)
    ]
    assert unknown == []
    other = next(other for host, other in HOSTS.items() if name.endswith(host))
    assert [node["type"] for node in ours(workflow) if node_of(node).host == other] == []
    assert ours(workflow)


@pytest.mark.parametrize("name", NAMES)
def test_widgets_have_the_values_that_the_node_takes(name):
    for saved in ours(read(name)):
        widgets = [part for part in node_of(saved).inputs if isinstance(part, Widget) and not part.linked]
        values = saved.get("widgets_values", [])
        assert len(values) == len(widgets), saved["type"]
        for widget, value in zip(widgets, values, strict=True):
            if widget.type == "COMBO" and not callable(widget.options):
                assert value in widget.options
            elif widget.type in ("INT", "FLOAT"):
                assert widget.low is None or widget.low <= value
                assert widget.high is None or value <= widget.high


@pytest.mark.parametrize("name", NAMES)
def test_links_join_sockets_of_one_type(name):
    workflow = read(name)
    saved = {node["id"]: node for node in workflow["nodes"]}
    for _, origin, slot, target, place, kind in workflow["links"]:
        source, sink = saved[origin], saved[target]
        if node_of(source):
            assert node_of(source).outputs[slot].type == kind
        if node_of(sink):
            types = {part.name: part.type for part in node_of(sink).inputs}
            assert types[sink["inputs"][place]["name"]] == kind


@pytest.mark.parametrize("name", NAMES)
def test_a_note_says_what_it_shows(name):
    notes = [node for node in read(name)["nodes"] if node["type"] == "MarkdownNote"]
    assert len(notes) == 1
    assert len(notes[0]["widgets_values"][0]) > 100
