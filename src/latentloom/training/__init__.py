"""Parts that training loops are made of: optimizers, schedules, averaged weights, checkpoints. There is no Trainer."""

from latentloom.training.checkpointing import load_state, save_state
from latentloom.training.ema import WeightAverage
from latentloom.training.optimizers import make_optimizers, set_learning_rate
from latentloom.training.schedules import trapezoid

__all__ = ["WeightAverage", "load_state", "make_optimizers", "save_state", "set_learning_rate", "trapezoid"]
