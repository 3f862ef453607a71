"""One training of a bridge, from its first step to its last."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW, Optimizer

from latentloom.bridge.batches import LengthBuckets
from latentloom.bridge.config import BridgeConfig
from latentloom.bridge.features import PooledFeatures
from latentloom.bridge.model import LatentBridge
from latentloom.bridge.pairs import PairSet
from latentloom.bridge.sharding import (
    WholeOptimizer,
    WholeWeights,
    average_whole_gradients,
    clip_gradients,
    is_sharded,
    separated,
)
from latentloom.bridge.trainable import freeze_adapter
from latentloom.errors import ConfigError
from latentloom.runs import process_rank
from latentloom.runs.process_group import add_up, num_processes
from latentloom.runs.randomness import step_generator
from latentloom.training import TrainedWeights, load_state, save_state, set_learning_rate
from latentloom.training.checkpointing import Stateful
from latentloom.training.schedules import warmup_constant, warmup_cosine

STATE_NAME = "state.safetensors"
CURVE_NAME = "curve.jsonl"


class BridgeTraining:
    """Everything that a step changes.

    A step's loss is a mean over all its targets, in all batches and processes: cutting a step into more of them changes
    nothing. What is left out at random belongs to a row of the step, not to a process; the adapter's own dropout alone
    is drawn by each process.

    Args:
        bridge: what is trained; its standardizers are fitted. With several processes its backbone is replicated, or
            sharded by `shard_bridge`.
        ids: tokens of each training text.
        pairs: the training pairs.
        features: pooled features of the texts where they never change; None pools them in every step.
        config: the settings.
    """

    def __init__(
        self,
        bridge: LatentBridge,
        ids: Sequence[Sequence[int]],
        pairs: PairSet,
        features: PooledFeatures | None,
        config: BridgeConfig,
    ) -> None:
        self.bridge = bridge
        self.ids = ids
        self.pairs = pairs
        self.features = features
        self.config = config
        self.losses = StepLosses(bridge, config)
        training, lengths = config.training, [len(row) for row in ids]
        self.speaks, self.listens = training.task != "t2l", training.task != "l2t"
        freeze_unused(bridge, config)
        self.text_batches = LengthBuckets(lengths, training.train_batch_size, num_processes(), training.seed)
        vector_batch = training.train_batch_size
        if features is not None:
            # a cached row costs the same at any length
            lengths, vector_batch = [1] * len(lengths), training.t2l_batch_size or vector_batch
        self.vector_batches = LengthBuckets(lengths, vector_batch, num_processes(), training.seed + 1)
        self.model: nn.Module = self.losses
        self.is_sharded = is_sharded(bridge)
        if num_processes() > 1 and not self.is_sharded:
            self.model = DistributedDataParallel(self.losses)
        self.optimizer = make_optimizer(bridge, config)
        self.scaler = torch.amp.GradScaler(bridge.device.type, enabled=training.dtype == "fp16")

    @property
    def rows_per_step(self) -> int:
        """Texts that a step learns to say, or vectors that it learns to predict where it says none."""
        batches = self.text_batches if self.speaks else self.vector_batches
        return batches.step_size * self.config.training.gradient_accumulation_steps

    def step(self, step: int, measures: bool) -> dict[str, float]:
        """Make one optimizer step; gives what it measured when asked.

        Args:
            step: counted from 0.
            measures: costs a synchronisation of all processes.

        Raises:
            ConfigError: the loss is no number any more.
        """
        training = self.config.training
        set_learning_rate([self.optimizer], rate_factor(step, self.config))
        self.optimizer.zero_grad(set_to_none=True)
        torch.manual_seed(_mixed(training.seed, step, process_rank()))  # for the adapter's own dropout
        num_parts = training.gradient_accumulation_steps
        parts = range(step * num_parts, (step + 1) * num_parts)
        num_targets = self._num_targets(parts) if self.speaks else 0
        totals = torch.zeros(3, dtype=torch.float64, device=self.bridge.device)
        if not self.bridge.training:  # a walk through all modules
            self.bridge.train()
        for part in parts:
            with self._kept_apart(part != parts[-1]):
                loss, sums = self.model(self._said(part), self._heard(part, num_parts), num_targets)
                self.scaler.scale(loss * num_processes()).backward()
            totals += sums
        norms = self._clip()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return self._measures(step, totals, norms, num_targets) if measures else {}

    def _kept_apart(self, wanted: bool) -> AbstractContextManager:
        """Gradients that are not exchanged yet, when wanted: only those of a step's last batch need to be."""
        if wanted and isinstance(self.model, DistributedDataParallel):
            return self.model.no_sync()
        return nullcontext()

    def _said(self, part: int) -> "Said | None":
        """This process's texts of a batch, with their vectors."""
        if not self.speaks:
            return None
        rank, config = process_rank(), self.config
        rows = self.text_batches.batch(part, rank)
        _, vectors = self.pairs.load(rows)
        generator = step_generator(config.training.seed, part, "unconditional")
        drawn = torch.rand(self.text_batches.step_size, generator=generator)
        dropped = (drawn < config.model.unconditional_share)[rank :: num_processes()]
        device = self.bridge.device
        return vectors.to(device), [self.ids[row] for row in rows], dropped.to(device)

    def _heard(self, part: int, num_parts: int) -> "Heard | None":
        """This process's texts of a batch whose vectors are predicted, and each one's share of the step's mean."""
        if not self.listens:
            return None
        rank, device = process_rank(), self.bridge.device
        rows = self.vector_batches.batch(part, rank)
        size = self.vector_batches.step_size
        kept = self.bridge.text_to_latent.draw_kept(size, step_generator(self.config.training.seed, part, "dropout"))
        if kept is not None:
            kept = tuple(mask[rank :: num_processes()].to(device) for mask in kept)
        _, vectors = self.pairs.load(rows)
        source = self.features.load(rows).to(device) if self.features is not None else [self.ids[row] for row in rows]
        return vectors.to(device), source, kept, 1 / (size * num_parts)

    def _num_targets(self, parts: range) -> int:
        """Tokens and ends of a step's texts in all processes."""
        rows = (self.text_batches.batch(part, rank) for part in parts for rank in range(num_processes()))
        return sum(self.bridge.num_targets(self.ids[row]) for some in rows for row in some)

    def _clip(self) -> dict[str, float | Tensor]:
        """Bring each side's gradients to the largest norm allowed; one side never shortens the other's."""
        limit = self.config.training.max_grad_norm or float("inf")
        self.scaler.unscale_(self.optimizer)
        groups = self.optimizer.param_groups
        sides: dict[str, list[Tensor]] = {}
        for group in groups:
            sides.setdefault(group["side"], []).extend(group["params"])
        if not self.is_sharded:
            return {side: nn.utils.clip_grad_norm_(weights, limit) for side, weights in sides.items()}
        average_whole_gradients(weight for group in groups for weight in group["params"])
        return {side: clip_gradients(weights, limit) for side, weights in sides.items()}

    def _measures(
        self, step: int, totals: Float[Tensor, "3"], norms: dict[str, float | Tensor], num_targets: int
    ) -> dict[str, float]:
        add_up(totals)
        text, correct, latent = totals.tolist()
        measures = {}
        if self.speaks:
            measures |= {"text_loss": text / num_targets, "text_acc": correct / num_targets}
        if self.listens:
            measures |= {"latent_loss": latent}
        measures |= {f"gradient_norm/{side}": float(norm) for side, norm in norms.items()}
        # with loss scaling a gradient that overflows is skipped, and the scale lowered
        checked = [value for name, value in measures.items() if not (self.scaler.is_enabled() and "norm" in name)]
        if not all(torch.isfinite(torch.tensor(checked))):
            raise ConfigError(
                f"the loss or a gradient is no number at step {step} ({measures}); what was saved before stays: start "
                f"in another folder with training.lr below {self.config.training.lr:g}"
            )
        return {**measures, "lr": self.optimizer.param_groups[0]["lr"]}

    def save(self, path: Path, num_steps: int) -> None:
        """Write everything that `load` needs after `num_steps` steps.

        Every process calls it and the first one writes: sharded weights are put together from all of them.
        """
        parts = self._parts()
        if process_rank() == 0:
            save_state(path, num_steps, parts, self._whole_optimizers())
        elif self.is_sharded:
            for part in parts.values():
                part.state_dict()

    def load(self, path: Path) -> int:
        """Go on from a file that `save` wrote; gives the number of steps done."""
        return load_state(path, self._parts(), self._whole_optimizers())

    def _parts(self) -> dict[str, Stateful]:
        if self.is_sharded:
            whole = {"bridge": WholeWeights(self.bridge), "optimizer0": WholeOptimizer(self.optimizer)}
            return {**whole, "scaler": _ScalerState(self.scaler)}
        return {"bridge": TrainedWeights(self.bridge), "scaler": _ScalerState(self.scaler)}

    def _whole_optimizers(self) -> list[Optimizer]:
        """Those whose state needs no putting together."""
        return [] if self.is_sharded else [self.optimizer]


