"""What saved ComfyUI workflows depend on: ids, sockets, widgets in order; and that the pack loads without ComfyUI.

A change that is meant is written down by `LATENTLOOM_PIN=1 pytest tests/contracts/test_comfy_nodes.py`; widgets may
only be added at the end, and never go.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from latentloom.comfy.extension import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from latentloom.comfy.registry import NODES
from latentloom.comfy.schema import HOST_MODEL, HOST_TEXT, Node, Socket, Widget, native_id

ROOT = Path(__file__).resolve().parents[2]
PINNED = Path(__file__).with_name("comfy_nodes.json")

#: From ../shared/specs/002_….txt.
DOCUMENTED = (
    "WanVideoActivationEditor",
    "WanVideoBlockActivationBuilder",
    "WanVideoBlockActivationViewer",
    "WanVideoEmbeddingAnalyzer",
    "WanVideoVectorDifference",
    "WanVideoVectorArithmetic",
    "WanVideoVectorInterpolation",
    "WanVideoEmbeddingDatabase",
    "WanVideoEmbeddingAmplifier",
    "WanVideoProjectionBooster",
    "WanVideoLatentEncoder",
    "WanVideoLatentInjector",
    "WanVideoDirectInjector",
    "WanVideoInjectionTester",
)


def contract_of(node: Node) -> dict[str, list[str]]:
    """A node as saved workflows see it, one line per socket and widget."""
    sockets = [
        f"{part.name}: {part.type}{' (optional)' * part.optional}" for part in node.inputs if isinstance(part, Socket)
    ]
    widgets = [
        f"{part.name}: {choices_of(part)} = {part.default!r}" for part in node.inputs if isinstance(part, Widget)
    ]
    return {
        "sockets": sockets,
        "widgets": widgets,
        "outputs": [f"{output.name}: {output.type}" for output in node.outputs],
    }


def choices_of(widget: Widget) -> str:
    # files come and go; what can be chosen otherwise is pinned
    if widget.type == "COMBO":
        return "files" if callable(widget.options) else "|".join(widget.options)
    return widget.type


@pytest.fixture(scope="module")
def pinned() -> dict[str, Any]:
    if os.environ.get("LATENTLOOM_PIN"):
        contracts = {node.id: contract_of(node) for node in sorted(NODES, key=lambda node: node.id)}
        PINNED.write_text(json.dumps(contracts, indent=1) + "\n", encoding="utf-8")
    return json.loads(PINNED.read_text(encoding="utf-8"))


def test_no_id_is_defined_twice():
    assert [name for name, count in Counter(node.id for node in NODES).items() if count > 1] == []


def test_every_node_of_the_document_is_there():
    assert set(DOCUMENTED) - {node.id for node in NODES} == set()


def test_the_pinned_nodes_are_those_that_are_there(pinned):
    assert list(pinned) == sorted(node.id for node in NODES)


@pytest.mark.parametrize("node", NODES, ids=lambda node: node.id)
def test_sockets_and_widgets_are_as_pinned(node, pinned):
    assert contract_of(node) == pinned[node.id]


@pytest.mark.parametrize("node", [node for node in NODES if node.host == "wrapper"], ids=lambda node: node.id)
def test_a_node_of_one_host_has_a_twin_in_the_other(node):
    twin = next(other for other in NODES if other.id == native_id(node.id))
    assert twin.host == "native"
    here, there = ([part.name for part in each.inputs] for each in (node, twin))
    # only one host's sampler may need some of them, such as the wrapper's shift and size; these come last
    assert here[: len(there)] == there


@pytest.mark.parametrize("node", NODES, ids=lambda node: node.id)
def test_a_declaration_is_whole(node):
    types = {part.type for part in (*node.inputs, *node.outputs)}
    assert types.isdisjoint({HOST_MODEL, HOST_TEXT})
    names = [part.name for part in node.inputs]
    assert len(set(names)) == len(names)
    assert all(part.tooltip.endswith(".") for part in (*node.inputs, *node.outputs)), "a tooltip is a sentence"
    assert node.description.endswith(".")
    assert "\n" not in node.name


@pytest.mark.parametrize("node", NODES, ids=lambda node: node.id)
def test_the_first_convention_lists_every_input_in_order(node):
    types = NODE_CLASS_MAPPINGS[node.id].INPUT_TYPES()
    required = [part.name for part in node.inputs if not part.optional]
    optional = [part.name for part in node.inputs if part.optional]
    assert list(types["required"]) == required
    assert list(types["optional"]) == optional
    assert NODE_DISPLAY_NAME_MAPPINGS[node.id] == node.name


PROGRAM = """
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in {hidden!r} else find(name, *rest)
spec = importlib.util.spec_from_file_location("custom_nodes.pack", {door!r}, submodule_search_locations=[{root!r}])
door = importlib.util.module_from_spec(spec)
spec.loader.exec_module(door)
print(len(door.NODE_CLASS_MAPPINGS), hasattr(door, "comfy_entrypoint"), door.WEB_DIRECTORY)
print([name for name in sys.modules if name.split(".")[0] in ("comfy", "nodes", "folder_paths", "server")])
print({source!r} in sys.path)
"""


@pytest.mark.parametrize("hidden", [[], ["latentloom"]], ids=["installed", "cloned"])
def test_the_folder_is_a_node_pack_where_comfyui_is_older_or_absent(tmp_path, hidden):
    source = str(ROOT / "src")
    program = PROGRAM.format(door=str(ROOT / "__init__.py"), root=str(ROOT), source=source, hidden=hidden)
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    mappings, modules, on_path = done.stdout.splitlines()
    assert mappings == f"{len(NODES)} False ./web"
    assert modules == "[]"
    # an editable installation puts the same folder there by itself
    assert on_path == "True" or not hidden
