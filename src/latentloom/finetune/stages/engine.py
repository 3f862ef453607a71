"""DeepSpeed's pipeline engine for rows in which most layers are frozen."""

from __future__ import annotations

import contextlib
import io
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from deepspeed import comm
from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.runtime.pipe import schedule
from deepspeed.runtime.pipe.engine import PipelineEngine
from deepspeed.runtime.pipe.module import PipelineModule
from deepspeed.runtime.pipe.topology import PipeDataParallelTopology
from torch import Tensor
from torch.optim import Optimizer

from latentloom.finetune.stages.layers import PipelineLayer

log = logging.getLogger(__name__)

LossFunction = Callable[[tuple[Tensor, ...], tuple[Tensor, ...]], Tensor]


class StagedModule(PipelineModule):
    """One stage of a row that was cut before; DeepSpeed has no say in where.

    Args:
        layers: this stage's.
        parts: where each stage begins in the row, and the row's end.
        loss: from the last layer's output and the labels of a micro-batch to a scalar.
    """

    def __init__(self, layers: Sequence[PipelineLayer], parts: Sequence[int], loss: LossFunction) -> None:
        self._local_layers = list(layers)
        self._given_parts = list(parts)
        self._mode: bool | None = None
        num_stages = len(parts) - 1
        topology = PipeDataParallelTopology(num_pp=num_stages, num_dp=comm.get_world_size() // num_stages)
        with quiet():
            # sizes of buckets differ, so shapes are sent along with every tensor
            super().__init__([None] * parts[-1], topology=topology, loss_fn=loss, dynamic_shape=True)

    @property
    def bounds(self) -> tuple[int, int]:
        """The places in the row of this stage's first layer and of the one after its last."""
        return self._given_parts[self.stage_id], self._given_parts[self.stage_id + 1]

    def train(self, mode: bool = True) -> StagedModule:
        if mode != self._mode:  # DeepSpeed asks at every step, and every module would be visited
            super().train(mode)
            self._mode = mode
        return self

    def _partition_layers(self, method: str = "") -> None:
        self.parts = self._given_parts
        begin, end = self.bounds
        self._set_bounds(start=begin, stop=end)
        self._layer_specs[begin:end] = self._local_layers


class StagedEngine(PipelineEngine):
    """The engine, with four defects of DeepSpeed 0.19.8 kept away from training.

    Gradients cross a border between stages only where something before the border is trained; every stage's gradients
    count in the norm that is clipped; receive buffers are made for the type that arrives; and the gradients of several
    outputs go back in one pass.

    Args:
        module: this process's stage.
        optimizer: of its trained parameters, of which there may be none.
        first_trained: the first layer of the row in which anything is trained.
        num_accumulated: micro-batches in a step.
        clip: largest norm of the gradient over all stages; 0 is no limit.
    """

    def __init__(
        self, module: StagedModule, optimizer: Optimizer, *, first_trained: int, num_accumulated: int, clip: float
    ) -> None:
        settings = {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": num_accumulated,
            "gradient_clipping": clip,
            "steps_per_print": 2**31,
            "zero_force_ds_cpu_optimizer": False,
        }
        begin, end = module.bounds
        self._trained = [weight for weight in module.parameters() if weight.requires_grad]
        self._trains_before = first_trained < begin
        self._trains_until_here = first_trained < end
        self.gradient_norm = 0.0
        with quiet():
            super().__init__(
                args=None,
                model=module,
                optimizer=optimizer,
                config=settings,
                config_class=DeepSpeedConfig(settings, module.mpu()),
                mpu=module.mpu(),
                dist_init_required=False,
            )

    @property
    def staged(self) -> StagedModule:
        """This process's stage."""
        assert isinstance(self.module, StagedModule)
        return self.module

    def train_step(self, micro_batches: Iterator[Any]) -> float:
        """The mean loss of one optimizer step, the same in every process."""
        return _scalar(self.train_batch(data_iter=micro_batches))

    @torch.no_grad()
    def evaluate(self, micro_batch: Any) -> float:
        """The loss of one micro-batch, the same in every process."""
        return _scalar(self.eval_batch(iter([micro_batch]), num_micro_batches=1))

    def clip_fp32_gradients(self) -> None:
        """Shorten the gradient of all stages together to the limit.

        Source: DeepSpeed 0.19.8 `runtime/engine.py`, whose norm is that of one stage.
        """
        gradients = [weight.grad for weight in self._trained if weight.grad is not None]
        square = torch.zeros((), device=self.device)
        for gradient in gradients:
            square += gradient.float().square().sum()
        if self.num_stages > 1:
            comm.all_reduce(square, group=self.grid.get_pipe_parallel_group())
        self.gradient_norm = math.sqrt(float(square))
        if self.gradient_norm > self.gradient_clipping():
            for gradient in gradients:
                gradient.mul_(self.gradient_clipping() / (self.gradient_norm + 1e-6))

    def zero_grad(self) -> None:
        """Forget the gradients; what is frozen has none."""
        for weight in self._trained:
            weight.grad = None

    def _allocate_or_extend_buffers(self, idx: int, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.empty(tuple(shape), dtype=dtype, device=self.device)

    def _exec_recv_activations(self, buffer_id: int) -> None:
        super()._exec_recv_activations(buffer_id)
        if not self._trains_before:
            for tensor in self.pipe_buffers["inputs"][buffer_id]:
                tensor.requires_grad_(False)

    def _exec_reduce_grads(self) -> None:
        if self.grid.get_data_parallel_world_size() > 1:
            super()._exec_reduce_grads()

    def _exec_send_grads(self, buffer_id: int) -> None:
        if self._trains_before:
            super()._exec_send_grads(buffer_id)
        self.pipe_buffers["inputs"][buffer_id] = None

    def _exec_recv_grads(self, buffer_id: int) -> None:
        if self._trains_until_here:
            super()._exec_recv_grads(buffer_id)

    def _exec_backward_pass(self, buffer_id: int) -> None:
        if self.is_last_stage():
            super()._exec_backward_pass(buffer_id)
            return
        if self._trains_until_here:
            outputs = [tensor for tensor in self.pipe_buffers["outputs"][buffer_id] if tensor.is_floating_point()]
            pairs = [pair for pair in zip(outputs, self.grad_layer or (), strict=True) if pair[0].requires_grad]
            self._running_engine_backward = True
            try:
                torch.autograd.backward([output for output, _ in pairs], [gradient for _, gradient in pairs])
            finally:
                self._running_engine_backward = False
        self.pipe_buffers["output_tensors"][buffer_id] = None
        self.pipe_buffers["outputs"][buffer_id] = None

    _INSTRUCTION_MAP = PipelineEngine._INSTRUCTION_MAP | {
        schedule.BackwardPass: _exec_backward_pass,
        schedule.RecvActivation: _exec_recv_activations,
        schedule.ReduceGrads: _exec_reduce_grads,
        schedule.SendGrad: _exec_send_grads,
        schedule.RecvGrad: _exec_recv_grads,
    }


def _scalar(loss: Any) -> float:
    return float(loss)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Sends what DeepSpeed prints to the log."""
    printed = io.StringIO()
    logger = logging.getLogger("DeepSpeed")
    before = logger.level
    try:
        logger.setLevel(logging.WARNING)
        with contextlib.redirect_stdout(printed):
            yield
    finally:
        logger.setLevel(before)
        for line in printed.getvalue().splitlines():
            log.debug("deepspeed: %s", line)
