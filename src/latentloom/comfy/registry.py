"""All nodes of the pack, in the order of the menu."""

from latentloom.comfy.nodes import activation, micro_wan
from latentloom.comfy.schema import Node

NODES: tuple[Node, ...] = (*activation.NODES, *micro_wan.NODES)
"""Every node, each once per host."""
