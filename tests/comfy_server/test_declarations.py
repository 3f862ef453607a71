"""ComfyUI offers every node as it is declared, and refuses in its own words what cannot be."""

from pathlib import Path
from typing import Any

import pytest
import torch
from comfy_server.api import Client, FailedError, RefusedError
from comfy_server.graphs import EDITOR, MODEL, HostName, graph
from comfy_server.server import serving

from latentloom.comfy.registry import NODES
from latentloom.comfy.schema import Node, Widget


@pytest.fixture(scope="module")
def offered(client: Client) -> dict[str, Any]:
    """ComfyUI's own description of all nodes."""
    return client.get("/object_info")


@pytest.mark.parametrize("node", NODES, ids=lambda node: node.id)
def test_a_node_is_offered_as_it_is_declared(offered: dict[str, Any], node: Node):
    info = offered[node.id]
    assert info["category"] == node.category
    assert info["display_name"] == node.name
    assert info["output_node"] == node.shows
    assert info["output"] == [output.type for output in node.outputs]
    assert info["output_name"] == [output.name for output in node.outputs]
    for kind, optional in (("required", False), ("optional", True)):
        declared = [part for part in node.inputs if part.optional is optional]
        inputs = info["input"].get(kind, {})
        assert info["input_order"].get(kind, []) == [part.name for part in declared]
        assert [type_of(inputs[part.name]) for part in declared] == [part.type for part in declared]
        for part in declared:
            options = inputs[part.name][1]
            assert options["tooltip"] == part.tooltip
            if isinstance(part, Widget):
                assert options["default"] == part.default
                assert (options.get("min"), options.get("max")) == (part.low, part.high)


def type_of(given: list[Any]) -> str:
    """Of an input, whose choices some versions give in the place of its type."""
    return "COMBO" if isinstance(given[0], list) else given[0]


def test_a_pattern_that_is_none_is_refused_before_anything_runs(client, host):
    with pytest.raises(RefusedError) as caught:
        client.run(graph(host, {"block_activations": "0-x"}))
    (error,) = caught.value.node_errors[EDITOR]["errors"]
    assert error["type"] == "custom_validation_failed"
    assert "0-x" in error["details"]


def test_a_pattern_for_another_model_is_refused_when_the_node_runs(client, host):
    with pytest.raises(FailedError, match="for 40 blocks and this model has 6"):
        client.run(graph(host, {"block_activations": "01" * 20}))


def test_a_first_run_of_a_fresh_server_is_like_a_later_one(client, server, checkout: Path, tmp_path: Path):
    hosts: list[HostName] = ["native", "wrapper"] if server.has_wrapper else ["native"]
    edit = {"block_activations": "101010", "injection_strength": 0.5, "injection_mode": "both"}
    with serving(checkout, tmp_path / "base") as fresh:
        anew = Client(fresh)
        cold = [anew.run(graph(host, edit)) for host in hosts]
    for host, result in zip(hosts, cold, strict=True):
        client.run(graph(host))
        warm = client.run(graph(host, edit))
        assert MODEL in warm.cached
        assert torch.equal(result.latent, warm.latent)
