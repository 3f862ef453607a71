"""Nodes by ComfyUI's current convention, also in its first versions, which knew fewer arguments."""

import asyncio
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from comfy_nodes.hosts import BY_ID

from latentloom.comfy import v3
from latentloom.comfy.schema import Node, Output, Widget


class _Input:
    def __init__(self, id: str, optional: bool, tooltip: str, extra_dict: dict[str, Any] | None = None) -> None:
        self.id, self.optional, self.tooltip, self.extra_dict = id, optional, tooltip, extra_dict or {}


class _WidgetInput(_Input):
    """Of ComfyUI 0.3.64: no `extra_dict` among its arguments."""

    def __init__(self, id: str, *, optional: bool, tooltip: str, default: Any, **limits: Any) -> None:
        assert "extra_dict" not in limits
        super().__init__(id, optional, tooltip)
        self.default, self.limits = default, limits


class _Output:
    def __init__(self, id: str | None = None, display_name: str | None = None, tooltip: str | None = None) -> None:
        self.id, self.display_name, self.tooltip = id, display_name, tooltip


@pytest.fixture(autouse=True)
def old_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    """`comfy_api.latest` as far as the nodes use it."""
    widget = SimpleNamespace(Input=_WidgetInput)
    io = SimpleNamespace(
        **dict.fromkeys(("Combo", "String", "Boolean", "Int", "Float"), widget),
        Custom=lambda name: SimpleNamespace(Input=_Input, Output=_Output),
        Schema=SimpleNamespace,
        Hidden=SimpleNamespace(unique_id="UNIQUE_ID"),
        ComfyNode=object,
        NodeOutput=lambda *values, ui: (values, ui),
    )
    latest = ModuleType("comfy_api.latest")
    vars(latest).update(io=io, ComfyExtension=object)
    monkeypatch.setitem(sys.modules, "comfy_api", ModuleType("comfy_api"))
    monkeypatch.setitem(sys.modules, "comfy_api.latest", latest)


def schema_of(node: Node) -> Any:
    return vars(v3.node_class(node))["define_schema"].__func__(object)


def test_all_nodes_are_in_the_extension():
    classes = asyncio.run(v3.extension(BY_ID.values()).get_node_list())
    assert [schema_of(node).node_id for node in BY_ID.values()] == [made.__name__ for made in classes]


def test_a_widget_of_our_own_kind_is_told_to_the_page():
    node = Node("X", "X", "X", "", (Widget("curve", "", "A curve.", kind="curve"),), (), run=tuple)
    (made,) = schema_of(node).inputs
    assert made.extra_dict == {"latentloom": "curve"}


def test_outputs_have_no_ids_that_could_be_an_inputs():
    schema = schema_of(BY_ID["WanVideoActivationEditor"])
    inputs, outputs = {part.id for part in schema.inputs}, {part.id for part in schema.outputs}
    assert not inputs & outputs
    assert [part.display_name for part in schema.outputs] == ["model", "text_embeds"]


def test_a_run_hands_on_values_and_what_is_shown():
    node = Node("X", "X", "X", "", (), (Output("y", "INT", ""),), run=lambda node_id: (f"of {node_id}",))
    cls = v3.node_class(node)
    called = SimpleNamespace(hidden=SimpleNamespace(unique_id="7"))
    assert cls.__dict__["execute"].__func__(called) == (("of 7",), {})
