"""Activation editing inside the blocks of a frozen Wan transformer, embedding arithmetic, and measuring both."""

from importlib import import_module
from typing import TYPE_CHECKING

__all__ = [
    "ActivationsPayload",
    "BlockActivations",
    "ControlVector",
    "DirectionPayload",
    "Operation",
    "Plan",
    "PlanePayload",
    "PromptPayload",
    "RowsPayload",
    "ablate_span",
    "add",
    "amplify",
    "apply_plan",
    "bind",
    "block_strengths",
    "boost_projection",
    "build_plan",
    "capture_activations",
    "combine",
    "compare",
    "difference",
    "fit_control",
    "functional_effect",
    "inject_direct",
    "interpolate",
    "learn_control",
    "load_activations",
    "load_control",
    "load_plan_config",
    "measure_bottleneck",
    "multiply",
    "noised",
    "normalize",
    "project",
    "record_pairs",
    "relative_difference",
    "save_activations",
    "save_control",
    "scale",
    "steer",
    "weighted_sum",
]

_MODULES = {
    "ActivationsPayload": "plan",
    "BlockActivations": "capture",
    "ControlVector": "control.vector",
    "DirectionPayload": "plan",
    "Operation": "plan",
    "Plan": "plan",
    "PlanePayload": "plan",
    "PromptPayload": "plan",
    "RowsPayload": "plan",
    "ablate_span": "control.span",
    "add": "embeddings.arithmetic",
    "amplify": "embeddings.amplify",
    "apply_plan": "apply",
    "bind": "hosts.diffusers",
    "block_strengths": "blocks",
    "boost_projection": "embeddings.projected",
    "build_plan": "plan_file",
    "capture_activations": "capture",
    "combine": "control.vector",
    "compare": "measure",
    "difference": "embeddings.arithmetic",
    "fit_control": "control.fit",
    "functional_effect": "functional",
    "inject_direct": "embeddings.projected",
    "interpolate": "embeddings.interpolation",
    "learn_control": "control.learned",
    "load_activations": "capture",
    "load_control": "control.files",
    "load_plan_config": "plan_file",
    "measure_bottleneck": "measure",
    "multiply": "embeddings.arithmetic",
    "noised": "capture",
    "normalize": "embeddings.arithmetic",
    "project": "projection",
    "record_pairs": "control.record",
    "relative_difference": "embeddings.difference",
    "save_activations": "capture",
    "save_control": "control.files",
    "scale": "embeddings.arithmetic",
    "steer": "hosts.diffusers",
    "weighted_sum": "embeddings.arithmetic",
}

if TYPE_CHECKING:
    from latentloom.steering.apply import apply_plan
    from latentloom.steering.blocks import block_strengths
    from latentloom.steering.capture import (
        BlockActivations,
        capture_activations,
        load_activations,
        noised,
        save_activations,
    )
    from latentloom.steering.control.files import load_control, save_control
    from latentloom.steering.control.fit import fit_control
    from latentloom.steering.control.learned import learn_control
    from latentloom.steering.control.record import record_pairs
    from latentloom.steering.control.span import ablate_span
    from latentloom.steering.control.vector import ControlVector, combine
    from latentloom.steering.embeddings.amplify import amplify
    from latentloom.steering.embeddings.arithmetic import add, difference, multiply, normalize, scale, weighted_sum
    from latentloom.steering.embeddings.difference import relative_difference
    from latentloom.steering.embeddings.interpolation import interpolate
    from latentloom.steering.embeddings.projected import boost_projection, inject_direct
    from latentloom.steering.functional import functional_effect
    from latentloom.steering.hosts.diffusers import bind, steer
    from latentloom.steering.measure import compare, measure_bottleneck
    from latentloom.steering.plan import (
        ActivationsPayload,
        DirectionPayload,
        Operation,
        Plan,
        PlanePayload,
        PromptPayload,
        RowsPayload,
    )
    from latentloom.steering.plan_file import build_plan, load_plan_config
    from latentloom.steering.projection import project
else:  # plans are checked and files are named without torch, which takes seconds to import

    def __getattr__(name: str) -> object:
        """A public name, from its module, which is imported when the name is first asked for."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
