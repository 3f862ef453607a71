"""The pairs of a run: read or made from texts, and parted into those that train and those that are held out."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from latentloom.bridge.config import BridgeConfig
from latentloom.bridge.embed import embed_texts, texts_of
from latentloom.bridge.pairs import PairSet, read_pairs
from latentloom.bridge.sentence_encoders import load_sentence_encoder
from latentloom.errors import ConfigError


@dataclass(frozen=True, eq=False)
class RunPairs:
    """Pairs of a run.

    Attributes:
        train, held_out: no text of one is in the other.
        description: where they come from, in a line.
    """

    train: PairSet
    held_out: PairSet
    description: str


def run_pairs(config: BridgeConfig) -> RunPairs:
    """The pairs that the settings name, the same whenever they are asked for; made from texts only once.

    Raises:
        ConfigError: neither pairs nor texts are named, too few of them, or vectors of another width than
            `model.latent_dim`.
        FileError: a file is missing; or too many rows are bad.
    """
    data, cache = config.data, config.logging.save_dir / "cache"
    pairs, source = _all_pairs(config, cache)
    if pairs.skipped:
        source += f" (left out: {', '.join(f'{count} {reason}' for reason, count in sorted(pairs.skipped.items()))})"
    if data.val_json is not None:
        held_out = _read(config, data.val_json, cache, pairs.dim)
        known = set(pairs.texts)
        unseen = [row for row, text in enumerate(held_out.texts) if text not in known]
        if not unseen:
            raise ConfigError(f"all texts of val_json = {data.val_json} are training texts; give others")
        return RunPairs(pairs, held_out.select(unseen), f"{source}, held out: {len(unseen)} of {data.val_json}")
    rows = _held_out_rows(pairs, data.held_out, config.training.seed)
    kept = sorted(set(range(len(pairs))) - set(rows))
    if not kept:
        raise ConfigError(f"{source} has {len(pairs)} pairs, and data.held_out = {data.held_out}; hold out fewer")
    held_out = set(rows)
    return RunPairs(pairs.select(kept), pairs.select(sorted(held_out)), f"{source}, held out: {len(held_out)}")


def run_encoder_name(config: BridgeConfig) -> str | None:
    """The encoder that makes vectors of decoded texts; None where the settings do not say which made the data's."""
    if config.evaluation.encoder is not None:
        return config.evaluation.encoder
    return config.data.encoder if config.data.texts is not None else None


def _all_pairs(config: BridgeConfig, cache: Path) -> tuple[PairSet, str]:
    data = config.data
    if data.train_json is not None:
        return _read(config, data.train_json, cache, config.model.latent_dim), data.train_json
    if data.texts is None:
        raise ConfigError("no data: set data.train_json to pairs, or data.texts to a text file")
    path = data.data_root / data.texts
    texts = texts_of(path, field=data.text_field, num=data.num_texts, seed=config.training.seed)
    encoder = load_sentence_encoder(data.encoder, config.training.device)
    if config.model.latent_dim not in (None, encoder.dim):
        raise ConfigError(
            f"model.latent_dim = {config.model.latent_dim}, and {encoder.name} gives vectors of {encoder.dim}; set it "
            f"to {encoder.dim}, or choose another data.encoder"
        )
    return embed_texts(texts, encoder, cache=cache), f"{path.name}, {len(texts)} texts with vectors of {encoder.name}"


def _read(config: BridgeConfig, source: str, cache: Path, latent_dim: int | None) -> PairSet:
    data = config.data
    return read_pairs(source, data.data_root, latent_dim=latent_dim, cache=cache, max_bad_share=data.max_bad_share)


def _held_out_rows(pairs: PairSet, num: int, seed: int) -> list[int]:
    """Rows of texts drawn by the seed, with all rows of the same text: at least `num`, whatever the file's order."""
    order = sorted(range(len(pairs)), key=lambda row: hashlib.sha256(f"{seed}/{pairs.texts[row]}".encode()).digest())
    chosen = {pairs.texts[row] for row in order[:num]}
    return [row for row in range(len(pairs)) if pairs.texts[row] in chosen]
