"""Cross-entropy of the next token without the whole table of logits."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.autograd import Function

#: Rows of logits made at a time on a CPU: products of fewer rows leave it waiting for the weights, and larger tables
#: are memory that the system clears anew in every step (docs/experiments/bridge.md).
CHUNK_ROWS = 64

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
        tables = _Tables(hidden, weight)
        for rows in logit_chunks(hidden, weight):
            logs = tables.log_softmax(hidden[rows], used)
            wanted = targets[rows, None]
            correct[rows] = logs.argmax(-1) == targets[rows]
            loss[rows] = -logs.gather(1, wanted).squeeze(1)
            if gradient is not None:
                torch.mm(tables.error(logs, wanted), used, out=gradient[rows])
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
        tables = _Tables(hidden, weight)
        for rows in logit_chunks(hidden, weight):
            logs = tables.log_softmax(hidden[rows], used)
            error = tables.error(logs, targets[rows, None], upstream[rows, None])
            torch.mm(error, used, out=to_hidden[rows])
            to_weight += (error.T @ hidden[rows]).float()
        return to_hidden, to_weight.to(weight.dtype), None


class _Tables:
    """Logits of a chunk and their logarithms of probabilities, in memory that all chunks of a pass share.

    Args:
        hidden: states of all chunks.
        weight: of the output layer.
    """

    def __init__(self, hidden: Float[Tensor, "N H"], weight: Float[Tensor, "V H"]) -> None:
        shape = max((len(hidden[rows]) for rows in logit_chunks(hidden, weight)), default=0), len(weight)
        self.logs = hidden.new_empty(shape, dtype=torch.float32)
        self.logits = self.logs if hidden.dtype == torch.float32 else hidden.new_empty(shape)

    def log_softmax(self, hidden: Float[Tensor, "n H"], weight: Float[Tensor, "V H"]) -> Float[Tensor, "n V"]:
        """Logarithms of the probabilities of a chunk, until the next one's are asked for."""
        logits, logs = self.logits[: len(hidden)], self.logs[: len(hidden)]
        torch.mm(hidden, weight.T, out=logits)
        if logits.dtype != logs.dtype:
            logs.copy_(logits)
        return torch.log_softmax(logs, -1, out=logs)

    def error(
        self, logs: Float[Tensor, "n V"], wanted: Int64[Tensor, "n 1"], factors: Float[Tensor, "n 1"] | None = None
    ) -> Float[Tensor, "n V"]:
        """Probabilities less the one-hot target, times each row's factor: the gradient of the loss to the logits.

        It takes the place of the logarithms, in the dtype of the states.
        """
        logs.exp_().scatter_add_(1, wanted, torch.full_like(wanted, -1, dtype=logs.dtype))
        if factors is not None:
            logs.mul_(factors)
        return logs if self.logits.dtype == logs.dtype else self.logits[: len(logs)].copy_(logs)
