"""One training of a refiner, by drifting or by regression, from its first step to its last."""

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from latentloom.drifting.class_batches import ClassBatch, ClassBatches
from latentloom.drifting.config import DriftConfig
from latentloom.drifting.corruption import Keypatches
from latentloom.drifting.data import ImageData
from latentloom.drifting.objective import DriftObjective
from latentloom.drifting.optimizers import make_drift_optimizers, rate_factor
from latentloom.drifting.processes import num_processes
from latentloom.drifting.refiner import ADAM_NAMES, PatchRefiner, RefinerShape
from latentloom.drifting.refiner_files import Refiner
from latentloom.errors import ConfigError
from latentloom.keyframes import interpolation_errors
from latentloom.runs import all_reduce_mean_, is_distributed, process_rank, track
from latentloom.storage import read_header
from latentloom.training import Curve, WeightAverage, load_state, save_state, set_learning_rate

STATE_NAME = "state.safetensors"
CURVE_NAME = "curve.jsonl"

Evaluate = Callable[[Refiner], Mapping[str, float]]


def train_refiner(
    data: ImageData,
    encoder: nn.Module | None,
    config: DriftConfig,
    seed: int,
    folder: Path,
    device: torch.device,
    evaluate: Evaluate | None = None,
) -> Refiner:
    """Train one refiner; where its folder holds an interrupted training, that one goes on.

    Args:
        data: images to train on.
        encoder: of the features that are compared; None where only the images themselves are.
        config: the settings.
        seed: of weights and draws.
        folder: of `state.safetensors` and `curve.jsonl`; the first process alone writes.
        device: to compute on.
        evaluate: measures the averaged weights at every checkpoint, in the first process.

    Returns:
        The averaged weights.

    Raises:
        CheckpointError: the folder holds the state of another run.
        ConfigError: the training diverged.
    """
    training = _Training(data, encoder, config, seed, device)
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


class _Training:
    """Everything that a step changes."""

    def __init__(
        self, data: ImageData, encoder: nn.Module | None, config: DriftConfig, seed: int, device: torch.device
    ) -> None:
        self.config = config
        self.device = device
        num_classes = len(data.train.class_names)
        self.keypatches = Keypatches(config, data.train.shape)
        self.batches = ClassBatches(data.train, self.keypatches, config, seed, device)
        self.refiner = _new_refiner(config, self.keypatches, num_classes, seed).to(device)
        self.model: nn.Module = self.refiner
        if is_distributed():
            self.model = DistributedDataParallel(self.refiner)
        self.average = WeightAverage(self.refiner, config.ema_decay)
        self.optimizers = make_drift_optimizers(self.refiner, config, ADAM_NAMES)
        self.objective = None
        if config.objective == "drift":
            self.objective = DriftObjective(config, encoder, data.train.shape, num_classes, seed, device)

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
        norm = nn.utils.clip_grad_norm_(self.refiner.parameters(), config.grad_clip or float("inf"))
        for optimizer in self.optimizers:
            optimizer.step()
        self.average.update(self.refiner)
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
        clean = self.keypatches.to_tokens(batch.images)
        filled = self.keypatches.fill(clean, batch.holes)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.amp_bf16):
            refined = self.model(filled, batch.holes.given, batch.image_classes, batch.holes.level, batch.image_alpha)
        statistics = interpolation_errors(filled, clean, batch.holes.given) if measures else {}
        if self.objective is None:
            return F.mse_loss(refined, clean), statistics
        loss, kernel = self.objective(batch, self.keypatches.to_images(refined), measures=measures)
        return loss, statistics | kernel

    def averaged(self) -> Refiner:
        """A refiner of the averaged weights, for use."""
        network = deepcopy(self.refiner)
        self.average.copy_to(network)
        return Refiner(network.eval().requires_grad_(False), self.keypatches)

    def save(self, path: Path, num_steps: int) -> None:
        """Write everything that `load` needs after `num_steps` steps."""
        save_state(path, num_steps, self._parts(), self.optimizers)

    def load(self, path: Path) -> int:
        """Go on from a file that `save` wrote; gives the number of steps done."""
        return load_state(path, self._parts(), self.optimizers)

    def _parts(self) -> dict:
        parts = {"refiner": self.refiner, "average": self.average, "sampler": self.batches.sampler}
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


def effective_batch(config: DriftConfig) -> int:
    """Images that an optimizer step refines, over all processes."""
    return config.n_classes_step * config.n_gen_per_class * config.grad_accum * num_processes()


def _new_refiner(config: DriftConfig, keypatches: Keypatches, num_classes: int, seed: int) -> PatchRefiner:
    shape = RefinerShape(
        num_patches=keypatches.num_patches,
        num_values=keypatches.num_values,
        num_classes=num_classes,
        num_levels=config.num_levels,
        width=config.width,
        depth=config.depth,
        num_heads=config.num_heads,
        keep_anchors_fixed=config.keep_anchors_fixed,
    )
    with torch.random.fork_rng(devices=[]):  # layers draw their weights from the global generator
        torch.manual_seed(seed)
        return PatchRefiner(shape)
