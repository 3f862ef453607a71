"""Earlier samples by class, kept in rings, from which the field's positives and negatives are drawn."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Int64, Shaped
from torch import Tensor


class SampleQueue:
    """The newest `capacity` samples of every class.

    Draw a step's negatives before its own samples are pushed: a generated sample that meets its own copy has a
    distance of 0 to it, and the field then points towards collapse.

    Args:
        num_classes: 1 for a bank that is shared by all classes.
        capacity: samples kept per class.
        sample_shape: of one sample.
        dtype, device: of the kept samples.

    Attributes:
        num_pushed: samples of each class that were ever pushed, Int64 [num_classes].
    """

    def __init__(
        self,
        num_classes: int,
        capacity: int,
        sample_shape: Sequence[int],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.capacity = capacity
        self.num_pushed = torch.zeros(num_classes, dtype=torch.int64, device=device)
        self._samples = torch.zeros(num_classes, capacity, *sample_shape, dtype=dtype, device=device)

    @property
    def occupancy(self) -> Int64[Tensor, "K"]:
        """Samples that are held of each class."""
        return self.num_pushed.clamp_max(self.capacity)

    @torch.no_grad()
    def push(self, classes: Int64[Tensor, "B"], samples: Shaped[Tensor, "B *shape"]) -> None:
        """Add samples, in their order; of each class the oldest make room.

        Args:
            classes: class number of each sample.
            samples: any number of them; of more than `capacity` of one class the last ones stay.
        """
        classes = classes.to(self.num_pushed.device)
        by_class = torch.argsort(classes, stable=True)
        owners = classes[by_class]
        counts = torch.zeros_like(self.num_pushed).index_add_(0, classes, torch.ones_like(classes))
        first = counts.cumsum(0) - counts  # where each class begins in the sorted order
        rank = torch.arange(len(classes), device=classes.device) - first[owners]
        if len(classes) > self.capacity:  # only then can two samples claim one place, of which the later must win
            stays = rank >= (counts - self.capacity)[owners]
            by_class, owners, rank = by_class[stays], owners[stays], rank[stays]
        places = (self.num_pushed[owners] + rank) % self.capacity
        self._samples[owners, places] = samples.detach().to(self._samples)[by_class]
        self.num_pushed += counts

    def sample(
        self, classes: Int64[Tensor, "C"], num: int, generator: torch.Generator, part: slice = slice(None)
    ) -> tuple[Shaped[Tensor, "C num *shape"], Bool[Tensor, "C num"]]:
        """Draw `num` samples of each class, uniformly and without replacement; rows are independent.

        Args:
            classes: class numbers, which may repeat.
            num: samples per row.
            generator: on any device; the same one draws the same places wherever the queue lies.
            part: of the classes whose samples are wanted; the draw is that of all classes, so that processes which
                share the classes draw what one process would.

        Returns:
            The samples, and which of them are real: where a class holds fewer, its last places are zeros.
        """
        device = self.num_pushed.device
        classes = classes.to(device)
        held = self.occupancy[classes, None]
        width = max(self.capacity, num)
        keys = torch.rand(len(classes), width, generator=generator, device=generator.device)[part].to(device)
        classes, held = classes[part], held[part]
        is_held = torch.arange(width, device=device) < held
        places = keys.masked_fill(~is_held, 2.0).argsort(dim=1)[:, :num]  # the keys of held ones are below 1
        valid = torch.arange(num, device=device) < held
        drawn = self._samples[classes[:, None], places.clamp_max(self.capacity - 1)]
        return drawn.masked_fill(~valid.view(*valid.shape, *[1] * (drawn.ndim - 2)), 0), valid

    def state_dict(self) -> dict[str, Tensor]:
        """The rings and how often they were pushed to; not copied."""
        return {"samples": self._samples, "num_pushed": self.num_pushed}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Hold exactly what the queue held that gave the state.

        Raises:
            ValueError: that queue had other classes, another capacity, other samples or another dtype.
        """
        samples = state["samples"]
        if samples.shape != self._samples.shape or samples.dtype != self._samples.dtype:
            raise ValueError(
                f"a queue of {tuple(samples.shape)} {samples.dtype} is no queue of "
                f"{tuple(self._samples.shape)} {self._samples.dtype}"
            )
        self._samples.copy_(samples)
        self.num_pushed.copy_(state["num_pushed"])
