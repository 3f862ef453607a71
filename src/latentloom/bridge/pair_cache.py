"""Pairs read once: their vectors in a file that is mapped, remade when one of the files they come from changes."""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
from filelock import FileLock
from jaxtyping import Float32

from latentloom.bridge.pair_readers import PairFile
from latentloom.bridge.pair_rows import BadRowError, require_text, sentence_vector
from latentloom.errors import ConfigError, FileError
from latentloom.runs import track
from latentloom.storage.atomic import replace_folder, write_json

logger = logging.getLogger(__name__)

FORMAT = 1
VECTORS, TEXTS, FACTS = "vectors.npy", "texts.jsonl", "facts.json"
NUM_LOOKED_AT = 256  # sound rows that tell how wide vectors are
NUM_NAMED = 5  # bad rows that the log names for each reason; the others are counted

Pair = tuple[str, Float32[np.ndarray, "D"]]


@dataclass(frozen=True)
class PairFacts:
    """What is known of pairs that were read.

    Attributes:
        stamp: hash of the names, sizes and times of their files.
        fingerprint: 16 hex digits of the texts and vectors themselves.
        num_rows: good and bad ones.
        skipped: by reason, how many bad ones.
        first_bad: the first of them, in words.
        sizes: of the two files, in bytes.
    """

    stamp: str
    fingerprint: str
    num_rows: int
    skipped: dict[str, int] = field(default_factory=dict)
    first_bad: str = ""
    sizes: tuple[int, int] = (0, 0)

    @property
    def counts(self) -> str:
        """How many bad rows for what reason, in words."""
        return _in_words(Counter(self.skipped))


def read_cached(
    files: Sequence[PairFile], latent_dim: int | None, cache: Path, source: str
) -> tuple[PairFacts, list[str], Float32[np.ndarray, "N D"]]:
    """Facts, texts and mapped vectors of all sound rows of some files.

    Args:
        files: of one kind.
        latent_dim: width that vectors should have; None takes what most have.
        cache: folder, made if missing.
        source: what the files are called in an error.

    Raises:
        FileError: a file cannot be read, or holds no sound row.
        ConfigError: vectors of another width than `latent_dim`.
    """
    names = [str(file.path.resolve()) for file in files]
    folder = cache / f"pairs-{_digest([FORMAT, names, latent_dim])}"
    with _lock(folder):
        stamp = _stamp(files)
        facts = _valid_facts(folder, stamp)
        if facts is None:
            tally = _Tally()
            pairs = _of_one_width(_sound_rows(files, tally), tally, latent_dim, source)
            with replace_folder(folder) as temporary:
                fingerprint = write_vectors(temporary, pairs)
                facts = _write_facts(temporary, stamp, fingerprint, tally)
        if facts.skipped:
            logger.warning("%s: %d of %d rows are left out: %s", source, *_numbers(facts), facts.counts)
        return facts, *_open(folder)


def keep_vectors(
    cache: Path, key: str, make: Iterable[Pair]
) -> tuple[PairFacts, list[str], Float32[np.ndarray, "N D"]]:
    """Facts, texts and mapped vectors of pairs that are made here, out of `cache` where they are already there.

    Args:
        cache: folder, made if missing.
        key: tells what the pairs are made of.
        make: makes them; not gone through when they are there.
    """
    folder = cache / f"made-{_digest([FORMAT, key])}"
    with _lock(folder):
        facts = _valid_facts(folder, key)
        if facts is None:
            tally = _Tally()
            with replace_folder(folder) as temporary:
                fingerprint = write_vectors(temporary, make)
                facts = _write_facts(temporary, key, fingerprint, tally)
        return facts, *_open(folder)


def write_vectors(folder: Path, pairs: Iterable[Pair]) -> str:
    """Write texts and vectors of one width, holding one pair at a time; returns their fingerprint.

    Raises:
        FileError: there is no pair.
    """
    digest = hashlib.sha256()
    num, width, start = 0, 0, 0
    with (folder / VECTORS).open("wb") as vectors, (folder / TEXTS).open("w", encoding="utf-8") as texts:
        for text, vector in pairs:
            if not num:
                width = len(vector)
                start = _write_header(vectors, 0, width)
            vectors.write(_content(vector))
            texts.write(json.dumps(text) + "\n")
            digest.update(_hashed(text, vector))
            num += 1
        if not num:
            raise FileError("there is no pair to keep; give at least one")
        # numpy leaves room in a header for the number of rows to grow
        vectors.seek(0)
        if _write_header(vectors, num, width) != start:
            raise AssertionError("a header of the npy format changed its length with the number of rows")
    return digest.hexdigest()[:16]


def pairs_fingerprint(pairs: Iterable[Pair]) -> str:
    """The fingerprint that `write_vectors` gives to these pairs: 16 hex digits of texts and vectors."""
    digest = hashlib.sha256()
    for text, vector in pairs:
        digest.update(_hashed(text, vector))
    return digest.hexdigest()[:16]


