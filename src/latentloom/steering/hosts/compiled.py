"""torch.compile and hooks: a compiled module does not look at its hooks again."""

import torch
from torch import nn


def forget_compiled(model: nn.Module) -> None:
    """Make torch compile the model anew where it is compiled, whole or in parts, so that its hooks are seen."""
    if any(hasattr(part, "_orig_mod") or part._compiled_call_impl is not None for part in model.modules()):
        torch.compiler.reset()
