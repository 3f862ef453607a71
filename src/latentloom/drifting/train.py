"""One training of a refiner, by drifting or by regression, from its first step to its last."""

import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from latentloom.drifting.class_batches import ClassBatch, ClassBatches, Refinable
from latentloom.drifting.config import FieldConfig
from latentloom.drifting.objective import DriftObjective, Features
from latentloom.drifting.optimizers import make_drift_optimizers, rate_factor
from latentloom.errors import ConfigError
from latentloom.runs import all_reduce_mean_, is_distributed, process_rank, track
from latentloom.runs.process_group import num_processes
from latentloom.storage import read_header
from latentloom.training import Curve, TrainedWeights, WeightAverage, load_state, save_state, set_learning_rate

STATE_NAME = "state.safetensors"
CURVE_NAME = "curve.jsonl"

RefinerT = TypeVar("RefinerT")


@dataclass(frozen=True, eq=False)
class Refined:
    """What a refiner made of a batch.

    Attributes:
        samples: refined; the gradient goes to them.
        target: what a regression compares them with.
        errors: of what the refiner was given, by the names of the curve.
    """

    samples: Float[Tensor, "N *shape"]
    target: Float[Tensor, "N *shape"]
    errors: dict[str, float]


class Refinement(Refinable, Generic[RefinerT]):
    """What is refined in a training: its samples, the holes in them, and the network that is trained to fill them.

    Attributes:
        network: what is trained.
        adam_names: parts of the names of those of its weights that Muon leaves to Adam.
        num_classes: of the training set.
        shape: of a sample.
    """

    network: nn.Module
    adam_names: Sequence[str]
    num_classes: int
    shape: Sequence[int]

    @abstractmethod
    def refine(self, model: nn.Module, batch: ClassBatch, *, measures: bool) -> Refined:
        """Fill a batch's holes and refine it.

        Args:
            model: the network, or what wraps it for several processes.
            batch: of this process.
            measures: also tell the errors of what the refiner was given.
        """

    @abstractmethod
    def refiner(self, network: nn.Module) -> RefinerT:
        """The network with what makes its input, for use."""


def run_training(
    refinement: Refinement[RefinerT],
    features: Features,
    config: FieldConfig,
    seed: int,
    folder: Path,
    device: torch.device,
    evaluate: Callable[[RefinerT], Mapping[str, float]] | None = None,
) -> RefinerT:
    """Train one refiner; where its folder holds an interrupted training, that one goes on.

    Args:
        refinement: what is trained on what.
        features: that drifting compares.
        config: the settings.
        seed: of draws.
        folder: of `state.safetensors` and `curve.jsonl`; the first process alone writes.
        device: to compute on.
        evaluate: measures the averaged weights at every checkpoint, in the first process.

    Returns:
        A refiner with the averaged weights.

    Raises:
        CheckpointError: the folder holds the state of another run.
        ConfigError: the training diverged.
    """
    training = _Training(refinement, features, config, seed, device)
    state = folder / STATE_NAME
    first = training.load(state) if state.exists() else 0
    curve = Curve(folder / CURVE_NAME, first) if process_rank() == 0 else None
    for step in track(range(first, config.steps), f"{config.objective}, seed {seed}"):
        started = time.monotonic()
        ends = step + 1 == config.steps
        logs, saves = step % config.log_every == 0 or ends, (step + 1) % config.save_every == 0 or ends
        measures = training.step(step, logs or saves)
        measures |= {"step_seconds": round(time.monotonic() - started, 4)}
        if curve is None:
            continue
        if saves and evaluate is not None:
            measures |= evaluate(training.averaged())
        if logs or saves:
            curve.append(step, **measures)
        if saves:  # after the line, which a training that goes on from this state keeps
            training.save(state, step + 1)
    return training.averaged()


class _Training(Generic[RefinerT]):
    """Everything that a step changes."""

    def __init__(
        self,
        refinement: Refinement[RefinerT],
        features: Features,
        config: FieldConfig,
        seed: int,
        device: torch.device,
    ) -> None:
        self.config = config
        self.device = device
        self.refinement = refinement
        self.batches = ClassBatches(refinement, config, seed, device)
        self.network = refinement.network
        self.model: nn.Module = self.network
        if is_distributed():
            self.model = DistributedDataParallel(self.network)
        self.average = WeightAverage(self.network, config.ema_decay)
        self.optimizers = make_drift_optimizers(self.network, config, refinement.adam_names)
        self.objective = None
        if config.objective == "drift":
            self.objective = DriftObjective(config, features, refinement.shape, refinement.num_classes, seed, device)

    def step(self, step: int, measures: bool) -> dict[str, float]:
        """Make one optimizer step; gives what it measured, the loss always."""
        config = self.config
        set_learning_rate(self.optimizers, rate_factor(step, config))
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        losses, statistics = [], {}
        for part in range(config.grad_accum):
            is_last = part + 1 == config.grad_accum
            with (
                nullcontext()
                if is_last or not isinstance(self.model, DistributedDataParallel)
                else self.model.no_sync()
            ):
                loss, statistics = self._loss(self.batches.next(step * config.grad_accum + part), measures and is_last)
                (loss / config.grad_accum).backward()
            losses.append(loss.detach())
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), config.grad_clip or float("inf"))
        for optimizer in self.optimizers:
            optimizer.step()
        self.average.update(self.network)
        if not measures:
            return {}
        mean = torch.stack(losses).mean()
        all_reduce_mean_([mean])
        if not bool(mean.isfinite()):
            raise ConfigError(
                f"the loss is {float(mean)} at step {step}; what was saved before stays: start in another folder with "
                f"lr below {config.lr:g}"
            )
        rate = self.optimizers[0].param_groups[0]["lr"]
        return {"loss": float(mean), "gradient_norm": float(norm), "lr": rate, **statistics}

    def _loss(self, batch: ClassBatch, measures: bool) -> tuple[Tensor, dict[str, float]]:
        refined = self.refinement.refine(self.model, batch, measures=measures)
        if self.objective is None:
            return F.mse_loss(refined.samples, refined.target), refined.errors
        loss, kernel = self.objective(batch, refined.samples, measures=measures)
        return loss, refined.errors | kernel

    def averaged(self) -> RefinerT:
        """A refiner of the averaged weights, for use."""
        frozen = [parameter for parameter in self.network.parameters() if not parameter.requires_grad]
        network = deepcopy(self.network, {id(parameter): parameter for parameter in frozen})  # a large base is shared
        self.average.copy_to(network)
        return self.refinement.refiner(network.eval().requires_grad_(False))

    def save(self, path: Path, num_steps: int) -> None:
        """Write everything that `load` needs after `num_steps` steps."""
        save_state(path, num_steps, self._parts(), self.optimizers)

    def load(self, path: Path) -> int:
        """Go on from a file that `save` wrote; gives the number of steps done."""
        return load_state(path, self._parts(), self.optimizers)

    def _parts(self) -> dict:
        parts = {"refiner": TrainedWeights(self.network), "average": self.average, "sampler": self.batches.sampler}
        return parts | (self.objective.banks() if self.objective is not None else {})


def saved_step(path: Path) -> int:
    """Steps after which a training wrote this state.

    Raises:
        FileError: no such file.
        CorruptFileError: a damaged file.
    """
    read_header(path)
    with safe_open(path, "pt") as tensors:
        return int(tensors.get_tensor("step"))


def effective_batch(config: FieldConfig) -> int:
    """Samples that an optimizer step refines, over all processes."""
    return config.n_classes_step * config.n_gen_per_class * config.grad_accum * num_processes()
