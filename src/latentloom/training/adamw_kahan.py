"""AdamW with 8-bit moments that moves bfloat16 weights as exactly as float32 ones."""

from typing import Any

import torch
from bitsandbytes import functional
from bitsandbytes.optim.adamw import AdamW8bit
from torch import Tensor, nn

#: Elements that are widened to float32 at a time: bounds what a step needs beside its state to 128 MiB.
_CHUNK = 2**24


class AdamW8bitKahan(AdamW8bit):
    """bitsandbytes' AdamW8bit, with what rounding took from every bfloat16 weight kept for its next step.

    A bfloat16 weight has 8 significant bits, so a step below 1/512 of it is rounded away, and a weight decay of
    lr * weight_decay = 1e-7 always is. Kahan's remedy is to keep the lost part and to add it again before the next
    step. Here that part is the difference between the float32 weight and its bfloat16 rounding, counted in float32's
    last places; it fits 16 bits exactly, so weight and remainder together are the float32 weight, at two bytes more
    per weight. Moments are quantised in blocks of 256; tensors of fewer than 4096 elements keep float32 moments.

    Source: Dettmers et al. 2022, arXiv:2110.02861 (8-bit moments); Kahan 1965, "Further remarks on reducing truncation
    errors"; Zamirai et al. 2021, arXiv:2010.06192, section 4 (Kahan summation for bfloat16 weights).
    """

    def init_state(self, group: dict[str, Any], p: nn.Parameter, gindex: int, pindex: int) -> None:
        """Make the state of one weight: two moments, and for bfloat16 the remainder."""
        super().init_state(group, p, gindex, pindex)
        if p.dtype == torch.bfloat16:
            self.state[p]["remainder"] = torch.zeros_like(p, dtype=torch.int16)

    @torch.no_grad()
    def update_step(self, group: dict[str, Any], p: nn.Parameter, gindex: int, pindex: int) -> None:
        """Move one weight, given its gradient, by bitsandbytes' own kernels in float32."""
        if p.dtype != torch.bfloat16 or p.grad is None:
            super().update_step(group, p, gindex, pindex)
            return
        p.data = p.data.contiguous()
        state = self.state[p]
        state["step"] += 1
        weight, gradient, remainder = p.data.view(-1), p.grad.reshape(-1), state["remainder"].view(-1)
        for start in range(0, p.numel(), _CHUNK):
            part = slice(start, start + _CHUNK)
            full = join_halves(weight[part], remainder[part])
            self._move(full, gradient[part].float(), state, part, group)
            high, low = split_halves(full)
            weight[part].copy_(high)
            remainder[part].copy_(low)

    def to_tensors(self, state: dict[str, Any]) -> dict[str, Any]:
        """A weight's state without the look-up tables, which every weight shares."""
        return {entry: value for entry, value in state.items() if entry not in ("qmap1", "qmap2")}

    def from_tensors(self, parameter: nn.Parameter, state: dict[str, Any]) -> dict[str, Any]:
        """The state that `to_tensors` took apart, with the look-up tables on the weight's device."""
        if "absmax1" not in state:
            return state
        signed, unsigned = self.name2qmap["dynamic"], self.name2qmap["udynamic"]
        return state | {"qmap1": signed.to(parameter.device), "qmap2": unsigned.to(parameter.device)}

    def _move(
        self, weight: Tensor, gradient: Tensor, state: dict[str, Any], part: slice, group: dict[str, Any]
    ) -> None:
        first, second = (state[entry].view(-1)[part] for entry in ("state1", "state2"))
        (beta1, beta2), eps, decay = group["betas"], group["eps"], group["weight_decay"]
        step, lr = state["step"], group["lr"]
        if first.dtype == torch.float32:
            functional.optimizer_update_32bit(
                "adam", gradient, weight, first, beta1, eps, step, lr, second, beta2, weight_decay=decay
            )
            return
        blocks = slice(part.start // 256, -(-part.stop // 256))
        functional.optimizer_update_8bit_blockwise(
            "adam",
            gradient,
            weight,
            first,
            second,
            beta1,
            beta2,
            beta3=0.0,
            alpha=0.0,
            eps=eps,
            step=step,
            lr=lr,
            qmap1=state["qmap1"],
            qmap2=state["qmap2"],
            absmax1=state["absmax1"][blocks],
            absmax2=state["absmax2"][blocks],
            weight_decay=decay,
        )


def join_halves(high: Tensor, low: Tensor) -> Tensor:
    """The float32 weights whose nearest bfloat16 values and remainders these are.

    Args:
        high: bfloat16.
        low: int16 of the same shape: how many last places of float32 lie between `high` and the weight.
    """
    return (high.float().view(torch.int32) + low.int()).view(torch.float32)


def split_halves(full: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest bfloat16 values of float32 weights and the remainders that `join_halves` takes."""
    high = full.bfloat16()
    low = full.view(torch.int32) - high.float().view(torch.int32)
    # Halfway cases that were rounded down leave 32768, one more than int16 holds: round these up instead.
    tie = low == 2**15
    high = torch.where(tie, high.view(torch.int16) + 1, high.view(torch.int16)).view(torch.bfloat16)
    return high, torch.where(tie, -(2**15), low).to(torch.int16)
