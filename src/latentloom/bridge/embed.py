"""Sets of pairs out of texts: read, encoded, and written in any of the formats that are read."""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from latentloom.bridge.pair_cache import keep_vectors, pairs_fingerprint
from latentloom.bridge.pair_writers import Format, Pair, write_pairs
from latentloom.bridge.pairs import PairSet
from latentloom.bridge.records import ENCODER_FILE
from latentloom.bridge.sentence_encoders import Role, SentenceEncoder
from latentloom.errors import ConfigError, FileError
from latentloom.runs import track
from latentloom.storage.atomic import replace_folder, write_json
from latentloom.storage.header import existing_file

logger = logging.getLogger(__name__)

#: Texts encoded at a time where a set is made: enough to find partners of the same length, few in memory.
TEXTS_AT_ONCE = 1024
JSONL_SUFFIXES = (".jsonl", ".ndjson")


def texts_of(path: Path | str, field: str = "text", num: int | None = None, seed: int = 0) -> list[str]:
    """The texts of a file, in its order; blank ones and repetitions are left out.

    Args:
        path: a text file with one text a line, or JSONL.
        field: of a JSONL line, that holds the text.
        num: how many to take at most, drawn by the seed; None takes all.
        seed: of that draw.

    Raises:
        FileError: no such file, one that is not UTF-8, a JSONL line without the field, or no text at all.
        ConfigError: a number below 1.
    """
    if num is not None and num < 1:
        raise ConfigError(f"{num} texts were asked for; ask for 1 or more, or leave the number out")
    path = existing_file(path)
    is_json = path.suffix in JSONL_SUFFIXES
    texts: dict[str, None] = {}
    num_given = 0
    for number, line in _decoded_lines(path):
        text = (_field_of(path, number, line, field) if is_json else line).strip()
        if text:
            num_given += 1
            texts[text] = None
    if not texts:
        raise FileError(f"{path} holds no text; give one text a line")
    if num_given > len(texts):
        logger.info("%s: %d of %d texts are repetitions and left out", path, num_given - len(texts), num_given)
    found = list(texts)
    if num is None or num >= len(found):
        return found
    drawn = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed))[:num]
    return [found[row] for row in sorted(drawn.tolist())]


def embed_texts(
    texts: Sequence[str], encoder: SentenceEncoder, role: Role = "passage", cache: Path | None = None
) -> PairSet:
    """The texts with the vectors that an encoder makes of them.

    Args:
        texts: at least one.
        encoder: makes the vectors.
        role: of the texts.
        cache: folder that keeps the vectors, mapped, for the next time; None keeps them in memory.

    Raises:
        PromptError: something that is not text.
        ConfigError: no text.
    """
    if not texts:
        raise ConfigError("there is no text to make vectors of; give at least one")
    if cache is None:
        vectors = encoder.encode(texts, role).values.numpy()
        return PairSet(list(texts), vectors, pairs_fingerprint(zip(texts, vectors, strict=True)))
    key = hashlib.sha256(json.dumps([encoder.fingerprint, role, list(texts)]).encode()).hexdigest()
    facts, kept, vectors = keep_vectors(cache, key, _embedded(texts, encoder, role))
    return PairSet(kept, vectors, facts.fingerprint)


def write_embedded(
    folder: Path,
    texts: Sequence[str],
    encoder: SentenceEncoder,
    *,
    role: Role = "passage",
    format_name: Format = "json",
    rows_per_shard: int = 10_000,
) -> None:
    """Write texts and their vectors as a new folder that `read_pairs` reads bit for bit; whole or not at all.

    Args:
        folder: new or empty.
        texts: at least one.
        encoder: makes the vectors.
        role: of the texts.
        format_name: "json", the document's; "jsonl"; or "safetensors" or "webdataset", shards for large sets.
        rows_per_shard: of those.

    Raises:
        FileError: the folder holds something, or cannot be written to.
        ConfigError: no text, or a number below 1.
        PromptError: something that is not text.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileError(f"{folder} is not empty; give a new folder")
    if not texts or rows_per_shard < 1:
        raise ConfigError(f"{len(texts)} texts in shards of {rows_per_shard}; give 1 or more of each")
    with replace_folder(folder) as temporary:
        write_pairs(format_name, temporary, _embedded(texts, encoder, role), rows_per_shard)
        about = {"encoder": encoder.name, "fingerprint": encoder.fingerprint, "source": encoder.source, "role": role}
        write_json(temporary / ENCODER_FILE, {**about, "dim": encoder.dim, "num_pairs": len(texts)})


def _embedded(texts: Sequence[str], encoder: SentenceEncoder, role: Role) -> Iterator[Pair]:
    vectors = np.empty((0, encoder.dim), dtype=np.float32)
    for row in track(len(texts), "encoding texts"):
        place = row % TEXTS_AT_ONCE
        if place == 0:
            vectors = encoder.encode(texts[row : row + TEXTS_AT_ONCE], role).values.numpy()
        yield texts[row], vectors[place]


def _decoded_lines(path: Path) -> Iterator[tuple[int, str]]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise FileError(f"{path} line {number} is not UTF-8 text; save the file in that encoding") from error
            if line.strip():
                yield number, line


def _field_of(path: Path, number: int, line: str, field: str) -> str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path} line {number} is not JSON ({line.strip()[:40]!r}); give one object a line") from error
    text = row.get(field) if isinstance(row, dict) else None
    if isinstance(text, str) and not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise FileError(f"{path} line {number} holds half of a surrogate pair, which is no text; mend or drop the line")
    if not isinstance(text, str):
        given = ", ".join(map(repr, row))[:120] if isinstance(row, dict) else f"a {type(row).__name__}"
        raise FileError(f"{path} line {number} has no text under {field!r} but {given}; name the field that holds it")
    return text
