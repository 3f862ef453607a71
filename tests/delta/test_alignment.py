"""Word alignment finds what each token stands for, where a fit to sums over tokens does not."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from latentloom.delta.alignment import aligned_targets, fit_aligned
from latentloom.delta.baselines import RidgeFit, fit_ridge
from latentloom.delta.pooled_delta import PromptConstants
from latentloom.delta.pooling import pool
from latentloom.tensors import TextEmbeddings

DIM, NUM_WORDS, NUM_PAIRS = 64, 60, 90


class Corpus:
    """Sentences of three to eight words, and the same in known words, in another order, with up to four fillers."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.foreign, self.known = torch.randn(2, NUM_WORDS, DIM, generator=generator)
        fillers = torch.randn(4, DIM, generator=generator)
        base, rewritten = [], []
        for _ in range(NUM_PAIRS + 20):
            num_words, num_fillers = (
                int(torch.randint(low, high, (), generator=generator)) for low, high in [(3, 9), (0, 5)]
            )
            words = torch.randperm(NUM_WORDS, generator=generator)[:num_words]
            sentence = torch.cat([self.known[words], fillers[:num_fillers]])
            base.append(self.foreign[words])
            rewritten.append(sentence[torch.randperm(len(sentence), generator=generator)])
        self.base, self.rewritten = TextEmbeddings.from_list(base), TextEmbeddings.from_list(rewritten)

    def ridge(self) -> RidgeFit:
        """On the first pairs; the last twenty choose the penalty."""
        base, rewritten, val_base, val_rewritten = (
            side[rows] for rows in (slice(NUM_PAIRS), slice(NUM_PAIRS, None)) for side in (self.base, self.rewritten)
        )
        sides = PromptConstants.of(base), pool(rewritten), PromptConstants.of(val_base), pool(val_rewritten)
        return fit_ridge(*sides)

    def nearness(self, fit: RidgeFit) -> float:
        """Mean cosine of the moved foreign words to the known words that they mean."""
        moved = self.foreign + (F.layer_norm(self.foreign, (DIM,)) - fit.centre) @ fit.left @ fit.right + fit.bias
        return F.cosine_similarity(moved, self.known).mean().item()


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return Corpus()


def test_alignment_finds_the_meaning_of_words_where_pooled_ridge_does_not(corpus: Corpus):
    ridge = corpus.ridge()
    fit = fit_aligned(PromptConstants.of(corpus.base[:NUM_PAIRS]), corpus.rewritten[:NUM_PAIRS], ridge, rank=8)
    assert corpus.nearness(fit) > 0.95  # measured: 0.985
    assert corpus.nearness(ridge) < 0.90  # measured: 0.853
    assert fit.left.shape == (DIM, min(8 * 8, DIM))


def test_the_fit_does_not_touch_the_random_state(corpus: Corpus):
    base, ridge = PromptConstants.of(corpus.base[:NUM_PAIRS]), corpus.ridge()
    before = torch.get_rng_state()
    fits = [fit_aligned(base, corpus.rewritten[:NUM_PAIRS], ridge, rank=2) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(fits[0].right, fits[1].right)


def test_tokens_that_are_the_rewrites_stand_for_themselves_in_any_order():
    words = 5 * torch.eye(8)
    base = TextEmbeddings.from_list([words[[0, 1, 2]], words[[5]], words[[3, 4]]])
    rewritten = TextEmbeddings.from_list([words[[2, 0, 1, 6]], words[[5, 7]], words[[4, 3]]])
    found = aligned_targets(base, rewritten)
    # of the other tokens only exp(-10) and its root remain
    assert (found - base.tokens).norm(dim=1).max() < 1e-2


def by_definition(moved: torch.Tensor, rewritten: torch.Tensor) -> torch.Tensor:
    """One prompt's targets, without padding."""
    scores = (F.normalize(moved, dim=1) @ F.normalize(rewritten, dim=1).T).double() / 0.1
    weights = scores.softmax(dim=1) * scores.softmax(dim=0).sqrt()
    return (weights / weights.sum(dim=1, keepdim=True)) @ rewritten.double()


lengths = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 9)), min_size=1, max_size=6)


@given(lengths, st.integers(0, 100))
def test_padding_has_no_weight_and_an_empty_rewrite_no_say(make_prompts, drawn, seed):
    moved = make_prompts([one for one, _ in drawn], seed=seed)
    rewritten = make_prompts([other for _, other in drawn], seed=seed + 1)
    expected = [
        by_definition(ours, theirs) if len(theirs) else ours.double()
        for ours, theirs in zip(moved.to_list(), rewritten.to_list(), strict=True)
    ]
    torch.testing.assert_close(aligned_targets(moved, rewritten), torch.cat(expected).float(), rtol=1e-4, atol=1e-5)


def test_many_pairs_are_aligned_as_each_alone(make_prompts):
    moved, rewritten = make_prompts([row % 5 for row in range(130)]), make_prompts([1 + row % 3 for row in range(130)])
    alone = [aligned_targets(moved[[row]], rewritten[[row]]) for row in range(130)]
    torch.testing.assert_close(aligned_targets(moved, rewritten), torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_an_empty_prompt_or_rewrite_among_the_pairs_leaves_the_fit_finite(corpus: Corpus):
    sides = [side[:NUM_PAIRS].to_list() for side in (corpus.base, corpus.rewritten)]
    sides[0][3], sides[1][7] = sides[0][3][:0], sides[1][7][:0]
    base, rewritten = (TextEmbeddings.from_list(side) for side in sides)
    fit = fit_aligned(PromptConstants.of(base), rewritten, corpus.ridge(), rank=8)
    assert corpus.nearness(fit) > 0.95
