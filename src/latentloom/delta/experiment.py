"""What the training of an adapter is, for the run's record."""

from latentloom.delta.cache import PairEmbeddings
from latentloom.delta.config import TrainConfig
from latentloom.delta.split import Split
from latentloom.runs import TrainingFacts
from latentloom.runs.experiment import DataFacts, EncoderFacts, SamplingPolicy


def delta_trainings(cache: PairEmbeddings, split: Split, config: TrainConfig, pattern: str) -> dict[str, TrainingFacts]:
    """The facts of the adapter's training; `steps` is what each of its starts takes at most.

    Args:
        cache: encoded pairs.
        split: of them.
        config: the settings.
        pattern: where the cache lies, or which it is.
    """
    num_pairs = len(split.train)
    batch_size = min(config.batch_size, num_pairs)
    caps = ", ".join(f"{cap:g}" for cap in config.caps)
    facts = TrainingFacts(
        data=DataFacts(
            pattern=pattern,
            shards=None,
            num_samples=num_pairs,
            num_held_out=len(split.validation) + len(split.test),
        ),
        trained=f"Embedding Delta adapter of rank {config.rank}, cap {caps}, from {', '.join(config.inits)}; its gate",
        encoders=(
            EncoderFacts(name="text encoder", checkpoint=cache.encoder or "not named by the cache", frozen=True),
        ),
        quantizer=None,
        sampling=_sampling(config),
        features=("mean of a prompt's token embeddings",),
        temperatures=(config.tau,) if config.w_nce else None,
        normalization="tokens by layer norm without weights; pooled prompts to length 1; gate features to z-scores of "
        "the training prompts",
        loss=_loss(config),
        batch_size=batch_size,
        steps=config.epochs * -(-num_pairs // config.batch_size),
    )
    return {"adapter": facts}


def _sampling(config: TrainConfig) -> SamplingPolicy | None:
    if not config.w_nce:
        return None
    return SamplingPolicy(
        positives="the prompt's own rewrite",
        negatives="the other rewrites of the batch, without those that are the same text",
    )


def _loss(config: TrainConfig) -> str:
    terms = {
        "contrast (InfoNCE)": config.w_nce,
        "anchor to the original direction": config.w_anchor,
        "mean square of corrections": config.w_l2,
        "gate cross-entropy": config.w_gate,
    }
    return " + ".join(["1 - cosine", *(f"{weight:g} {name}" for name, weight in terms.items() if weight)])
