"""A bridge on held-out pairs, both ways, beside what it has to beat."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from latentloom.bridge.baselines import Ridge, derangement, fit_ridge, nearest_rows
from latentloom.bridge.config import EvaluationConfig, Task
from latentloom.bridge.decoding import DecodingConfig, decode, inference
from latentloom.bridge.evaluation import LABELS, BridgeScores, LossScores, Sample, TextScores, VectorScores
from latentloom.bridge.model import LatentBridge, TextLosses
from latentloom.bridge.pairs import PairSet
from latentloom.bridge.rerank import decode_best_of
from latentloom.bridge.scores import Scorer, cosine, exact_match, ranks, squared_error, token_f1
from latentloom.bridge.sentence_encoders import SentenceEncoder
from latentloom.errors import ConfigError
from latentloom.runs import track
from latentloom.runs.estimates import Estimate
from latentloom.tensors import SentenceVector

DEFAULTS = EvaluationConfig()
#: The vectors that texts are decoded from.
_DECODED_FROM = {"greedy": "right_vectors", "greedy_shuffled": "shuffled_vectors", "best_of": "right_vectors"}
#: Texts decoded at a time: the last steps of a batch, with a few long texts left, take as long as those of 60.
TEXTS_AT_ONCE = 256
#: Texts drawn at a time: of SmolLM2's keys and values they hold two thirds of a gigabyte.
DRAWN_AT_ONCE = 640
NUM_SAMPLES_KEPT = 50
#: Training vectors looked at at a time.
ROWS_AT_ONCE = 16_384
#: Values of training features that ridge regression holds, in float64 half a gigabyte; more texts are not used.
RIDGE_VALUES = 60_000_000
#: Mean cosine of a text's vector to the one in the data, below which the encoder is not the one that made the data.
SAME_ENCODER = 0.98


def evaluate_bridge(
    bridge: LatentBridge,
    held_out: PairSet,
    train: PairSet | None = None,
    encoder: SentenceEncoder | None = None,
    config: EvaluationConfig = DEFAULTS,
    task: Task = "joint",
    seed: int = 0,
    train_features: "Float[Tensor, 'M F'] | np.ndarray | None" = None,
) -> BridgeScores:
    """Scores of a bridge beside its baselines; what is missing for a baseline is said in the notes.

    Args:
        bridge: trained; its mode comes back.
        held_out: pairs that no training saw; `config.num_pairs` of them are drawn.
        train: the training pairs, for the nearest training text and ridge.
        encoder: the one that made the vectors, for the cosine of decoded texts and the choice of the best.
        config: how much is decoded and how.
        task: the directions that were trained.
        seed: of the choice of pairs, what is drawn, and the intervals.
        train_features: pooled features of all training texts, in their order, for ridge.

    Raises:
        ConfigError: no pairs, or vectors of another width than the bridge's or the encoder's.
    """
    generator = torch.Generator().manual_seed(seed)
    held = _draw(bridge, held_out, encoder, config, generator)
    notes: list[str] = []
    scorer = Scorer(len(held.texts), seed)
    losses: dict[str, LossScores] = {}
    texts: dict[str, TextScores] = {}
    vectors: dict[str, VectorScores] = {}
    gains: dict[str, dict[str, Estimate]] = {}
    samples: list[Sample] = []
    if task != "t2l":
        found = _decode_all(bridge, held, encoder, config, generator, notes)
        losses = {key: LossScores(scorer.cross_entropy(own), scorer.accuracy(own)) for key, own in found[0].items()}
        decoded = found[1] | _nearest_training(held, train, notes)
        texts, gains = _score_texts(decoded, held, encoder, scorer)
        _check_encoder(encoder, held, notes)
        samples = _samples(held, decoded)
    if task != "l2t":
        predicted = _predict_all(bridge, held, train, train_features, generator, notes)
        vectors, more = _score_vectors(predicted, held, scorer)
        gains |= more
    name = None if encoder is None else encoder.name
    return BridgeScores(
        task, len(held.texts), seed, config.best_of, name, losses, texts, vectors, gains, samples, notes
    )


@dataclass(frozen=True, eq=False)
class _HeldOut:
    """The pairs that are scored.

    Attributes:
        texts, ids, vectors: of each.
        mean: training vector.
    """

    texts: Sequence[str]
    ids: Sequence[list[int]]
    vectors: Float[Tensor, "N D"]
    mean: Float[Tensor, "D"]


def _draw(
    bridge: LatentBridge,
    held_out: PairSet,
    encoder: SentenceEncoder | None,
    config: EvaluationConfig,
    generator: torch.Generator,
) -> _HeldOut:
    num = min(len(held_out), config.num_pairs)
    if not num:
        raise ConfigError(f"{len(held_out)} held-out pairs and num_pairs = {config.num_pairs}; give one pair or more")
    if held_out.dim != bridge.latent_dim:
        raise ConfigError(f"vectors of width {held_out.dim}; the bridge was trained on width {bridge.latent_dim}")
    if encoder is not None and encoder.dim != bridge.latent_dim:
        raise ConfigError(
            f"encoder {encoder.name} makes vectors of width {encoder.dim}, the bridge's are of width "
            f"{bridge.latent_dim}; give the encoder that made them"
        )
    rows = torch.randperm(len(held_out), generator=generator)[:num].sort().values.tolist()
    texts, vectors = held_out.load(rows)
    return _HeldOut(texts, bridge.tokenize(texts), vectors.float().cpu(), bridge.standardizer.mean.float().cpu())


def _decode_all(
    bridge: LatentBridge,
    held: _HeldOut,
    encoder: SentenceEncoder | None,
    config: EvaluationConfig,
    generator: torch.Generator,
    notes: list[str],
) -> tuple[dict[str, TextLosses], dict[str, list[str]]]:
    """Losses and decoded texts, by what they are predicted from."""
    num, greedy, sampled = len(held.texts), *_decoding(config)
    sources: dict[str, Tensor | None] = {"right_vectors": held.vectors, "no_vectors": None}
    decoded: dict[str, list[str]] = {"greedy": []}
    if num > 1:
        sources["shuffled_vectors"] = held.vectors[derangement(num, generator)]
        decoded["greedy_shuffled"] = []
    else:
        notes.append("One text has no other text's vector: there is no shuffled baseline.")
    draws = config.best_of > 1 and encoder is not None
    if config.best_of > 1 and encoder is None:
        notes.append(f"Without an encoder, the best of {config.best_of} draws cannot be chosen: none were drawn.")
    if draws:
        decoded["best_of"] = []
    losses: dict[str, list[TextLosses]] = {key: [] for key in sorted(sources, key=list(LABELS).index)}
    at_once = {"best_of": max(1, DRAWN_AT_ONCE // config.best_of)}
    jobs = [
        (key, list(range(num))[start : start + size])
        for key in [*losses, *decoded]
        for size in [at_once.get(key, TEXTS_AT_ONCE)]
        for start in range(0, num, size)
    ]
    for key, rows in track(jobs, "scoring"):
        source = sources[_DECODED_FROM.get(key, key)]
        vectors = None if source is None else source[rows]
        if key in losses:
            with inference(bridge):
                losses[key].append(bridge.text_losses(vectors, [held.ids[row] for row in rows]))
        elif vectors is not None and key == "best_of" and encoder is not None:
            decoded[key] += decode_best_of(bridge, SentenceVector(vectors), encoder, sampled, generator).texts
        elif vectors is not None:
            decoded[key] += [found[0] for found in decode(bridge, SentenceVector(vectors), greedy)]
    decoded["greedy_unconditional"] = [decode(bridge, None, greedy)[0][0]] * num
    ordered = {key: decoded[key] for key in sorted(decoded, key=list(LABELS).index)}
    return {key: _join(parts) for key, parts in losses.items()}, ordered


def _decoding(config: EvaluationConfig) -> tuple[DecodingConfig, DecodingConfig]:
    """How greedy texts are made, and those that the best is chosen of."""
    sampled = DecodingConfig(
        mode="sample",
        batch_size=DRAWN_AT_ONCE,
        num_samples=config.best_of,
        temperature=config.temperature,
        top_p=config.top_p,
        max_new_tokens=config.max_new_tokens,
    )
    return DecodingConfig(batch_size=TEXTS_AT_ONCE, max_new_tokens=config.max_new_tokens), sampled


def _join(parts: Sequence[TextLosses]) -> TextLosses:
    return TextLosses(
        torch.cat([part.loss for part in parts]),
        torch.cat([part.num_tokens for part in parts]),
        torch.cat([part.num_correct for part in parts]),
    )


def _nearest_training(held: _HeldOut, train: PairSet | None, notes: list[str]) -> dict[str, list[str]]:
    if train is None:
        notes.append("Without the training pairs there is no nearest training text to compare with.")
        return {}
    parts = (range(len(train))[start : start + ROWS_AT_ONCE] for start in range(0, len(train), ROWS_AT_ONCE))
    rows = nearest_rows(held.vectors, (train.load(part)[1] for part in parts)).tolist()
    return {"nearest_training": train.load(rows)[0]}


def _score_texts(
    decoded: dict[str, list[str]], held: _HeldOut, encoder: SentenceEncoder | None, scorer: Scorer
) -> tuple[dict[str, TextScores], dict[str, dict[str, Estimate]]]:
    """Scores of each kind of text, and what those of the bridge have more than the nearest training text."""
    figures: dict[str, dict[str, Tensor]] = {}
    scores = {}
    for key, texts in decoded.items():
        pairs = list(zip(texts, held.texts, strict=True))
        own = {"f1": torch.tensor([token_f1(*pair) for pair in pairs])}
        if encoder is not None:
            found = _encode(encoder, texts)
            own["cosine"] = cosine(found, held.vectors)
            own["centred_cosine"] = cosine(found, held.vectors, held.mean)
        figures[key] = own
        means = {name: scorer.mean(values) for name, values in own.items()}
        exact = scorer.mean(torch.tensor([exact_match(*pair) for pair in pairs]))
        scores[key] = TextScores(
            scorer.bleu(texts, held.texts), means["f1"], exact, means.get("cosine"), means.get("centred_cosine")
        )
    return scores, _gains(figures, "texts", ("greedy", "best_of"), "nearest_training", scorer)


def _check_encoder(encoder: SentenceEncoder | None, held: _HeldOut, notes: list[str]) -> None:
    """Note an encoder that gives the true texts other vectors than the data has: no text would then score well."""
    if encoder is None:
        return
    agreement = float(cosine(_encode(encoder, list(held.texts)), held.vectors).mean())
    if agreement < SAME_ENCODER:
        notes.append(
            f"Encoder {encoder.name} gives the true texts vectors of cosine {agreement:.3f} to those of the data: it "
            "is not the one that made them, and cosines of decoded texts are as much too low."
        )


def _encode(encoder: SentenceEncoder, texts: list[str]) -> Float[Tensor, "N D"]:
    """Vectors of texts, each different one made once."""
    different = list(dict.fromkeys(texts))
    places = {text: place for place, text in enumerate(different)}
    return encoder.encode(different).values.float().cpu()[[places[text] for text in texts]]


def _gains(
    figures: dict[str, dict[str, Tensor]], table: str, keys: Sequence[str], baseline: str, scorer: Scorer
) -> dict[str, dict[str, Estimate]]:
    if baseline not in figures:
        return {}
    return {
        f"{table}.{key}": {name: scorer.mean(figures[key][name] - other) for name, other in figures[baseline].items()}
        for key in keys
        if key in figures
    }


def _samples(held: _HeldOut, decoded: dict[str, list[str]]) -> list[Sample]:
    missing = [None] * len(held.texts)
    columns = held.texts, decoded["greedy"], decoded.get("best_of", missing), decoded.get("nearest_training", missing)
    return [Sample(*row) for row in zip(*columns, strict=True)][:NUM_SAMPLES_KEPT]


def _predict_all(
    bridge: LatentBridge,
    held: _HeldOut,
    train: PairSet | None,
    train_features: "Tensor | np.ndarray | None",
    generator: torch.Generator,
    notes: list[str],
) -> dict[str, Float[Tensor, "N D"]]:
    """Vectors of the held-out texts, by what predicts them."""
    with inference(bridge), torch.no_grad():
        features = bridge.pool_all(held.ids)
        predicted = {"bridge": bridge.predict(features).float().cpu()}
    features = features.float().cpu()
    ridge = _fit_ridge(train, train_features, generator, notes)
    if ridge is not None:
        predicted["ridge"] = ridge.predict(features)
    predicted["mean_vector"] = held.mean.expand_as(held.vectors)
    return predicted


def _fit_ridge(
    train: PairSet | None,
    features: "Tensor | np.ndarray | None",
    generator: torch.Generator,
    notes: list[str],
) -> Ridge | None:
    if train is None or features is None:
        notes.append("Without the training texts and their features there is no ridge regression to compare with.")
        return None
    num = min(len(train), max(2, RIDGE_VALUES // features.shape[1]))
    if num < len(train):
        notes.append(f"Ridge regression uses {num} of the {len(train)} training texts, drawn by the seed.")
    rows = torch.randperm(len(train), generator=generator)[:num].sort().values.tolist()
    some = features[rows]
    inputs = some if isinstance(some, Tensor) else torch.from_numpy(np.ascontiguousarray(some))
    return fit_ridge(inputs.float().cpu(), train.load(rows)[1].float().cpu(), generator)


def _score_vectors(
    predicted: dict[str, Tensor], held: _HeldOut, scorer: Scorer
) -> tuple[dict[str, VectorScores], dict[str, dict[str, Estimate]]]:
    """Scores of each prediction, and what the bridge's has more than ridge's."""
    figures = {
        key: {
            "cosine": cosine(own, held.vectors),
            "centred_cosine": cosine(own, held.vectors, held.mean),
            "mse": squared_error(own, held.vectors),
            "recall_at_1": (ranks(own, held.vectors) == 0).double(),
        }
        for key, own in predicted.items()
    }
    scores = {
        key: VectorScores(
            **{name: scorer.mean(values) for name, values in figures[key].items()},
            r2=scorer.r2(own, held.vectors, held.mean),
        )
        for key, own in predicted.items()
    }
    return scores, _gains(figures, "vectors", ("bridge",), "ridge", scorer)
