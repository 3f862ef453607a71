"""Tiny trainings of a sharded bridge, for the processes that a test spawns."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tiny_bridge import make_training
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from latentloom.bridge.checkpoint import export_bridge
from latentloom.bridge.sharding import clip_gradients, whole_tensors
from latentloom.bridge.train import BridgeTraining
from latentloom.runs.process_group import wait_for_all
from latentloom.storage import write_json
from latentloom.training import TrainedWeights

STEPS = 4


def train_sharded(rank: int, cases: list[Mapping[str, Any]], folder: str) -> None:
    """Train with each settings in turn, once whole, once stopped after two steps and resumed.

    The first process leaves found.json: the measures of both, and whether their weights are the same; an export in a
    folder by the case's number.
    """
    _clip(rank, folder)
    found = []
    for number, settings in enumerate(cases):
        place = Path(folder) / str(number)
        place.mkdir(exist_ok=True)
        whole = make_training(settings, place / f"rank{rank}")
        measures = [whole.step(step, measures=True) for step in range(STEPS)]
        export_bridge(place, STEPS, whole.bridge, {})
        stopped = make_training(settings, place / f"rank{rank}")
        for step in range(2):
            stopped.step(step, measures=False)
        stopped.save(place / "state.safetensors", 2)
        wait_for_all()
        torch.manual_seed(123)  # whatever else a process drew before it goes on
        resumed = make_training(settings, place / f"rank{rank}")
        first = resumed.load(place / "state.safetensors")
        again = [resumed.step(step, measures=True) for step in range(first, STEPS)]
        weights, theirs = trained_weights(whole), trained_weights(resumed)
        found.append(
            {
                "measures": measures,
                "resumed": again,
                "num_trained": len(weights),
                "is_same": all(torch.equal(value, theirs[name]) for name, value in weights.items()),
                "share_here": _share_here(whole),
            }
        )
    if rank == 0:
        write_json(Path(folder) / "found.json", found)


def trained_weights(training: BridgeTraining) -> dict[str, torch.Tensor]:
    """Trained weights as whole tensors; of a sharded training in the first process alone."""
    return whole_tensors(TrainedWeights(training.bridge).state_dict())


def _clip(rank: int, folder: str) -> None:
    """Clip a whole and a sharded gradient together; the first process leaves both norms and what is left."""
    generator = torch.Generator().manual_seed(5)
    first, second = (torch.randn(5, 3, generator=generator) for _ in range(2))
    whole = nn.Parameter(torch.zeros(5, 3))
    mesh = init_device_mesh("cpu", (2,))
    sharded = nn.Parameter(distribute_tensor(torch.zeros(5, 3), mesh, [Shard(0)]))
    whole.grad, sharded.grad = first.clone(), distribute_tensor(second, mesh, [Shard(0)])
    norm = clip_gradients([whole, sharded], 0.5)
    left = whole_tensors({"whole": whole.grad, "sharded": sharded.grad})
    if rank == 0:
        alone = [nn.Parameter(torch.zeros(5, 3)) for _ in range(2)]
        for weight, gradient in zip(alone, (first, second), strict=True):
            weight.grad = gradient.clone()
        expected = nn.utils.clip_grad_norm_(alone, 0.5)
        gradients = [weight.grad for weight in alone if weight.grad is not None]
        values = {"norm": norm.item(), "expected": expected.item()}
        values["difference"] = float((torch.cat([left["whole"], left["sharded"]]) - torch.cat(gradients)).abs().max())
        write_json(Path(folder) / "clipped.json", values)


def _share_here(training: BridgeTraining) -> float:
    """Of the layers' weights, the share that lies in this process."""
    layers = list(training.bridge.backbone.decoder.get_submodule("layers").parameters())
    here = sum(weight.to_local().numel() if isinstance(weight, DTensor) else weight.numel() for weight in layers)
    return here / sum(weight.numel() for weight in layers)
