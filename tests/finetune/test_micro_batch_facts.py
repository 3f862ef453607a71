"""What blocks share of a micro-batch: found once, and found anew for the next one."""

import torch
from tiny_checkpoint import tiny_transformer

from latentloom.finetune.stages.micro_batch_facts import MicroBatchFacts


def test_the_rotary_embedding_is_the_transformers_and_one_for_all_blocks() -> None:
    rope = tiny_transformer().rope
    facts = MicroBatchFacts(rope)
    small, large = torch.tensor([1, 4, 6]), torch.tensor([3, 4, 6])
    assert facts.rotary(small) is facts.rotary(small)
    for grid in (small, large, small):
        expected = rope(torch.empty(1, 1, *grid.tolist()))
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(facts.rotary(grid), expected, strict=True))


def test_another_micro_batch_has_its_own_numbers() -> None:
    facts = MicroBatchFacts(tiny_transformer().rope)
    seeds, grids = (
        [torch.tensor(7), torch.tensor(8), torch.tensor(7)],
        [torch.tensor([1, 2, 2]), torch.tensor([3, 2, 4])],
    )
    assert [facts.seed(seed) for seed in seeds] == [7, 8, 7]
    assert [facts.grid(grid) for grid in grids] == [[1, 2, 2], [3, 2, 4]]
