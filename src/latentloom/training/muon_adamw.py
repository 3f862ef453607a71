"""Muon and AdamW as one optimizer, with one state."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.optim import AdamW, Muon, Optimizer


class MuonWithAdamW(Optimizer):
    """Muon for the groups that say so and AdamW for the others, behind one set of groups and one state.

    Args:
        groups: each with `params`, `lr`, `weight_decay` and `muon`: true for matrices that Muon moves, at rates in
            AdamW's scale.
        betas, eps: of AdamW.

    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers"; the step size rule is Liu et al. 2025,
    arXiv:2502.16982, eq. 4.
    """

    def __init__(self, groups: Sequence[dict[str, Any]], *, betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups, {})
        empty = [{"params": []}]
        # Either part fills in what its own groups lack; the groups themselves stay this optimizer's.
        self._muon = Muon(self._groups(muon=True) or empty, adjust_lr_fn="match_rms_adamw")
        self._adamw = AdamW(self._groups(muon=False) or empty, betas=betas, eps=eps)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Move every weight that has a gradient."""
        for part, muon in ((self._muon, True), (self._adamw, False)):
            # Loading a state replaces groups and state, so they are handed down at every step.
            part.param_groups, part.state = self._groups(muon), self.state
            part.step()

    def _groups(self, muon: bool) -> list[dict[str, Any]]:
        return [group for group in self.param_groups if group["muon"] == muon]
