"""All nodes of the pack, in the order of the menu."""

from latentloom.comfy.nodes import (
    activation,
    analysis,
    arithmetic,
    control,
    database,
    delta,
    latent,
    micro_wan,
    projected,
    strengths,
    viewing,
)
from latentloom.comfy.schema import Node

NODES: tuple[Node, ...] = (
    *activation.NODES,
    *projected.NODES,
    *latent.NODES,
    *strengths.NODES,
    *control.NODES,
    *delta.NODES,
    *viewing.NODES,
    *arithmetic.NODES,
    *analysis.NODES,
    *database.NODES,
    *micro_wan.NODES,
)
"""Every node, each once per host."""
