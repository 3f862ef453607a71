"""Where a row of layers is cut into pipeline stages, and what every stage needs of its device's memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from latentloom.errors import ConfigError
from latentloom.finetune.block_swap import swapped_per_stage
from latentloom.finetune.config import FinetuneConfig
from latentloom.finetune.costs import LayerCost, known_costs, layer_costs

__all__ = ["PLAN_COLUMNS", "LayerCost", "StagePlan", "known_costs", "layer_costs", "plan", "plan_rows", "split"]

PLAN_COLUMNS = (
    "Stage",
    "Layers",
    "Parameters",
    "Trained",
    "Weights GiB",
    "Gradients + optimizer GiB",
    "Activations GiB",
    "Total GiB",
    "On the CPU GiB",
)
"""Titles of the columns that `plan_rows` fills."""


@dataclass(frozen=True)
class StagePlan:
    """One pipeline stage; all sizes are bytes.

    Attributes:
        layers: names of its layers, first to last.
        num_parameters, num_trained: how many; adapters count in both.
        weights: on the device, trained ones included.
        training: gradients and the optimizer's state.
        activations: of all micro-batches that are under way at once, and of the layer that computes.
        waiting: frozen weights on the CPU.
    """

    layers: tuple[str, ...]
    num_parameters: int
    num_trained: int
    weights: int
    training: int
    activations: int
    waiting: int

    @property
    def total(self) -> int:
        """What the device must hold."""
        return self.weights + self.training + self.activations


def plan(config: FinetuneConfig, costs: Sequence[LayerCost]) -> list[StagePlan]:
    """Every stage of a run, first to last.

    Args:
        config: its `pipeline_stages`, `gradient_accumulation_steps` and `blocks_to_swap` count here.
        costs: from `layer_costs` or `known_costs`.

    Raises:
        ConfigError: more stages than layers.
    """
    num_micro_batches = config.gradient_accumulation_steps
    stages = [costs[start:stop] for start, stop in split(costs, config.pipeline_stages, num_micro_batches)]
    counts = [sum(cost.is_swappable for cost in stage) for stage in stages]
    swapped = swapped_per_stage(config.blocks_to_swap, counts)
    return [
        _stage_plan(stage, num_swapped, _under_way(number, len(stages), num_micro_batches))
        for number, (stage, num_swapped) in enumerate(zip(stages, swapped, strict=True))
    ]


def split(costs: Sequence[LayerCost], num_stages: int, num_micro_batches: int = 1) -> list[tuple[int, int]]:
    """The cut of a row into stages of consecutive layers, none empty, whose largest stage is as small as possible.

    Args:
        costs: of every layer of the row.
        num_stages: how many.
        num_micro_batches: per step; early stages hold the activations of several at once.

    Returns:
        Where each stage starts and stops.

    Raises:
        ConfigError: more stages than layers.
    """
    if not 1 <= num_stages <= len(costs):
        raise ConfigError(f"pipeline_stages = {num_stages} for a row of {len(costs)} layers; use 1 to {len(costs)}")

    def size(stage: int, start: int, stop: int) -> int:
        part, under_way = costs[start:stop], _under_way(stage, num_stages, num_micro_batches)
        return sum(_static(cost) for cost in part) + _activations(part, under_way)

    @cache
    def best(stage: int, start: int) -> tuple[int, tuple[int, ...]]:
        """The largest stage from this one on when it starts here, and where the stages stop."""
        if stage == num_stages - 1:
            return size(stage, start, len(costs)), (len(costs),)
        candidates = []
        for stop in range(start + 1, len(costs) - (num_stages - stage - 1) + 1):
            largest, stops = best(stage + 1, stop)
            candidates.append((max(size(stage, start, stop), largest), (stop, *stops)))
        return min(candidates, key=lambda candidate: candidate[0])

    _, stops = best(0, 0)
    return list(zip((0, *stops[:-1]), stops, strict=True))


def plan_rows(stages: Sequence[StagePlan]) -> list[tuple[str, ...]]:
    """The plan as a table's rows under `PLAN_COLUMNS`, for people: billions of parameters and GiB."""
    return [
        (
            str(number),
            stage.layers[0] if len(stage.layers) == 1 else f"{stage.layers[0]} to {stage.layers[-1]}",
            _number(stage.num_parameters),
            _number(stage.num_trained),
            *(
                f"{size / 2**30:.2f}"
                for size in (stage.weights, stage.training, stage.activations, stage.total, stage.waiting)
            ),
        )
        for number, stage in enumerate(stages)
    ]


def _stage_plan(costs: Sequence[LayerCost], num_swapped: int, under_way: int) -> StagePlan:
    blocks = [cost.frozen for cost in costs if cost.is_swappable]
    # A block is on the device at least while it computes.
    away = min(num_swapped, max(len(blocks) - 1, 0))
    waiting = sum(sorted(blocks)[:away])
    return StagePlan(
        layers=tuple(cost.name for cost in costs),
        num_parameters=sum(cost.num_parameters for cost in costs),
        num_trained=sum(cost.num_trained for cost in costs),
        weights=sum(cost.frozen + cost.trained for cost in costs) - waiting,
        training=sum(cost.training for cost in costs),
        activations=_activations(costs, under_way),
        waiting=waiting,
    )


def _under_way(stage: int, num_stages: int, num_micro_batches: int) -> int:
    """Micro-batches between their forward and their backward pass at once, in the one-forward-one-backward schedule."""
    return min(num_stages - stage, num_micro_batches)


def _static(cost: LayerCost) -> int:
    return cost.frozen + cost.trained + cost.training


def _activations(costs: Sequence[LayerCost], under_way: int) -> int:
    return sum(cost.kept for cost in costs) * under_way + max(cost.working for cost in costs)


def _number(count: int) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return str(count)
