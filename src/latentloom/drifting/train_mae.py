"""Trains the masked autoencoder: in one process or several, and on from where an interrupted run stopped."""

import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from latentloom.drifting.batches import ShuffledBatches
from latentloom.drifting.config import MaeConfig
from latentloom.drifting.data import ImageData, load_data
from latentloom.drifting.experiment import mae_trainings
from latentloom.drifting.mae import (
    ADAM_NAMES,
    LatentMae,
    MaeShape,
    draw_hidden,
    reconstruction_loss,
    save_mae,
)
from latentloom.drifting.mae_evaluate import held_out_loss
from latentloom.drifting.mae_report import write_mae_report
from latentloom.drifting.optimizers import make_drift_optimizers, rate_factor
from latentloom.drifting.trainings import identity
from latentloom.runs import RunFolder, all_reduce_mean_, is_distributed, process_rank, track
from latentloom.runs.claims import claim_folder, refuse_other_run
from latentloom.runs.process_group import joined_processes, num_processes, wait_for_all
from latentloom.runs.randomness import step_generator
from latentloom.storage.atomic import disk_failures_said
from latentloom.training import Curve, WeightAverage, load_state, save_state, set_learning_rate

MAE_FILE = "mae.safetensors"
CURVE_FILE = "curve.jsonl"
STATE_FILE = "mae.state.safetensors"

Watch = Callable[[int, Mapping[str, float]], None]

_CHANGEABLE = {"log_every", "save_every", "device"}  # settings that leave the weights as they are


def run_train_mae(config: MaeConfig, out_dir: Path) -> Path | None:
    """Train an autoencoder as a run on disk (settings, record, curves, weights, `report.html`); gives the weights.

    Under torchrun every process calls it; the first one writes, and the others are given None.

    Args:
        config: the settings.
        out_dir: the run folder; an interrupted run in it goes on.

    Raises:
        LatentLoomError: the user's mistakes, of whichever kind.
    """
    with joined_processes(config.device) as device:
        data = load_data(config, device)
        refuse_other_run(out_dir, _identity(data, config))
        facts = mae_trainings(config, data, effective_batch(config))
        if process_rank() != 0:
            train_mae(data, config, out_dir)
            return None
        with (
            disk_failures_said(out_dir),
            RunFolder.at(out_dir, config, data=data.description, trainings=facts) as run,
        ):
            weights = train_mae(data, config, out_dir, tensorboard_watch(run, effective_batch(config)))
            results = write_mae_report(data, config, weights, out_dir, effective_batch(config))
            run.finish(results)
    return weights


def train_mae(data: ImageData, config: MaeConfig, folder: Path, watch: Watch | None = None) -> Path:
    """Train an autoencoder in `folder` and give its file there, which holds the running average of the weights.

    An interrupted run goes on to the very weights that it would have had; a finished one is given back as it is. In a
    process group each process takes its part of every batch, and the first one writes.

    Args:
        data: the images.
        config: the settings; those of the data are taken to have made `data`.
        folder: of the file, the curve and the state of an unfinished run.
        watch: is given the measures of a step, in the first process.

    Raises:
        ConfigError: the folder holds a run with other settings, data or processes.
        ShapeError: the images are a single square of `mask_patch`.
        FileError: the folder cannot be written to.
    """
    weights = folder / MAE_FILE
    refuse_other_run(folder, _identity(data, config))
    training = MaeTraining(data, config)  # settings that cannot run are refused before they take the folder
    claim_folder(folder, _identity(data, config))
    if not weights.exists():
        if (folder / STATE_FILE).exists():
            training.load(folder / STATE_FILE)
        training.run(folder, watch)
        if process_rank() == 0:
            training.write(weights)
            (folder / STATE_FILE).unlink(missing_ok=True)
    wait_for_all()
    return weights


