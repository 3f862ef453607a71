"""Which token comes next, given logits: the most likely one, or one drawn."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

#: Tokens that are looked at before the whole vocabulary is sorted: below a temperature of 1 they nearly always hold the
#: share asked for, and finding them costs a tenth of a sort.
NUM_CANDIDATES = 256


def most_likely(logits: Float[Tensor, "B V"]) -> Int64[Tensor, "B"]:
    """The token of the largest logit."""
    return logits.argmax(dim=-1)


def draw(
    logits: Float[Tensor, "B V"],
    numbers: Float[Tensor, "B"],
    temperature: float,
    top_p: float = 1.0,
    top_k: int | None = None,
) -> Int64[Tensor, "B"]:
    """A token of each row, drawn from its most likely ones; a row's number decides, whatever the other rows are.

    The temperature is applied first, then top_k, then top_p of what is left, as transformers does.

    Args:
        logits: float32; V tokens.
        numbers: of [0, 1), one for each row.
        temperature: above 0.
        top_p: the fewest tokens that hold this share are drawn from.
        top_k: at most so many are drawn from.
    """
    chances = (logits / temperature).softmax(dim=-1)
    if top_p == 1 and top_k is None:
        return _inverse(chances, numbers)
    size = chances.shape[-1]
    sorted_chances, tokens = chances.topk(min(size, top_k or NUM_CANDIDATES), dim=-1)
    if top_k is None:
        missed = (sorted_chances.sum(-1) < top_p).nonzero()[:, 0]
        if len(missed):
            found = _from_sorted(*chances[missed].sort(dim=-1, descending=True), numbers[missed], top_p)
            return _from_sorted(sorted_chances, tokens, numbers, top_p).index_copy(0, missed, found)
        return _from_sorted(sorted_chances, tokens, numbers, top_p)
    return _from_sorted(sorted_chances / sorted_chances.sum(-1, keepdim=True), tokens, numbers, top_p)


def without_repeats(logits: Float[Tensor, "B V"], tokens: Int64[Tensor, "B T"], size: int) -> Float[Tensor, "B V"]:
    """The logits, at minus infinity where a token would repeat a run of `size` tokens of its row; 0 forbids nothing.

    Args:
        logits: of the next token.
        tokens: of each row so far.
        size: length of the runs.
    """
    if size == 0 or tokens.shape[1] < size:
        return logits
    runs = tokens.unfold(1, size, 1)
    last = tokens[:, None, tokens.shape[1] - size + 1 :]
    repeats = (runs[:, :, :-1] == last).all(dim=-1)
    rows, places = repeats.nonzero(as_tuple=True)
    forbidden = logits.clone()
    forbidden[rows, runs[rows, places, -1]] = -torch.inf
    return forbidden


def entropy(logits: Float[Tensor, "B V"]) -> Float[Tensor, "B"]:
    """Entropy in nats of each row's distribution."""
    logs = logits.log_softmax(dim=-1)
    return -(logs.exp() * logs).nan_to_num().sum(dim=-1)


def _from_sorted(
    chances: Float[Tensor, "B K"], tokens: Int64[Tensor, "B K"], numbers: Float[Tensor, "B"], top_p: float
) -> Int64[Tensor, "B"]:
    """A token by its chance, of those before which less than top_p is held."""
    before = chances.cumsum(dim=-1) - chances
    kept = chances.masked_fill(before >= top_p, 0.0)
    return tokens.gather(1, _inverse(kept, numbers)[:, None]).squeeze(1)


def _inverse(chances: Float[Tensor, "B K"], numbers: Float[Tensor, "B"]) -> Int64[Tensor, "B"]:
    """The first place up to which the chances hold more than `numbers` of their sum."""
    totals = chances.cumsum(dim=-1)
    largest = torch.nextafter(totals[:, -1:], torch.zeros_like(totals[:, -1:]))  # rounding may reach the sum itself
    wanted = (numbers.to(totals.dtype)[:, None] * totals[:, -1:]).minimum(largest)
    return torch.searchsorted(totals, wanted, right=True).squeeze(1)
