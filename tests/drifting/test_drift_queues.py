"""A queue holds the newest samples of every class, hands each out once per draw, and continues from its state."""

from collections import defaultdict, deque

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from latentloom.drifting.queues import SampleQueue
from latentloom.training import load_state, save_state

NUM_CLASSES = 4
seeds = st.integers(0, 2**32 - 1)
pushes = st.lists(st.lists(st.integers(0, NUM_CLASSES - 1), max_size=25), max_size=6)


def numbered(start: int, classes: list[int]) -> torch.Tensor:
    """Samples [B, 2, 1] that are told apart by their values."""
    return torch.arange(start, start + len(classes)).float()[:, None, None].expand(-1, 2, -1)


def filled(capacity: int, batches: list[list[int]]) -> tuple[SampleQueue, dict[int, deque]]:
    """A queue and, one sample after the other, what it must hold; samples are numbered from 1."""
    queue, expected, start = SampleQueue(NUM_CLASSES, capacity, (2, 1)), defaultdict(lambda: deque(maxlen=capacity)), 1
    for classes in batches:
        queue.push(torch.tensor(classes, dtype=torch.int64), numbered(start, classes))
        for place, owner in enumerate(classes):
            expected[owner].append(start + place)
        start += len(classes)
    return queue, expected


def everything(queue: SampleQueue, number: int) -> list[int]:
    samples, valid = queue.sample(torch.tensor([number]), queue.capacity, torch.Generator())
    return sorted(samples[0, valid[0], 0, 0].int().tolist())


@given(st.integers(1, 6), pushes)
def test_the_newest_of_every_class_are_held(capacity, batches):
    queue, expected = filled(capacity, batches)
    for number in range(NUM_CLASSES):
        assert everything(queue, number) == sorted(expected[number])
        assert int(queue.occupancy[number]) == len(expected[number])
        assert int(queue.num_pushed[number]) == sum(batch.count(number) for batch in batches)


@given(st.integers(1, 6), pushes, st.lists(st.integers(0, NUM_CLASSES - 1), max_size=5), st.integers(0, 9), seeds)
def test_a_draw_has_no_sample_twice_and_marks_what_is_missing(capacity, batches, classes, num, seed):
    queue, expected = filled(capacity, batches)
    wanted = torch.tensor(classes, dtype=torch.int64)
    samples, valid = queue.sample(wanted, num, torch.Generator().manual_seed(seed))
    assert samples.shape == (len(classes), num, 2, 1)
    for row, owner in enumerate(classes):
        num_real = min(num, len(expected[owner]))
        assert valid[row].tolist() == [True] * num_real + [False] * (num - num_real)
        drawn = samples[row, :num_real, 0, 0].int().tolist()
        assert len(set(drawn)) == num_real
        assert set(drawn) <= set(expected[owner])
        assert not samples[row, num_real:].any()
        assert torch.equal(samples[row, :, 0], samples[row, :, 1])


@given(st.integers(1, 6), pushes, pushes)
def test_a_queue_goes_on_from_its_state(capacity, before, after):
    queue, _ = filled(capacity, before)
    again = SampleQueue(NUM_CLASSES, capacity, (2, 1))
    again.load_state_dict({key: value.clone() for key, value in queue.state_dict().items()})
    for classes in after:
        for one in (queue, again):
            one.push(torch.tensor(classes, dtype=torch.int64), numbered(1000, classes))
    for key, value in queue.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])
    wanted = torch.arange(NUM_CLASSES)
    first, second = (one.sample(wanted, 3, torch.Generator().manual_seed(5)) for one in (queue, again))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_every_held_sample_is_drawn_equally_often():
    queue, _ = filled(8, [[0] * 13])
    samples, _ = queue.sample(torch.zeros(4000, dtype=torch.int64), 3, torch.Generator().manual_seed(0))
    counts = samples[..., 0, 0].int().flatten().bincount(minlength=14)
    assert counts[:6].sum() == 0
    assert stats.chisquare(counts[6:].numpy()).pvalue > 0.01


def test_what_is_missing_is_zero_even_where_a_bad_sample_is_held():
    queue = SampleQueue(2, 3, (1,))
    queue.push(torch.tensor([0]), torch.tensor([[float("nan")]]))
    samples, valid = queue.sample(torch.tensor([0]), 3, torch.Generator())
    assert valid.tolist() == [[True, False, False]]
    assert samples[0, 1:].tolist() == [[0], [0]]


def test_samples_lose_their_gradient_and_are_not_shared_with_the_caller():
    queue = SampleQueue(1, 2, (3,), dtype=torch.bfloat16)
    mine = torch.ones(1, 3, requires_grad=True)
    queue.push(torch.tensor([0]), mine)
    drawn, _ = queue.sample(torch.tensor([0]), 1, torch.Generator())
    assert not drawn.requires_grad
    assert drawn.dtype == torch.bfloat16
    drawn.fill_(7)
    assert queue.sample(torch.tensor([0]), 1, torch.Generator())[0].tolist() == [[[1, 1, 1]]]


def test_a_queue_is_part_of_a_training_checkpoint(tmp_path):
    queue, expected = filled(3, [[0, 1, 1, 1, 1, 3]])
    save_state(tmp_path / "state.safetensors", 9, {"queue": queue}, [])
    again = SampleQueue(NUM_CLASSES, 3, (2, 1))
    assert load_state(tmp_path / "state.safetensors", {"queue": again}, []) == 9
    assert [everything(again, number) for number in range(4)] == [sorted(expected[number]) for number in range(4)]


@pytest.mark.parametrize("other", [(3, 4, (2,)), (2, 5, (2,)), (2, 4, (3,)), (2, 4, (2,), torch.float64)])
def test_the_state_of_another_queue_is_refused(other):
    with pytest.raises(ValueError, match="is no queue of"):
        SampleQueue(2, 4, (2,)).load_state_dict(SampleQueue(*other).state_dict())


def test_a_sample_of_this_step_cannot_be_drawn_before_it_is_pushed():
    queue, _ = filled(4, [[0, 0]])
    drawn, _ = queue.sample(torch.tensor([0]), 4, torch.Generator())
    queue.push(torch.tensor([0]), numbered(99, [0]))
    assert 99 not in drawn
    assert 99 in queue.sample(torch.tensor([0]), 4, torch.Generator())[0]