class _Tally:
    """Counts rows, and names the first bad ones of every kind in the log."""

    def __init__(self) -> None:
        self.num_rows = 0
        self.skipped: Counter[str] = Counter()
        self.first_bad = ""

    def count(self, name: str, bad: BadRowError) -> None:
        """Leave out a row."""
        self.skipped[bad.reason] += 1
        self.first_bad = self.first_bad or f"{name}: {bad}"
        if self.skipped[bad.reason] <= NUM_NAMED:
            logger.warning("%s is left out: %s", name, bad)
        elif self.skipped[bad.reason] == NUM_NAMED + 1:
            logger.warning("more rows are left out for the same reason (%s); they are counted", bad.reason)


def _sound_rows(files: Sequence[PairFile], tally: _Tally) -> Iterator[tuple[str, str, np.ndarray]]:
    rows = chain.from_iterable(file.rows() for file in files)
    for row in track(rows, "reading pairs"):
        tally.num_rows += 1
        try:
            text, array = row.read()
            yield row.name, require_text(text), sentence_vector(array)
        except BadRowError as bad:
            tally.count(row.name, bad)


def _of_one_width(
    rows: Iterator[tuple[str, str, np.ndarray]], tally: _Tally, latent_dim: int | None, source: str
) -> Iterator[Pair]:
    first = list(islice(rows, NUM_LOOKED_AT))
    if not first:
        why = f"{_in_words(tally.skipped)}; the first is {tally.first_bad}" if tally.num_rows else "it is empty"
        raise FileError(f"{source} holds no pair that can be used: {why}; give other pairs")
    widths = Counter(len(vector) for _, _, vector in first)
    usual = widths.most_common(1)[0][0]
    width = usual if latent_dim is None else latent_dim
    if usual != width:
        raise ConfigError(
            f"{source} holds vectors of {usual} channels and model.latent_dim is {width}; set "
            f"model.latent_dim={usual}, or give other pairs"
        )
    for name, text, vector in chain(first, rows):
        if len(vector) == width:
            yield text, vector
        else:
            tally.count(name, BadRowError("wrong width", f"its vector has {len(vector)} channels and not {width}"))


def _stamp(files: Sequence[PairFile]) -> str:
    digest = hashlib.sha256()
    for path in chain.from_iterable(file.files() for file in files):
        try:
            stat = path.stat()
            digest.update(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode(errors="surrogatepass"))
        except (OSError, ValueError):  # missing ones are told as bad rows; when they appear, the stamp changes
            digest.update(f"{path}\0missing\n".encode(errors="surrogatepass"))
    return digest.hexdigest()


def _valid_facts(folder: Path, stamp: str) -> PairFacts | None:
    """What a finished folder says; None where it has to be made."""
    try:
        known = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        facts = PairFacts(**{**known, "sizes": tuple(known["sizes"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return facts if facts.stamp == stamp and facts.sizes == _sizes(folder) else None


def _write_facts(folder: Path, stamp: str, fingerprint: str, tally: _Tally) -> PairFacts:
    facts = PairFacts(stamp, fingerprint, tally.num_rows, dict(tally.skipped), tally.first_bad, _sizes(folder))
    write_json(folder / FACTS, asdict(facts))
    return facts


def _sizes(folder: Path) -> tuple[int, int]:
    """Bytes of the two files; -1 for one that is missing."""
    vectors, texts = (path.stat().st_size if path.is_file() else -1 for path in (folder / VECTORS, folder / TEXTS))
    return vectors, texts


def _open(folder: Path) -> tuple[list[str], Float32[np.ndarray, "N D"]]:
    with (folder / TEXTS).open(encoding="utf-8") as lines:
        texts = [json.loads(line) for line in lines]
    return texts, np.load(folder / VECTORS, mmap_mode="r", allow_pickle=False)


def _hashed(text: str, vector: Float32[np.ndarray, "D"]) -> bytes:
    encoded = text.encode()
    return len(encoded).to_bytes(8, "little") + encoded + _content(vector)  # the length: no two lists read the same


def _content(vector: Float32[np.ndarray, "D"]) -> bytes:
    return np.ascontiguousarray(vector, dtype="<f4").tobytes()


def _write_header(file: BinaryIO, num: int, width: int) -> int:
    """Write the head of an npy file of float32 [num, width]; returns where the numbers begin."""
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (num, width)})
    return file.tell()


def _lock(folder: Path) -> FileLock:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"cannot write {folder.parent}: {error.strerror}; give another folder") from error
    return FileLock(folder.with_name(f"{folder.name}.lock"))


def _numbers(facts: PairFacts) -> tuple[int, int]:
    return sum(facts.skipped.values()), facts.num_rows


def _in_words(skipped: Counter[str]) -> str:
    return ", ".join(f"{count} x {reason}" for reason, count in skipped.most_common())


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
