"""Cross-entropy of the next token without the whole table of logits."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.autograd import Function

#: Rows of logits made at a time on a CPU: 25 MB of float32 with 49,152 words, 78 MB with 152,000. Products of fewer
#: rows leave it waiting for the weights, those of more are no faster (docs/experiments/bridge.md).
CHUNK_ROWS = 128

#: Values of logits made at a time on an accelerator: half a gigabyte in float32.
CUDA_CHUNK_VALUES = 2**27


def linear_cross_entropy(
    hidden: Float[Tensor, "N H"], weight: Float[Tensor, "V H"], targets: Int64[Tensor, "N"]
) -> tuple[Float[Tensor, "N"], Bool[Tensor, "N"]]:
    """Cross-entropy in nats of each row, and whether its most likely word is the target; float32.

    Logits exist for a few rows at a time, as a vocabulary of 152,000 words would take 600 KB a row. A frozen weight
    costs one pass: the gradient to the states is made together with the loss.

    Args:
        hidden: last states of the positions that predict; N positions of H channels.
        weight: of the output layer; V words.
        targets: what they should predict.
    """
    loss, correct = _LinearCrossEntropy.apply(hidden, weight, targets)
    return loss, correct


def logit_chunks(hidden: Float[Tensor, "N H"], weight: Float[Tensor, "V H"]) -> list[slice]:
    """Rows whose logits of V words are made at a time, so that they never all exist."""
    size = CHUNK_ROWS if hidden.device.type == "cpu" else max(1, CUDA_CHUNK_VALUES // len(weight))
    return [slice(start, start + size) for start in range(0, len(hidden), size)]


class _LinearCrossEntropy(Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        needs_hidden, needs_weight, _ = ctx.needs_input_grad
        loss = hidden.new_empty(len(hidden), dtype=torch.float32)
        correct = torch.empty(len(hidden), dtype=torch.bool, device=hidden.device)
        gradient = torch.empty_like(hidden) if needs_hidden and not needs_weight else None
        used = weight.to(hidden.dtype)
        for rows in logit_chunks(hidden, weight):
            logits = (hidden[rows] @ used.T).float()
            wanted = targets[rows, None]
            correct[rows] = logits.argmax(-1) == targets[rows]
            logs = logits.log_softmax(-1)
            loss[rows] = -logs.gather(1, wanted).squeeze(1)
            if gradient is not None:
                gradient[rows] = _error(logs, wanted).to(hidden.dtype) @ used
        ctx.save_for_backward(*((gradient,) if gradient is not None else (hidden, weight, targets)))
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        upstream = gradients[0]
        if len(ctx.saved_tensors) == 1:
            (gradient,) = ctx.saved_tensors
            return gradient * upstream[:, None].to(gradient.dtype), None, None
        hidden, weight, targets = ctx.saved_tensors
        used = weight.to(hidden.dtype)
        to_hidden = torch.empty_like(hidden)
        to_weight = torch.zeros_like(weight, dtype=torch.float32)
        for rows in logit_chunks(hidden, weight):
            logs = (hidden[rows] @ used.T).float().log_softmax(-1)
            error = (_error(logs, targets[rows, None]) * upstream[rows, None]).to(hidden.dtype)
            to_hidden[rows] = error @ used
            to_weight += (error.T @ hidden[rows]).float()
        return to_hidden, to_weight.to(weight.dtype), None


def _error(logs: Float[Tensor, "n V"], wanted: Int64[Tensor, "n 1"]) -> Float[Tensor, "n V"]:
    """Probabilities less the one-hot target: the gradient of the loss to the logits."""
    return logs.exp_().scatter_add_(1, wanted, torch.full_like(wanted, -1, dtype=logs.dtype))
