"""Classes and images come in shuffled passes: equally often, never twice before all came, exactly resumed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentloom.drifting.sampler import ClassSampler
from latentloom.training import load_state, save_state

sizes = st.lists(st.integers(1, 9), min_size=1, max_size=5)
seeds = st.integers(0, 2**32 - 1)
calls = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 12)), max_size=8)


def labels_of(class_sizes: list[int], seed: int = 0) -> torch.Tensor:
    """That many images of each class, in any order."""
    labels = torch.repeat_interleave(torch.arange(len(class_sizes)), torch.tensor(class_sizes))
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]


def drawn(sampler: ClassSampler, numbers: list[tuple[int, int]]) -> list[tuple[list, list]]:
    steps = []
    for num_classes, num in numbers:
        classes = sampler.next_classes(num_classes)
        steps.append((classes.tolist(), sampler.next_indices(classes, num).tolist()))
    return steps


@given(sizes, calls, seeds)
def test_classes_come_equally_often(class_sizes, numbers, seed):
    sampler, counts = ClassSampler(labels_of(class_sizes), seed), torch.zeros(len(class_sizes))
    for num, _ in numbers:
        classes = sampler.next_classes(num)
        assert len(classes) == num
        counts += torch.bincount(classes, minlength=len(class_sizes))
        assert counts.max() - counts.min() <= 1


@given(sizes, calls, seeds)
def test_images_are_of_their_class_and_come_equally_often(class_sizes, numbers, seed):
    labels = labels_of(class_sizes, seed)
    sampler, counts = ClassSampler(labels, seed), torch.zeros(len(labels))
    for num_classes, num in numbers:
        classes = sampler.next_classes(num_classes)
        indices = sampler.next_indices(classes, num)
        assert indices.shape == (num_classes, num)
        assert torch.equal(labels[indices], classes[:, None].expand(-1, num))
        counts += torch.bincount(indices.flatten(), minlength=len(labels))
        for number in range(len(class_sizes)):
            of_class = counts[labels == number]
            assert of_class.max() - of_class.min() <= 1


@given(sizes, calls, seeds)
def test_nothing_repeats_in_a_call_before_all_of_it_came(class_sizes, numbers, seed):
    sampler = ClassSampler(labels_of(class_sizes), seed)
    for classes, indices in drawn(sampler, numbers):
        assert len(set(classes[: len(class_sizes)])) == min(len(classes), len(class_sizes))
        if len(set(classes)) < len(classes):
            continue  # the second row of a class goes on where the first ended
        for number, row in zip(classes, indices, strict=True):
            assert len(set(row)) == min(len(row), class_sizes[number])


@given(sizes, calls, calls, seeds)
def test_a_sampler_goes_on_exactly_from_its_state(class_sizes, before, after, seed):
    labels = labels_of(class_sizes)
    sampler, again = ClassSampler(labels, seed), ClassSampler(labels, seed)
    drawn(sampler, before)
    again.load_state_dict(sampler.state_dict())
    assert drawn(again, after) == drawn(sampler, after)


def test_passes_are_shuffled_anew_and_by_the_seed():
    labels = labels_of([20, 20])
    sampler = ClassSampler(labels, 0)
    first, second = (sampler.next_indices(torch.tensor([0]), 20).flatten() for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(first.sort().values, second.sort().values)
    assert not torch.equal(first, ClassSampler(labels, 1).next_indices(torch.tensor([0]), 20).flatten())
    assert torch.equal(first, ClassSampler(labels, 0).next_indices(torch.tensor([0]), 20).flatten())


def test_what_was_handed_out_does_not_change_later():
    sampler = ClassSampler(labels_of([3]), 0)
    classes, indices = sampler.next_classes(1), sampler.next_indices(torch.tensor([0]), 3)
    kept = indices.clone()
    for _ in range(5):
        sampler.next_indices(sampler.next_classes(1), 2)
    assert classes.tolist() == [0]
    assert torch.equal(indices, kept)


def test_a_sampler_is_part_of_a_training_checkpoint(tmp_path):
    labels = labels_of([4, 7, 2])
    sampler, again = ClassSampler(labels, 3), ClassSampler(labels, 3)
    drawn(sampler, [(2, 3), (2, 5)])
    save_state(tmp_path / "state.safetensors", 2, {"sampler": sampler}, [])
    load_state(tmp_path / "state.safetensors", {"sampler": again}, [])
    assert drawn(again, [(3, 4)] * 5) == drawn(sampler, [(3, 4)] * 5)


@pytest.mark.parametrize("other", [ClassSampler(labels_of([4, 3]), 0), ClassSampler(labels_of([3, 4]), 1)])
def test_the_state_of_other_images_or_another_seed_is_refused(other):
    with pytest.raises(ValueError, match="another seed or of other images"):
        ClassSampler(labels_of([3, 4]), 0).load_state_dict(other.state_dict())


@pytest.mark.parametrize("labels", [[], [0, 2]])
def test_a_class_without_images_is_refused(labels):
    with pytest.raises(ValueError, match="some have no images"):
        ClassSampler(torch.tensor(labels, dtype=torch.int64), 0)
