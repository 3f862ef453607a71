"""Parts that training loops are made of: optimizers, schedules, averages, checkpoints, curves. There is no Trainer."""

from latentloom.training.checkpointing import TrainedWeights, load_state, save_state
from latentloom.training.curve import Curve, read_curve
from latentloom.training.ema import WeightAverage
from latentloom.training.optimizers import make_optimizers, set_learning_rate
from latentloom.training.schedules import trapezoid

__all__ = [
    "Curve",
    "TrainedWeights",
    "WeightAverage",
    "load_state",
    "make_optimizers",
    "read_curve",
    "save_state",
    "set_learning_rate",
    "trapezoid",
]
