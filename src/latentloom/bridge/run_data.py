"""The pairs of a run: read or made from texts, and parted into those that train and those that are held out."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from latentloom.bridge.config import BridgeConfig
from latentloom.bridge.embed import embed_texts, texts_of
from latentloom.bridge.pairs import PairSet, read_pairs
from latentloom.bridge.records import EncoderRecord, read_encoder_record
from latentloom.bridge.sentence_encoders import is_encoder_here, load_sentence_encoder
from latentloom.errors import ConfigError


@dataclass(frozen=True, eq=False)
class RunPairs:
    """Pairs of a run.

    Attributes:
        train, held_out: no text of one is in the other.
        description: where they come from, in a line.
        encoder: that made the vectors; None where that is not known.
    """

    train: PairSet
    held_out: PairSet
    description: str
    encoder: EncoderRecord | None = None


def run_pairs(config: BridgeConfig) -> RunPairs:
    """The pairs that the settings name, the same whenever they are asked for; made from texts only once.

    Raises:
        ConfigError: neither pairs nor texts are named, too few of them, or vectors of another width than
            `model.latent_dim`.
        FileError: a file is missing; or too many rows are bad.
    """
    data, cache = config.data, config.logging.save_dir / "cache"
    pairs, source, encoder = _all_pairs(config, cache)
    if pairs.skipped:
        source += f" (left out: {', '.join(f'{count} {reason}' for reason, count in sorted(pairs.skipped.items()))})"
    if data.val_json is not None:
        held_out = _read(config, data.val_json, cache, pairs.dim)
        known = set(pairs.texts)
        unseen = [row for row, text in enumerate(held_out.texts) if text not in known]
        if not unseen:
            raise ConfigError(f"all texts of val_json = {data.val_json} are training texts; give others")
        description = f"{source}, held out: {len(unseen)} of {data.val_json}"
        return RunPairs(pairs, held_out.select(unseen), description, encoder)
    rows = _held_out_rows(pairs, data.held_out, config.training.seed)
    kept = sorted(set(range(len(pairs))) - set(rows))
    if not kept:
        raise ConfigError(f"{source} has {len(pairs)} pairs, and data.held_out = {data.held_out}; hold out fewer")
    held_out = set(rows)
    description = f"{source}, held out: {len(held_out)}"
    return RunPairs(pairs.select(kept), pairs.select(sorted(held_out)), description, encoder)


def run_encoder_name(config: BridgeConfig) -> str | None:
    """The encoder that makes vectors of decoded texts.

    None where neither the settings nor a file beside the data say which one made the data's, or it is not here.
    """
    data = config.data
    if config.evaluation.encoder is not None:
        return config.evaluation.encoder
    if data.train_json is None:
        return data.encoder if data.texts is not None else None
    stated = read_encoder_record(data.data_root / data.train_json)
    return stated.source if stated is not None and stated.source and is_encoder_here(stated.source) else None


def _all_pairs(config: BridgeConfig, cache: Path) -> tuple[PairSet, str, EncoderRecord | None]:
    data = config.data
    if data.train_json is not None:
        pairs = _read(config, data.train_json, cache, config.model.latent_dim)
        return pairs, data.train_json, read_encoder_record(data.data_root / data.train_json)
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
    description = f"{path.name}, {len(texts)} texts with vectors of {encoder.name}"
    return embed_texts(texts, encoder, cache=cache), description, encoder.record


def _read(config: BridgeConfig, source: str, cache: Path, latent_dim: int | None) -> PairSet:
    data = config.data
    return read_pairs(source, data.data_root, latent_dim=latent_dim, cache=cache, max_bad_share=data.max_bad_share)


def _held_out_rows(pairs: PairSet, num: int, seed: int) -> list[int]:
    """Rows of texts drawn by the seed, with all rows of the same text: at least `num`, whatever the file's order."""
    order = sorted(range(len(pairs)), key=lambda row: hashlib.sha256(f"{seed}/{pairs.texts[row]}".encode()).digest())
    chosen = {pairs.texts[row] for row in order[:num]}
    return [row for row in range(len(pairs)) if pairs.texts[row] in chosen]
