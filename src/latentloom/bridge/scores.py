"""How near decoded texts and predicted vectors come to the true ones, with 95 % intervals over texts."""

import string
from collections import Counter
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from latentloom.bridge.model import TextLosses
from latentloom.errors import ShapeError
from latentloom.runs.estimates import NUM_RESAMPLES, Estimate, ratio_estimate, resample, sums_estimate

_NO_ARTICLES = frozenset({"a", "an", "the"})
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ROWS_AT_ONCE = 1024


class Scorer:
    """Scores of N held-out texts, all over the same resamples of them, so that differences are paired.

    Args:
        num_texts: N, at least one.
        seed: of the resamples.
        num_resamples: sets of N texts drawn with replacement.
    """

    def __init__(self, num_texts: int, seed: int = 0, num_resamples: int = NUM_RESAMPLES) -> None:
        self.times = resample(num_texts, num_resamples, seed)

    def mean(self, values: Float[Tensor, "N"] | Bool[Tensor, "N"]) -> Estimate:
        """The mean of a figure per text."""
        return ratio_estimate(values.cpu().double(), torch.ones(len(values)), self.times)

    def cross_entropy(self, losses: TextLosses) -> Estimate:
        """Cross-entropy per token in nats: long texts weigh more, as in training."""
        tokens = losses.num_tokens.cpu()
        return ratio_estimate(losses.loss.cpu().double() * tokens, tokens, self.times)

    def accuracy(self, losses: TextLosses) -> Estimate:
        """Share of tokens that the model thought most likely, given the true ones before them."""
        return ratio_estimate(losses.num_correct.cpu(), losses.num_tokens.cpu(), self.times)

    def bleu(self, texts: Sequence[str], references: Sequence[str]) -> Estimate:
        """Corpus BLEU, 0 to 100, as sacrebleu gives it with its defaults."""
        return sums_estimate(bleu_statistics(texts, references), bleu_of_sums, self.times)

    def r2(self, predicted: Float[Tensor, "N D"], true: Float[Tensor, "N D"], mean: Float[Tensor, "D"]) -> Estimate:
        """Share of the squared distance to the mean training vector that the prediction explains; below 0 it is worse.

        Args:
            predicted, true: vectors of the same texts.
            mean: of the training vectors.
        """
        left = (predicted.float() - true.float()).square().sum(dim=1)
        whole = (true.float() - mean.float()).square().sum(dim=1)
        columns = torch.stack([left, whole], dim=1)
        return sums_estimate(columns.cpu(), lambda sums: 1 - sums[:, 0] / sums[:, 1], self.times)


def cosine(a: Float[Tensor, "N D"], b: Float[Tensor, "N D"], mean: Float[Tensor, "D"] | None = None) -> Tensor:
    """Cosine of the angle between rows, in float32; a row of zeros has cosine 0.

    Args:
        a, b: vectors of the same texts.
        mean: what is taken off both first: the mean training vector makes the cosine a centred one, in which what all
            sentences share does not count.
    """
    a, b = a.float(), b.float()
    if mean is not None:
        a, b = a - mean.float(), b - mean.float()
    return torch.nn.functional.cosine_similarity(a, b, dim=1)


def squared_error(predicted: Float[Tensor, "N D"], true: Float[Tensor, "N D"]) -> Float[Tensor, "N"]:
    """Mean squared difference of each row's channels, in float32."""
    return (predicted.float() - true.float()).square().mean(dim=1)


def ranks(predicted: Float[Tensor, "N D"], true: Float[Tensor, "N D"]) -> Int64[Tensor, "N"]:
    """How many of the true vectors are at least as near, by cosine, to each prediction as its own; 0 is a hit for R@1.

    A tie counts against the prediction, so that equal predictions for all texts are not hits.

    Args:
        predicted, true: row i of both belongs to one text.
    """
    targets = torch.nn.functional.normalize(true.float(), dim=1)
    found = []
    for start in range(0, len(predicted), _ROWS_AT_ONCE):
        rows = torch.nn.functional.normalize(predicted[start : start + _ROWS_AT_ONCE].float(), dim=1)
        nearness = rows @ targets.T
        own = nearness[torch.arange(len(rows)), torch.arange(start, start + len(rows))]
        found.append((nearness >= own[:, None]).sum(dim=1) - 1)
    return torch.cat(found)


def token_f1(text: str, reference: str) -> float:
    """Harmonic mean of precision and recall of the words, as bags; two texts without words are equal.

    Words are lower-cased, without punctuation and articles.

    Source: Rajpurkar et al. 2016, "SQuAD", section 6.1, and its evaluation script.
    """
    words, wanted = Counter(_words(text)), Counter(_words(reference))
    if not words or not wanted:
        return float(words == wanted)
    shared = sum((words & wanted).values())
    return 2 * shared / (sum(words.values()) + sum(wanted.values()))


def exact_match(text: str, reference: str) -> bool:
    """Whether both have the same words in the same order; see `token_f1`."""
    return _words(text) == _words(reference)


def bleu_statistics(texts: Sequence[str], references: Sequence[str]) -> Float[Tensor, "N 10"]:
    """What corpus BLEU is computed from, summed over texts: lengths, then matches and totals of 1- to 4-grams.

    Args:
        texts: decoded ones.
        references: one for each.

    Raises:
        ShapeError: not as many of both, or none.
    """
    from sacrebleu.metrics.bleu import BLEU

    if len(texts) != len(references) or not texts:
        raise ShapeError(f"{len(texts)} texts and {len(references)} references; give one for each, at least one")
    rows = []
    for text, reference in zip(texts, references, strict=True):
        score = BLEU().corpus_score([text], [[reference]])
        rows.append([score.sys_len, score.ref_len, *score.counts, *score.totals])
    return torch.tensor(rows, dtype=torch.float64)


def bleu_of_sums(sums: Float[Tensor, "R 10"]) -> Float[Tensor, "R"]:
    """Corpus BLEU of each row of summed statistics."""
    from sacrebleu.metrics.bleu import BLEU

    def score(row: list[int]) -> float:
        return BLEU.compute_bleu(row[2:6], row[6:10], row[0], row[1], smooth_method="exp").score

    return torch.tensor([score(row) for row in sums.round().long().tolist()], dtype=torch.float64)


def _words(text: str) -> list[str]:
    return [word for word in text.lower().translate(_NO_PUNCTUATION).split() if word not in _NO_ARTICLES]
