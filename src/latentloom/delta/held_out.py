"""An adapter on pairs that its training did not see, beside the baselines fitted on those that it did."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentloom.delta.baselines import NO_ADAPTER, fit_baselines, fit_ridge, identity_adapter
from latentloom.delta.cache import PairEmbeddings
from latentloom.delta.evaluate import evaluate_adjustments
from latentloom.delta.evaluation import Evaluation
from latentloom.delta.files import load_embdelta_adapter, read_adapter
from latentloom.delta.model import EmbeddingDelta
from latentloom.delta.pooled_delta import PromptConstants
from latentloom.delta.pooling import pool
from latentloom.delta.training_run import cache_digest
from latentloom.errors import CheckpointError, ConfigError

ADAPTER = "adapter"


@dataclass(frozen=True, eq=False)
class HeldOut:
    """What is compared, and on which pairs."""

    adapters: dict[str, EmbeddingDelta]
    test: PairEmbeddings
    evaluation: Evaluation
    record: dict[str, Any]
    about: str


def evaluate_held_out(cache: PairEmbeddings, adapter_file: Path | str, seed: int = 0) -> HeldOut:
    """Measure an adapter on the test part of the cache it was trained on, or on all of another cache.

    On its own cache, mean delta and ridge are fitted anew on the very pairs that trained the adapter. For another
    cache there are no such pairs, so the adapter stands beside no adapter alone.

    Args:
        cache: encoded pairs.
        adapter_file: the adapter, with the record of its training.
        seed: of the bootstrap.

    Raises:
        CheckpointError: the adapter is of another width or encoder.
        ConfigError: the adapter was trained on the whole cache.
    """
    adapter = load_embdelta_adapter(adapter_file, cache.dim)
    record = read_adapter(adapter_file).record or {}
    trained_on = record.get("cache", {})
    if cache.encoder and trained_on.get("encoder") and trained_on["encoder"] != cache.encoder:
        raise CheckpointError(
            f"{adapter_file} was trained on embeddings of encoder {trained_on['encoder']}, and this cache is of "
            f"{cache.encoder}; give a cache of the same text encoder"
        )
    if trained_on.get("digest") != cache_digest(cache):
        about = f"all {len(cache)} pairs of a cache that the adapter was not trained on"
        return _measured({NO_ADAPTER: identity_adapter(cache.dim), ADAPTER: adapter}, cache, cache, record, about, seed)
    split = record["split"]
    if not split["test"]:
        raise ConfigError("the adapter was trained on this whole cache (test_frac 0); give a cache of other pairs")
    train, validation, test = (cache[split[part]] for part in ("train", "validation", "test"))
    base, rewritten = PromptConstants.of(train.base), pool(train.rewritten)
    ridge = fit_ridge(base, rewritten, PromptConstants.of(validation.base), pool(validation.rewritten))
    about = f"the {len(test)} test pairs of the cache, baselines fitted on its {len(train)} training pairs"
    return _measured(
        {**fit_baselines(base.pooled, rewritten, ridge), ADAPTER: adapter}, train, test, record, about, seed
    )


def _measured(
    adapters: dict[str, EmbeddingDelta],
    reference: PairEmbeddings,
    test: PairEmbeddings,
    record: dict[str, Any],
    about: str,
    seed: int,
) -> HeldOut:
    evaluation = evaluate_adjustments(
        adapters,
        test,
        pool(reference.base).mean(dim=0),
        pool(reference.rewritten).mean(dim=0),
        {ADAPTER: adapters[ADAPTER].gate},
        seed,
    )
    return HeldOut(adapters, test, evaluation, record, about)