Said = tuple[Float[Tensor, "B D"], Sequence[Sequence[int]], Bool[Tensor, "B"]]
Heard = tuple[Float[Tensor, "N D"], Float[Tensor, "N F"] | Sequence[Sequence[int]], tuple | None, float]


class StepLosses(nn.Module):
    """The losses of one batch of one process, as the share that they have in the loss of the whole step.

    Args:
        bridge: what is trained.
        config: the settings.
    """

    def __init__(self, bridge: LatentBridge, config: BridgeConfig) -> None:
        super().__init__()
        self.bridge = bridge
        self.config = config

    def forward(self, said: Said | None, heard: Heard | None, num_targets: int) -> tuple[Tensor, Tensor]:
        """The loss, and the sums of cross-entropy, of right words and of the mean squared error.

        Args:
            said: vectors [B, D], the tokens of their texts, and which of them are left out; None in `t2l`.
            heard: vectors [N, D], pooled features [N, F] or tokens of their texts, what dropout keeps, and the share
                of a row in the step's mean; None in `l2t`.
            num_targets: of the whole step, in all processes.
        """
        training = self.config.training
        bridge = self.bridge
        loss = torch.zeros((), device=bridge.device)
        sums = torch.zeros(3, dtype=torch.float64, device=bridge.device)
        with bridge.computing():
            if said is not None:
                vectors, ids, dropped = said
                errors, correct, _ = bridge.token_losses(vectors, ids, dropped)
                loss = loss + training.text_loss_weight * errors.sum() / num_targets
                sums[0], sums[1] = errors.detach().double().sum(), correct.double().sum()
            if heard is not None:
                vectors, source, kept, share = heard
                features = source if isinstance(source, Tensor) else bridge.pool(source)
                with torch.autocast(bridge.device.type, enabled=False):
                    wanted = bridge.standardizer(vectors)
                    error = F.mse_loss(bridge.text_to_latent(features, kept), wanted, reduction="none").mean(1).sum()
                loss = loss + training.latent_loss_weight * error * share
                sums[2] = error.detach().double() * share
        return loss, sums


