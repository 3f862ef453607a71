"""AdamW with 8-bit moments and stochastic rounding of bfloat16 weights, repeatable from any step."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torchao.optim import AdamW8bit
from torchao.optim.subclass_8bit import OptimState8bit


class AdamW8bitStochastic(AdamW8bit):
    """torchao's AdamW8bit whose roundings depend on the seed and the step alone, so that a resumed run repeats them.

    Moments are quantised in blocks of 256; of tensors with fewer than 4096 elements, or a number that is no multiple
    of 256, they are kept in float32. On the CPU steps run uncompiled: compiling takes longer than it saves.

    Args:
        groups: parameter groups, as of any optimizer.
        seed: of the roundings.
        lr, betas, eps, weight_decay: as in AdamW.

    Source: Dettmers et al. 2022, arXiv:2110.02861; Zamirai et al. 2021, arXiv:2010.06192, section 4.
    """

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        *,
        seed: int,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
    ) -> None:
        rates = [group.get("lr", lr) for group in groups]
        super().__init__(groups, lr, betas, eps, weight_decay, bf16_stochastic_round=True)
        self._seed = seed
        for group, rate in zip(self.param_groups, rates, strict=True):
            group["lr"] = rate

    def step(self, closure: Any = None) -> None:
        """Move every weight that has a gradient; the global random state is left as it was."""
        parameters = [p for group in self.param_groups for p in group["params"]]
        devices = sorted({p.device.index for p in parameters if p.device.type == "cuda"})
        steps = max((int(state["step"]) for state in self.state.values() if state), default=0)
        rates = [group["lr"] for group in self.param_groups]
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng(devices))
            if not devices:
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            # torchao draws from the global generator and takes rates as tensors only. On the CPU a seed has 32 bits.
            torch.manual_seed((self._seed * 1_000_003 + steps) % 2**32)
            for group, rate in zip(self.param_groups, rates, strict=True):
                group["lr"] = torch.tensor(rate, dtype=torch.float32)
            super().step(closure)
        for group, rate in zip(self.param_groups, rates, strict=True):
            group["lr"] = rate

    def to_tensors(self, state: dict[str, Any]) -> dict[str, Any]:
        """A weight's state in plain tensors: a quantised moment is its codes and its scales."""
        tensors: dict[str, Any] = {}
        for entry, value in state.items():
            if isinstance(value, OptimState8bit):
                tensors |= {f"{entry}.codes": value.codes, f"{entry}.scale": value.scale}
            else:
                tensors[entry] = value
        return tensors

    def from_tensors(self, parameter: nn.Parameter, state: dict[str, Any]) -> dict[str, Any]:
        """The state that `to_tensors` took apart."""
        whole = {entry: value for entry, value in state.items() if "." not in entry}
        for entry in {entry.partition(".")[0] for entry in state} - set(whole):
            moment = self._new_buffer(parameter, signed=entry == "exp_avg")
            moment.codes.copy_(state[f"{entry}.codes"])
            moment.scale.copy_(state[f"{entry}.scale"])
            whole[entry] = moment
        return whole

    def _new_buffer(self, p: Tensor, signed: bool) -> Any:
        # torchao keeps small moments in the weight's dtype; in bfloat16 a second moment would never decay.
        buffer = super()._new_buffer(p, signed)
        return buffer if isinstance(buffer, OptimState8bit) else buffer.float()
