"""Each epoch shows every item; the shares of replicas are disjoint; all follows from the seed."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentloom.finetune.batches import BatchPlan
from latentloom.wan.clip_size import ClipSize

SIZES = [ClipSize(1, 32, 48), ClipSize(9, 32, 48), ClipSize(9, 48, 32), ClipSize(17, 32, 48)]


@st.composite
def arguments(draw: st.DrawFn) -> tuple[Any, ...]:
    """Of a plan; checks of types draw random numbers, so it is made outside."""
    sizes = draw(st.lists(st.sampled_from(SIZES), min_size=1, max_size=40))
    items = draw(st.lists(st.sampled_from(range(len(sizes))), min_size=1, unique=True))
    micro, image, chunks = (draw(st.integers(1, 4)) for _ in range(3))
    return sizes, items, micro, image, chunks, draw(st.integers(0, 2**31 - 1))


def shown(plan: BatchPlan, epoch: int) -> Counter[int]:
    """How often an epoch shows each item."""
    steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
    return Counter(item for step in steps for item in plan.at(step).items)


@given(arguments(), st.integers(0, 3))
def test_every_epoch_shows_every_item_and_few_twice(given_plan: tuple[Any, ...], epoch: int) -> None:
    plan = BatchPlan(*given_plan)
    counts = shown(plan, epoch)
    assert counts.keys() == set(plan.items)
    assert counts.total() - len(plan.items) == sum(plan.filled.values())
    for size in {plan.sizes[item] for item in plan.items}:
        times = [counts[item] for item in plan.items if plan.sizes[item] == size]
        assert max(times) - min(times) <= 1


@given(arguments(), st.integers(0, 100))
def test_a_step_has_one_size_and_as_many_items_as_the_settings_say(given_plan: tuple[Any, ...], step: int) -> None:
    plan = BatchPlan(*given_plan)
    batch = plan.at(step)
    assert {plan.sizes[item] for item in batch.items} == {batch.size}
    micro = plan.image_micro_batch_size if batch.size.num_frames == 1 else plan.micro_batch_size
    assert batch.micro_batch_size == micro
    assert len(batch.items) == plan.global_batch(batch.size) == micro * plan.num_chunks


@given(arguments(), st.integers(0, 100), st.data())
def test_replicas_share_a_step_without_overlap(given_plan: tuple[Any, ...], step: int, data: st.DataObject) -> None:
    plan = BatchPlan(*given_plan)
    divisors = [number for number in range(1, plan.num_chunks + 1) if plan.num_chunks % number == 0]
    num_replicas = data.draw(st.sampled_from(divisors))
    batch = plan.at(step)
    shares = [batch.share(rank, num_replicas) for rank in range(num_replicas)]
    assert {len(share) for share in shares} == {plan.num_chunks // num_replicas}
    assert {len(chunk) for share in shares for chunk in share} == {batch.micro_batch_size}
    positions = [position for share in shares for chunk in share for position in chunk]
    assert sorted(positions) == list(range(len(batch.items)))
    # the micro-batches are those of one process, dealt out
    assert [chunk for share in shares for chunk in share] == batch.share(0, 1)


@given(arguments())
def test_a_plan_follows_from_its_seed_whatever_was_asked_before(given_plan: tuple[Any, ...]) -> None:
    plan = BatchPlan(*given_plan)
    again = BatchPlan(*given_plan)
    last = 3 * plan.steps_per_epoch
    forwards = [plan.at(step) for step in range(last)]
    assert [again.at(step) for step in reversed(range(last))] == forwards[::-1]


def test_epochs_and_seeds_differ() -> None:
    sizes = [SIZES[1]] * 30
    plan, other = (BatchPlan(sizes, range(30), 5, 5, 1, seed) for seed in (0, 1))
    orders = {plan.at(0).items, plan.at(plan.steps_per_epoch).items, other.at(0).items}
    assert len(orders) == 3


@given(arguments())
def test_a_bucket_below_the_global_batch_is_told_and_not_dropped(given_plan: tuple[Any, ...]) -> None:
    plan = BatchPlan(*given_plan)
    counts = Counter(plan.sizes[item] for item in plan.items)
    assert plan.small_buckets() == {size: count for size, count in counts.items() if count < plan.global_batch(size)}


def test_a_single_image_fills_its_batch() -> None:
    plan = BatchPlan([SIZES[0], *[SIZES[1]] * 4], range(5), 2, 3, 1, 0)
    assert plan.steps_per_epoch == 3
    assert plan.small_buckets() == {SIZES[0]: 1}
    assert plan.filled == {SIZES[0]: 2}
    images = next(batch for batch in map(plan.at, range(3)) if batch.size == SIZES[0])
    assert images.items == (0, 0, 0)


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 1, 0, 2]])
def test_the_order_of_the_buckets_does_not_depend_on_which_item_comes_first(order: list[int]) -> None:
    plan = BatchPlan(SIZES, order, 1, 1, 1, 0)
    assert [plan.at(step).size for step in range(4)] == [
        BatchPlan(SIZES, range(4), 1, 1, 1, 0).at(step).size for step in range(4)
    ]
