"""Which classes and which of their images come next: shuffled passes, so that none is favoured."""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from latentloom.runs.randomness import step_generator


class ClassSampler:
    """Deals out classes, and images of given classes, in shuffled passes; continues exactly from its state.

    Nothing comes twice in one call unless all of it has come: where a pass ends in the middle of a call, the next one
    begins with what the call has not yet had.

    Args:
        labels: class number of each image; every class up to the largest has an image.
        seed: of the orders.

    Raises:
        ValueError: a class without images.
    """

    def __init__(self, labels: Int64[Tensor, "N"], seed: int) -> None:
        self.seed = seed
        labels = labels.cpu()
        self._sizes = torch.bincount(labels)
        if not len(labels) or not bool(self._sizes.all()):
            raise ValueError(f"of {len(self._sizes)} classes some have no images; give at least one of each")
        by_class = torch.argsort(labels, stable=True)
        self._images = by_class.split(self._sizes.tolist())
        self._decks = [_Deck(size, seed, f"class {number}") for number, size in enumerate(self._sizes.tolist())]
        self._class_deck = _Deck(len(self._sizes), seed, "classes")

    @property
    def num_classes(self) -> int:
        """Classes, all of which have images."""
        return len(self._sizes)

    def next_classes(self, num: int) -> Int64[Tensor, "num"]:
        """The next `num` classes; up to `num_classes` of them are all different."""
        return self._class_deck.draw(num)

    def next_indices(self, classes: Int64[Tensor, "C"], num: int) -> Int64[Tensor, "C num"]:
        """The numbers of the next `num` images of each class.

        Args:
            classes: class numbers; one that is named twice goes on where its first row ended.
            num: images per class; a class that has fewer repeats some, after all of it has come.
        """
        rows = [self._images[number][self._decks[number].draw(num)] for number in classes.tolist()]
        return torch.stack(rows) if rows else torch.empty(0, num, dtype=torch.int64)

    def state_dict(self) -> dict[str, Tensor]:
        """Where every pass is, as tensors."""
        decks = [self._class_deck, *self._decks]
        return {
            "seed": torch.tensor(self.seed),
            "sizes": self._sizes.clone(),
            "orders": torch.cat([deck.order for deck in decks]),
            "places": torch.tensor([deck.place for deck in decks]),
            "passes": torch.tensor([deck.num_passes for deck in decks]),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue where `state_dict` was taken.

        Raises:
            ValueError: the state is that of another seed or of other images.
        """
        if int(state["seed"]) != self.seed or not torch.equal(state["sizes"].cpu(), self._sizes):
            raise ValueError("the sampler's state is of another seed or of other images")
        decks = [self._class_deck, *self._decks]
        orders = state["orders"].cpu().split([len(deck.order) for deck in decks])
        for deck, order, place, num_passes in zip(
            decks, orders, state["places"].tolist(), state["passes"].tolist(), strict=True
        ):
            deck.order, deck.place, deck.num_passes = order.clone(), place, num_passes


class _Deck:
    """The numbers 0 to size - 1 in shuffled passes."""

    def __init__(self, size: int, seed: int, name: str) -> None:
        self.seed = seed
        self.name = name
        self.num_passes = 0
        self.place = 0
        self.order = torch.empty(size, dtype=torch.int64)
        self._shuffle(torch.zeros(size, dtype=torch.bool))

    def draw(self, num: int) -> Int64[Tensor, "num"]:
        """The next `num` numbers."""
        parts = []
        while num:
            if self.place == len(self.order):
                self._shuffle(_among(parts[-1:], len(self.order)))
            parts.append(self.order[self.place : self.place + num])
            self.place += len(parts[-1])
            num -= len(parts[-1])
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)

    def _shuffle(self, comes_late: Bool[Tensor, "size"]) -> None:
        """A new pass; the marked numbers come after the others."""
        generator = step_generator(self.seed, self.num_passes, self.name)
        order = torch.randperm(len(self.order), generator=generator)
        # a new tensor: slices of the old one are still in the caller's hands
        self.order = torch.cat([order[~comes_late[order]], order[comes_late[order]]])
        self.place = 0
        self.num_passes += 1


def _among(parts: list[Tensor], size: int) -> Bool[Tensor, "size"]:
    marked = torch.zeros(size, dtype=torch.bool)
    for part in parts:
        marked[part] = True
    return marked
