"""What is really installed on a model, whatever the records say that editors leave; and the model without it."""

from typing import Any

from latentloom.steering import Plan
from latentloom.steering.hosts import comfy_native, wan_video_wrapper
from latentloom.steering.hosts.official import CarriedPlan


def plan_of(model: Any) -> Plan | None:
    """All operations that a model's runs will be changed by, in order; None where it carries none.

    Args:
        model: a patcher of either host.
    """
    options = getattr(model, "model_options", {}).get("transformer_options", {})
    wrapped = getattr(model, "wrappers", {}).get("diffusion_model", {}).get(comfy_native.KEY, [])
    carried = [*wrapped, options.get(wan_video_wrapper.PLAN)]
    operations = [operation for each in carried if isinstance(each, CarriedPlan) for operation in each.plan.operations]
    return Plan(tuple(operations)) if operations else None


def without_plan(model: Any) -> Any:
    """A clone of a model whose runs none of our operations change; what other nodes changed stays."""
    clone = model.clone()
    options = dict(clone.model_options.get("transformer_options", {}))
    if options.pop(wan_video_wrapper.PLAN, None) is not None:
        clone.model_options = {**clone.model_options, "transformer_options": options}
    if hasattr(clone, "wrappers"):
        clone.wrappers = {
            kind: {key: list(some) for key, some in keyed.items() if key != comfy_native.KEY}
            for kind, keyed in clone.wrappers.items()
        }
    return clone