class MaeTraining:
    """A training between two steps.

    Args:
        data: the images.
        config: the settings.

    Raises:
        ShapeError: the images are a single square of `mask_patch`.
    """

    def __init__(self, data: ImageData, config: MaeConfig) -> None:
        self.data = data
        self.config = config
        self.step = 0
        channels, height, width = data.train.shape
        self.size = (height, width)
        self._masks(0, 1)
        self.device = data.train.load(torch.zeros(1, dtype=torch.int64)).device
        # the global generator is left as it was: other parts of a run may count on it
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.mae = LatentMae(_shape(data, config, channels)).to(self.device)
        self.average = WeightAverage(self.mae, config.ema_decay)
        self.optimizers = make_drift_optimizers(self.mae, config, ADAM_NAMES)
        self.batches = ShuffledBatches(len(data.train), effective_batch(config), config.seed)

    def run(self, folder: Path, watch: Watch | None = None) -> None:
        """Train to the last step; the first process writes the curve and, now and then, the state."""
        is_main = process_rank() == 0
        curve = Curve(folder / CURVE_FILE, self.step) if is_main else None
        network = DistributedDataParallel(self.mae) if is_distributed() else self.mae
        for step in track(range(self.step, self.config.steps), "masked autoencoder"):
            with warnings.catch_warnings():
                # of 1x1 kernels in channels-last networks; what it costs cannot be measured
                warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
                measures = self.train_step(network)
            is_last = self.step == self.config.steps
            is_saved = is_last or self.step % self.config.save_every == 0
            if not (is_saved or step % self.config.log_every == 0):
                continue
            all_reduce_mean_(measures.values())
            if curve is None:
                continue
            numbers = {name: float(value) for name, value in measures.items()}
            if is_saved:
                numbers["held_out_loss"] = held_out_loss(self.averaged(), self.data.held_out, self.config)
            curve.append(step, **numbers)
            if watch is not None:
                watch(step, numbers)
            if is_saved and not is_last:
                self.save(folder / STATE_FILE)

    def train_step(self, network: nn.Module) -> dict[str, Tensor]:
        """Make one step and move on; gives the loss and its parts over this process's images.

        Args:
            network: the autoencoder, or what wraps it to average gradients over the processes.
        """
        config = self.config
        rows = self.batches.rows(self.step)
        hidden = self._masks(self.step, len(rows))
        set_learning_rate(self.optimizers, rate_factor(self.step, config))
        measures: dict[str, Tensor] = {}
        # every process plans the whole batch, in the same order, and takes its part of each of its micro-batches
        parts = torch.arange(len(rows)).view(config.grad_accum, num_processes(), -1)[:, process_rank()]
        for number, part in enumerate(parts):
            terms = self._backward(network, rows[part], hidden[part], is_last=number == len(parts) - 1)
            for name, value in terms.items():
                measures[name] = measures.get(name, torch.zeros_like(value)) + value.detach() / len(parts)
        measures["grad_norm"] = nn.utils.clip_grad_norm_(self.mae.parameters(), config.grad_clip or float("inf"))
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.average.update(self.mae)
        self.step += 1
        return measures

    def averaged(self) -> LatentMae:
        """The autoencoder with the running average of the weights, frozen."""
        mae = deepcopy(self.mae).requires_grad_(False)
        self.average.copy_to(mae)
        return mae.eval()

    def save(self, path: Path) -> None:
        """Write what `load` needs to go on as if nothing had happened."""
        save_state(path, self.step, {"mae": self.mae, "average": self.average}, self.optimizers)

    def load(self, path: Path) -> None:
        """Go on from what `save` wrote."""
        self.step = load_state(path, {"mae": self.mae, "average": self.average}, self.optimizers)

    def write(self, path: Path) -> None:
        """Write the average with the record of the training."""
        mae = self.averaged()
        loss = held_out_loss(mae, self.data.held_out, self.config)
        settings = self.config.model_dump(mode="json")
        about = {"data": self.data.description, "effective_batch": effective_batch(self.config)}
        save_mae(path, mae, {**about, "held_out_loss": loss, "settings": settings})

    def _masks(self, step: int, batch: int) -> Bool[Tensor, "B H W"]:
        generator = step_generator(self.config.seed, step, "masks")
        return draw_hidden(batch, self.size, self.config.mask_patch, self.config.mask_ratio, generator)

    def _backward(self, network: nn.Module, rows: Tensor, hidden: Tensor, *, is_last: bool) -> dict[str, Tensor]:
        config = self.config
        samples, hidden = self.data.train.load(rows), hidden.to(self.device)
        is_waiting = isinstance(network, DistributedDataParallel) and not is_last
        with network.no_sync() if isinstance(network, DistributedDataParallel) and is_waiting else nullcontext():
            with torch.autocast(self.device.type, torch.bfloat16, enabled=config.amp_bf16):
                output = network(samples, hidden)
            terms = {"reconstruction": reconstruction_loss(output.samples, samples, hidden).mean()}
            loss = terms["reconstruction"]
            if output.logits is not None:
                labels = self.data.train.labels[rows].to(self.device)
                terms["classification"] = F.cross_entropy(output.logits.float(), labels)
                # at weight 0 too: averaging over processes wants a gradient of every weight in every step
                loss = loss + self._classify_weight() * terms["classification"]
            (loss / config.grad_accum).backward()
        return {"loss": loss, **terms}

    def _classify_weight(self) -> float:
        is_tail = self.step >= self.config.steps * (1 - self.config.classify_share)
        return self.config.classify_weight if is_tail else 0.0


def effective_batch(config: MaeConfig) -> int:
    """Images per optimizer step, of all processes together."""
    return config.batch_size * config.grad_accum * num_processes()


def _shape(data: ImageData, config: MaeConfig, channels: int) -> MaeShape:
    is_classifying = config.classify_share > 0 and config.classify_weight > 0
    return MaeShape(
        channels=channels,
        width=config.width,
        stages=config.stages,
        blocks=config.blocks,
        mask_patch=config.mask_patch,
        num_classes=len(data.train.class_names) if is_classifying else 0,
    )


def tensorboard_watch(run: RunFolder, batch: int) -> Watch:
    """What writes a training's measures to the run's TensorBoard and counts its images.

    Args:
        run: the run.
        batch: images per step.
    """
    counted: int | None = None

    def watch(step: int, measures: Mapping[str, float]) -> None:
        nonlocal counted
        for name, value in measures.items():
            run.tensorboard().add_scalar(f"mae/{name}", value, step)
        run.count(batch * (step - counted if counted is not None else 1), "images")
        counted = step

    return watch


def _identity(data: ImageData, config: MaeConfig) -> dict[str, Any]:
    for_pictures = {"vae_root"} if config.dataset == "shards" else set()
    settings = config.model_dump(mode="json", exclude=_CHANGEABLE | for_pictures)
    return identity(settings, data.description, data.train.fingerprint, effective_batch(config))
