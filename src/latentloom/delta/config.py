"""Settings of a training run; names and meanings of the document's flags stay."""

from typing import Annotated, Literal

from pydantic import Field

from latentloom.delta.model import CapMode
from latentloom.delta.pooled_delta import Method
from latentloom.runs import Config

Init = Literal["auto", "zero", "ridge", "mean", "align"]
Share = Annotated[float, Field(ge=0, lt=1)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]

CAPS = (0.22, 0.5, 1.0, 2.0)
"""What `cap = "auto"` tries; the first is the document's."""


class TrainConfig(Config):
    """How an adapter is learned from a cache of pairs.

    Args:
        rank, cap, cap_mode: of the adapter; the cap `auto` tries several and lets validation choose.
        orth: whether corrections are orthogonal to their tokens.
        init: what SGD starts from: nothing, ridge on pooled prompts, their mean difference, or a fit to aligned tokens;
            `auto` tries zero, ridge and align and lets validation choose.
        epochs: the most; validation decides when to stop.
        lr, gate_lr_mult: rate of Adam, and how many times faster the gate learns.
        ema_decay: of the running mean of the weights, which is what is validated and kept.
        batch_size: pairs per step.
        w_nce, tau: weight and temperature of the contrast with the other rewrites of the batch.
        w_anchor: weight of staying close to the original prompt's direction.
        w_l2: weight of the corrections' mean squared length, relative to their tokens.
        w_gate: weight of telling base prompts from rewritten ones.
        patience: epochs without a better validation score after which a training ends.
        val_frac, test_frac: shares of base prompts; the test part is never touched by training.
        seed: of the split, the initial weights and the order of pairs.
        save_every: epochs between checkpoints.
        method: how corrections are pooled; all give the same numbers.
    """

    rank: Count = 64
    cap: Positive | Literal["auto"] = "auto"
    cap_mode: CapMode = "relative"
    orth: bool = True
    init: Init = "auto"
    epochs: Count = 6000
    lr: Positive = 3e-4
    gate_lr_mult: Positive = 10.0
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.98
    batch_size: Count = 64
    w_nce: Weight = 0.1
    tau: Positive = 0.05
    w_anchor: Weight = 0.02
    w_l2: Weight = 0.001
    w_gate: Weight = 0.1
    patience: Count = 30
    val_frac: Share = 0.1
    test_frac: Share = 0.1
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    save_every: Count = 50
    method: Method = "fused"

    @property
    def caps(self) -> tuple[float, ...]:
        """The caps to try."""
        return CAPS if self.cap == "auto" else (self.cap,)

    @property
    def inits(self) -> tuple[Init, ...]:
        """The starting points to try."""
        return ("zero", "ridge", "align") if self.init == "auto" else (self.init,)
