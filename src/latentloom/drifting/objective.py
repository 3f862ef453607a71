"""The drifting loss of a batch: refined samples against real ones of their class, in a frozen encoder's features."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from latentloom.drifting.class_batches import ClassBatch
from latentloom.drifting.config import FieldConfig
from latentloom.drifting.diagnostics import kernel_statistics, queue_statistics, separation
from latentloom.drifting.features import VANILLA
from latentloom.drifting.field import drifting_losses
from latentloom.drifting.guidance import unconditional_weight
from latentloom.drifting.problems import coefficients
from latentloom.drifting.queues import SampleQueue
from latentloom.runs import process_rank
from latentloom.runs.process_group import add_up, gathered
from latentloom.runs.randomness import step_generator

RECOMPILE_LIMIT = 64

#: Samples [B, ...] to their features by name, each [B, L, S]: S numbers at each of L locations.
Features = Callable[[Tensor], dict[str, Tensor]]


class DriftObjective:
    """Holds the banks of real and of earlier refined samples, and computes the loss against them.

    Every process holds the whole banks: what one pushes all push, and draws are planned for all. So the loss does not
    depend on how many processes share the classes of a batch.

    Args:
        config: counts, features and weights.
        features: of samples, by name; those under `VANILLA` are weighted by `vanilla_loss_weight`.
        shape: of a sample.
        num_classes: of the training set.
        seed: of the draws.
        device: where the banks lie.
    """

    def __init__(
        self,
        config: FieldConfig,
        features: Features,
        shape: Sequence[int],
        num_classes: int,
        seed: int,
        device: torch.device,
    ) -> None:
        self.config = config
        self.features = features
        self.seed = seed
        # only banks that something is drawn from: of large clips one takes gigabytes
        self.positives = self.unconditional = self.negatives = None
        if not config.paired:
            self.positives = SampleQueue(num_classes, config.queue_pos, shape, device=device)
        if config.drift_n_unc:
            self.unconditional = SampleQueue(1, config.queue_unc, shape, device=device)
        if config.drift_n_neg:
            self.negatives = SampleQueue(num_classes, config.queue_neg, shape, device=device)
        kernel = partial(coefficients, masks_self=False) if config.paired else coefficients
        self._kernel = kernel
        if config.compile_drift:
            self._kernel = torch.compile(kernel, mode=config.compile_mode, dynamic=False)

    def banks(self) -> dict[str, SampleQueue]:
        """The banks that there are by name, for a checkpoint."""
        banks = {"positives": self.positives, "unconditional": self.unconditional, "negatives": self.negatives}
        return {name: bank for name, bank in banks.items() if bank is not None}

    def __call__(
        self, batch: ClassBatch, refined: Float[Tensor, "N *shape"], *, measures: bool = False
    ) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """The loss of this process's part of a batch; its real and its refined samples enter the banks.

        Args:
            batch: where the refined samples come from.
            refined: one for each of the batch's samples, in their order; the gradient goes to them.
            measures: in the first process also tell what the kernel does and what the banks hold, which computes
                distances again.
        """
        others = self._draw(batch)
        groups = self._groups(refined, others)
        with self._compiling():
            losses = drifting_losses(
                [gen for gen, _, _ in groups.values()],
                [pos for _, pos, _ in groups.values()],
                [neg for _, _, neg in groups.values()],
                temperatures=self.config.temperatures,
                weight_neg=others.weight_neg,
                valid=others.valid,
                reduce=add_up,
                kernel=self._kernel,
            )
        # only now: a sample must not meet its own copy, which would hold it where it stands
        if self.negatives is not None:
            self.negatives.push(batch.all_sample_classes, gathered(refined.detach()))
        weights = [self._weight(name) for name in groups]
        loss = (losses * losses.new_tensor(weights).unsqueeze(1)).sum(0).mean()
        return loss, self._measures(batch, others, groups) if measures and process_rank() == 0 else {}

    def _compiling(self) -> AbstractContextManager:
        # one compilation for each shape: of every width of features, and of a last part of the classes
        is_on = self.config.compile_drift
        return torch._dynamo.config.patch(recompile_limit=RECOMPILE_LIMIT) if is_on else nullcontext()

    def _draw(self, batch: ClassBatch) -> "_Others":
        """Push the batch's real samples, then draw what its refined ones are held against."""
        config, clean, classes = self.config, batch.clean, batch.all_classes
        self._push(batch)
        generator = step_generator(self.seed, batch.number, "banks")
        if self.positives is None:
            pos = clean.unflatten(0, (-1, batch.num_gen))
            has_pos = torch.ones(pos.shape[:2], dtype=torch.bool, device=pos.device)
        else:
            pos, has_pos = self.positives.sample(classes, config.drift_n_pos, generator, batch.part)
        if self.negatives is None:
            torch.rand(len(classes), 1, generator=generator)  # so that what is drawn next is what recorded runs drew
            neg, has_neg = pos[:, :0], has_pos[:, :0]
        else:
            neg, has_neg = self.negatives.sample(classes, config.drift_n_neg, generator, batch.part)
        if self.unconditional is None:
            unc, has_unc = pos[:1, :0], has_pos[:1, :0]
        else:
            unc, has_unc = self.unconditional.sample(torch.zeros(1, dtype=torch.int64), config.drift_n_unc, generator)
        num_classes = len(pos)
        alpha = batch.alpha.to(pos.device)
        weight_unc = unconditional_weight(alpha, batch.num_gen, max(int(has_unc.sum()), 1))
        weight_neg = torch.cat(
            [neg.new_ones(num_classes, neg.shape[1]), weight_unc[:, None].expand(-1, unc.shape[1])], dim=1
        )
        has_gen = has_pos.new_ones(num_classes, batch.num_gen)
        valid = torch.cat([has_gen, has_neg, has_unc.expand(num_classes, -1), has_pos], dim=1)
        # compiled code is of one kind: it takes the mask also when all are valid
        is_needed = config.compile_drift or not bool(valid.all())
        return _Others(pos, neg, unc[0], weight_neg, valid if is_needed else None)

    def _push(self, batch: ClassBatch) -> None:
        if self.positives is None and self.unconditional is None:
            return
        clean = gathered(batch.clean)
        if self.positives is not None:
            self.positives.push(batch.all_sample_classes, clean)
        if self.unconditional is not None:
            self.unconditional.push(torch.zeros(len(clean), dtype=torch.int64), clean)

    def _groups(self, refined: Tensor, others: "_Others") -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """By feature the refined, the attracting and the repelling samples, each [class, sample, location, channel]."""
        num_classes, num_pos = others.pos.shape[:2]
        num_neg = others.neg.shape[1]
        own = self.features(refined)
        with torch.no_grad():
            real = torch.cat([others.pos.flatten(0, 1), others.neg.flatten(0, 1), others.unc])
            rest = self.features(real)
        groups = {}
        for name, gen in own.items():
            pos, neg, unc = rest[name].split([num_classes * num_pos, num_classes * num_neg, len(others.unc)])
            repelling = [
                neg.unflatten(0, (num_classes, num_neg)),
                unc.unsqueeze(0).expand(num_classes, -1, -1, -1),
            ]
            groups[name] = (
                gen.unflatten(0, (num_classes, -1)),
                pos.unflatten(0, (num_classes, num_pos)),
                torch.cat(repelling, dim=1),
            )
        return groups

    def _weight(self, name: str) -> float:
        return self.config.vanilla_loss_weight if name == VANILLA else self.config.feature_loss_weight

    @torch.no_grad()
    def _measures(
        self, batch: ClassBatch, others: "_Others", groups: Mapping[str, tuple[Tensor, Tensor, Tensor]]
    ) -> dict[str, float]:
        # the first feature of the coarsest map sees whole samples, as the samples themselves do
        name = _first_of_last_map(groups)
        gen, pos, neg = (samples[:, :, 0].float() for samples in groups[name])
        statistics = kernel_statistics(
            gen,
            pos,
            neg,
            temperatures=self.config.temperatures,
            weight_neg=others.weight_neg,
            valid=others.valid,
            masks_self=not self.config.paired,
        )
        statistics |= separation(gen.flatten(0, 1), batch.sample_classes) or {}
        return statistics | (queue_statistics(self.positives) if self.positives is not None else {})


@dataclass(frozen=True, eq=False)
class _Others:
    """What a batch is held against: real samples that attract, earlier refined and unconditional ones that repel."""

    pos: Float[Tensor, "C P *shape"]
    neg: Float[Tensor, "C Q *shape"]
    unc: Float[Tensor, "U *shape"]
    weight_neg: Float[Tensor, "C Q+U"]
    valid: Bool[Tensor, "C T"] | None


def _first_of_last_map(names: Iterable[str]) -> str:
    of_maps = [name for name in names if name != VANILLA]
    if not of_maps:
        return VANILLA
    return next(name for name in of_maps if name.split("/")[0] == of_maps[-1].split("/")[0])
