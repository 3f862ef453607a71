"""Times field, loss and gradient of 125 features, beside an implementation class by class and beside the floor.

The floor is what no implementation does without: the distances (torch.cdist), two softmaxes at each of three
temperatures and one batched matrix product, without a scale, norms, a loss or a gradient. It is timed twice: on inputs
that lie stacked already, and together with bringing the features' samples together, which ours has to do as well.
Run: .venv/bin/python benchmarks/bench_drifting.py > benchmarks/results/drifting.txt
"""

import platform
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from latentloom.drifting.field import drifting_losses
from latentloom.drifting.field_by_class import drifting_losses_by_class
from latentloom.drifting.guidance import unconditional_weight

TEMPERATURES = (0.02, 0.05, 0.2)
#: By channels, the locations of each group of features: global statistics and those of parts of the map, as of a
#: ResNet with stages of 64 to 512 channels. Their sum is 125.
LOCATIONS = {
    64: (1, 1, 16, 16, 4, 4),
    128: (1, 1, 16, 16, 4, 4),
    256: (1, 1, 16, 4, 4, 1, 1),
    512: (1, 1, 4, 4, 1, 1, 1),
}
ROUNDS = 15
COLUMNS = {
    **{"ours": 8, "by class": 10, "floor": 8, "floor + stacking": 18, "ours/floor": 12, "ours/(+ stacking)": 19},
    **{"by class/ours": 15, "gradients differ by": 21},
}


class Sizes(NamedTuple):
    num_classes: int
    num_gen: int
    num_pos: int
    num_queue: int
    num_unc: int


SETTINGS = [Sizes(4, 4, 16, 16, 8), Sizes(8, 4, 64, 64, 32), Sizes(4, 16, 32, 0, 16), Sizes(2, 64, 64, 0, 16)]


def main() -> None:
    num_features = sum(sum(locations) for locations in LOCATIONS.values())
    print(f"{num_features} features of {', '.join(map(str, LOCATIONS))} channels, 3 temperatures, float32")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), {platform.machine()}")
    print(f"milliseconds, medians of {ROUNDS} rounds in which all take turns (by class: of 3)")
    print(f"{'C, G, P, queue, unc':22}" + "".join(f"{name:>{width}}" for name, width in COLUMNS.items()))
    for sizes in SETTINGS:
        report(sizes)


def report(sizes: Sizes) -> None:
    gen, neg, pos, weights = samples(sizes)

    def ours() -> list[Tensor]:
        return gradients(drifting_losses(gen, pos, neg, temperatures=TEMPERATURES, weight_neg=weights).sum(), gen)

    def by_class() -> list[Tensor]:
        return gradients(
            drifting_losses_by_class(gen, pos, neg, temperatures=TEMPERATURES, weight_neg=weights).sum(), gen
        )

    stacks = [stacked(gen, neg, pos, width) for width in LOCATIONS]
    difference = max(float((one - other).norm() / other.norm()) for one, other in zip(ours(), by_class(), strict=True))
    ways = {
        "ours": ours,
        "floor": lambda: [floor(*stack) for stack in stacks],
        "stacking": lambda: [floor(*stacked(gen, neg, pos, width)) for width in LOCATIONS],
    }
    seconds = medians(ways, ROUNDS) | medians({"by class": by_class}, 3)
    cells = [seconds[name] * 1000 for name in ("ours", "by class", "floor", "stacking")]
    cells += [seconds["ours"] / seconds[name] for name in ("floor", "stacking")]
    cells += [seconds["by class"] / seconds["ours"]]
    formats = (".1f", ".1f", ".1f", ".1f", ".2f", ".2f", ".1f")
    texts = [*(format(cell, kind) for cell, kind in zip(cells, formats, strict=True)), f"{difference:.1e}"]
    line = "".join(f"{text:>{width}}" for text, width in zip(texts, COLUMNS.values(), strict=True))
    print(f"{', '.join(map(str, sizes)):22}{line}", flush=True)


def samples(sizes: Sizes) -> tuple[list[Tensor], list[Tensor], list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(0)

    def draw(count: int, locations: int, width: int) -> Tensor:
        return torch.randn(sizes.num_classes, count, locations, width, generator=generator)

    shapes = [(locations, width) for width, groups in LOCATIONS.items() for locations in groups]
    gen = [draw(sizes.num_gen, *shape).requires_grad_() for shape in shapes]
    neg = [draw(sizes.num_queue + sizes.num_unc, *shape) for shape in shapes]
    pos = [draw(sizes.num_pos, *shape) + 0.2 for shape in shapes]
    alpha = torch.linspace(1, 3, sizes.num_classes)
    unconditional = unconditional_weight(alpha, sizes.num_gen, sizes.num_unc)
    weights = torch.ones(sizes.num_classes, sizes.num_queue + sizes.num_unc)
    weights[:, sizes.num_queue :] = unconditional[:, None]
    return gen, neg, pos, weights


def stacked(gen: list[Tensor], neg: list[Tensor], pos: list[Tensor], width: int) -> tuple[Tensor, Tensor]:
    """Queries and targets of all features of one width, ready for the floor."""
    queries = [part.detach().transpose(1, 2).flatten(0, 1) for part in gen if part.shape[-1] == width]
    targets = [
        torch.cat(parts, dim=1).detach().transpose(1, 2).flatten(0, 1)
        for parts in zip(gen, neg, pos, strict=True)
        if parts[0].shape[-1] == width
    ]
    return torch.cat(queries), torch.cat(targets)


def floor(queries: Tensor, targets: Tensor) -> Tensor:
    distances = torch.cdist(queries, targets)
    logits = distances.unsqueeze(1) * torch.tensor([-1 / temperature for temperature in TEMPERATURES])[:, None, None]
    rows, _ = logits.softmax(-1), logits.softmax(-2)
    return torch.bmm(rows.flatten(1, 2), targets)


def gradients(loss: Tensor, gen: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(loss, gen))


def medians(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds of each way, taking turns so that a busy moment of the machine meets them all."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()
    for _ in range(rounds):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in times.items()}


if __name__ == "__main__":
    main()
