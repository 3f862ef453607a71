"""Pairs written in the formats that `pair_readers` reads, one at a time."""

import io
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float32
from safetensors.numpy import save_file
from webdataset.writer import TarWriter

from latentloom.bridge.pair_readers import NPY, TEXT, VECTORS

Format = Literal["json", "jsonl", "safetensors", "webdataset"]
Pair = tuple[str, Float32[np.ndarray, "D"]]
FILES_PER_FOLDER = 10_000


def write_pairs(format_name: Format, folder: Path, pairs: Iterable[Pair], rows_per_shard: int) -> None:
    """Write pairs into a folder.

    Args:
        format_name: "json": pairs.json with an .npy file per pair; "jsonl": pairs.jsonl with the vectors in it;
            "safetensors": pairs-00000.safetensors with the texts in pairs-00000.jsonl, and so on; "webdataset":
            pairs-00000.tar, and so on.
        folder: is there, and empty.
        pairs: at least one.
        rows_per_shard: for the two formats that have shards.
    """
    if format_name == "json":
        _write_json_list(folder, pairs)
    elif format_name == "jsonl":
        _write_json_lines(folder / "pairs.jsonl", pairs)
    elif format_name == "safetensors":
        for number, part in enumerate(_parts(pairs, rows_per_shard)):
            _write_tensor_shard(folder / f"pairs-{number:05d}.safetensors", part)
    else:
        for number, part in enumerate(_parts(pairs, rows_per_shard)):
            _write_tar_shard(folder / f"pairs-{number:05d}.tar", part, number * rows_per_shard)


def _write_json_list(folder: Path, pairs: Iterable[Pair]) -> None:
    with (folder / "pairs.json").open("w", encoding="utf-8", newline="\n") as file:
        for number, (text, vector) in enumerate(pairs):
            name = f"latents/{number // FILES_PER_FOLDER:04d}/{number:08d}.npy"
            if number % FILES_PER_FOLDER == 0:
                (folder / name).parent.mkdir(parents=True)
            np.save(folder / name, vector, allow_pickle=False)
            row = json.dumps({"text": text, "latent_path": name}, ensure_ascii=False)
            file.write(("," if number else "[") + f"\n  {row}")
        file.write("\n]\n")


def _write_json_lines(path: Path, pairs: Iterable[Pair]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for text, vector in pairs:
            # Python writes a number so that it reads the very same one, and a float32 is one of its numbers
            file.write(json.dumps({"text": text, "vector": vector.tolist()}, ensure_ascii=False) + "\n")


def _write_tensor_shard(path: Path, pairs: list[Pair]) -> None:
    save_file({VECTORS: np.stack([vector for _, vector in pairs])}, path)
    lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text, _ in pairs)
    path.with_suffix(".jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")


def _write_tar_shard(path: Path, pairs: list[Pair], first: int) -> None:
    with path.open("wb") as file, TarWriter(file, encoder=False, mtime=0) as tar:
        for number, (text, vector) in enumerate(pairs, start=first):
            buffer = io.BytesIO()
            np.save(buffer, vector, allow_pickle=False)
            tar.write({"__key__": f"{number:08d}", TEXT: text.encode(), NPY: buffer.getvalue()})


def _parts(pairs: Iterable[Pair], size: int) -> Iterator[list[Pair]]:
    remaining = iter(pairs)
    while part := list(islice(remaining, size)):
        yield part
