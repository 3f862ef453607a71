"""Which images a step of the autoencoder's training sees, in whichever process."""

import torch
from jaxtyping import Int64
from torch import Tensor

from latentloom.runs.randomness import step_generator


class ShuffledBatches:
    """Batches out of one shuffled pass over the images after another; a batch follows from the seed and its step.

    Args:
        num_images: images in a pass.
        batch_size: images in a batch; one at the end of a pass goes on with the next.
        seed: of the orders.
    """

    def __init__(self, num_images: int, batch_size: int, seed: int) -> None:
        self.num_images = num_images
        self.batch_size = batch_size
        self.seed = seed
        self._orders: dict[int, Tensor] = {}

    def rows(self, step: int) -> Int64[Tensor, "B"]:
        """The images' numbers at a step, counted from 0."""
        positions = torch.arange(step * self.batch_size, (step + 1) * self.batch_size)
        passes, places = positions // self.num_images, positions % self.num_images
        needed = range(int(passes[0]), int(passes[-1]) + 1)
        # shuffling a million images takes longer than a step, so an order is kept for as long as its pass lasts
        kept = self._orders
        self._orders = {number: kept[number] if number in kept else self._order(number) for number in needed}
        return torch.cat([self._orders[number][places[passes == number]] for number in needed])

    def _order(self, number: int) -> Tensor:
        return torch.randperm(self.num_images, generator=step_generator(self.seed, number, "order"))
