"""Every pair of a sweep has its own noise."""

from latentloom.steering.sweep.prompts import PromptPair, seed_pairs


def test_every_pair_has_a_seed_of_its_own_and_the_list_is_gone_through_again():
    pairs = [("a", "b"), ("c", "d")]
    assert seed_pairs(pairs, None, 7) == [PromptPair("a", "b", 7), PromptPair("c", "d", 8)]
    assert seed_pairs(pairs, 3) == [PromptPair("a", "b", 0), PromptPair("c", "d", 1), PromptPair("a", "b", 2)]
    assert seed_pairs(pairs, 1) == [PromptPair("a", "b", 0)]