def make_optimizer(bridge: LatentBridge, config: BridgeConfig) -> Optimizer:
    """AdamW over what is trained, with a rate for each side; matrices alone decay."""
    training = config.training
    network = list(bridge.network.named_parameters())
    sides = {
        "prefix": (list(bridge.latent_prefix.parameters()), training.lr),
        "head": (list(bridge.text_to_latent.parameters()), training.t2l_lr or training.lr),
        "adapter": ([weight for name, weight in network if "lora_" in name], training.lora_lr or training.lr),
        "backbone": ([weight for name, weight in network if "lora_" not in name], training.lr),
    }
    groups = []
    for side, (weights_of_side, rate) in sides.items():
        trained = [weight for weight in weights_of_side if weight.requires_grad]
        matrices = [weight for weight in trained if weight.ndim > 1 and min(weight.shape) > 1]
        vectors = [weight for weight in trained if weight.ndim < 2 or min(weight.shape) == 1]
        for weights, decay in ((matrices, training.weight_decay), (vectors, 0.0)):
            about = {"lr": rate, "peak_lr": rate, "weight_decay": decay, "side": side}
            groups += [{"params": some, **about} for some in separated(weights)]
    return AdamW(groups, betas=(0.9, 0.99), fused=not is_sharded(bridge))


def rate_factor(step: int, config: BridgeConfig) -> float:
    """What a step's rates are multiplied by."""
    training = config.training
    if training.schedule == "cosine":
        return warmup_cosine(step, training.num_steps, warmup=training.warmup_steps)
    return warmup_constant(step, warmup=training.warmup_steps)


def freeze_unused(bridge: LatentBridge, config: BridgeConfig) -> None:
    """Freeze what a task does not use: several processes would wait for its gradients."""
    task, model = config.training.task, config.model
    bridge.latent_prefix.requires_grad_(task != "t2l")
    bridge.text_to_latent.requires_grad_(task != "l2t")
    if task != "t2l":
        return
    if model.lora.rank and not model.lora.encode:
        freeze_adapter(bridge.network)
    trains_layers = not model.freeze_backbone or model.unfreeze_layers or (model.lora.rank and model.lora.encode)
    if trains_layers and max(bridge.layers) < bridge.backbone.num_layers:
        raise ConfigError(
            f"model.encoder_layers = {list(bridge.layers)} leaves layers after them without a use in task = 't2l', and "
            f"they are trained; name layer {bridge.backbone.num_layers} too"
        )


def _mixed(seed: int, step: int, rank: int) -> int:
    return int(torch.randint(2**62, (), generator=step_generator(seed, step, f"process {rank}")))


class _ScalerState:
    """A gradient scaler's numbers as tensors."""

    def __init__(self, scaler: torch.amp.GradScaler) -> None:
        self.scaler = scaler

    def state_dict(self) -> dict[str, Tensor]:
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in self.scaler.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        if state:
            known = self.scaler.state_dict()
            self.scaler.load_state_dict({name: type(known[name])(value.item()) for name, value in state.items()})
