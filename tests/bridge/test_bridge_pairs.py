"""Sets of pairs: the document's list and the other formats, bad rows, widths, and what is kept for the next time."""

import io
import json
import logging
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from latentloom.bridge.pairs import PairSet, read_pairs
from latentloom.errors import ConfigError, CorruptFileError, FileError

DIM = 4


def vector(number: int, dim: int = DIM) -> np.ndarray:
    return np.random.default_rng(number).normal(size=dim).astype(np.float32)


def write_list(folder: Path, num: int = 6, **changed: object) -> Path:
    """The document's format; `row3=...` replaces a row."""
    (folder / "latents").mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(num):
        np.save(folder / "latents" / f"{number:06d}.npy", vector(number))
        rows.append({"text": f"text {number}", "latent_path": f"latents/{number:06d}.npy"})
        if f"row{number}" in changed:
            rows[-1] = changed[f"row{number}"]
    (folder / "train.json").write_text(json.dumps(rows))
    return folder / "train.json"


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., PairSet]:
    def body(source: str = "train.json", latent_dim: int | None = None, max_bad_share: float = 0.9) -> PairSet:
        return read_pairs(
            source, tmp_path, latent_dim=latent_dim, cache=tmp_path / "cache", max_bad_share=max_bad_share
        )

    return body


def require_numbers(pairs: PairSet, numbers: list[int]) -> None:
    assert list(pairs.texts) == [f"text {number}" for number in numbers]
    assert np.array_equal(pairs.vectors, np.stack([vector(number) for number in numbers]))


# ---- formats


def test_the_documents_list_is_read_with_paths_relative_to_it(tmp_path, read):
    write_list(tmp_path / "data")
    require_numbers(read("data/train.json", DIM, 0.0), list(range(6)))


def test_vectors_are_d_or_one_by_d_or_several_that_are_averaged(tmp_path, read):
    write_list(tmp_path, 3)
    np.save(tmp_path / "latents/000001.npy", vector(1)[None])
    several = np.stack([vector(7) / np.linalg.norm(vector(7)), vector(8) / np.linalg.norm(vector(8)), np.zeros(DIM)])
    np.save(tmp_path / "latents/000002.npy", several.astype(np.float32))
    pairs = read()
    assert np.array_equal(pairs.vectors[:2], np.stack([vector(0), vector(1)]))
    assert np.linalg.norm(pairs.vectors[2]) == pytest.approx(1, abs=1e-6)


def test_json_lines_hold_paths_or_vectors(tmp_path, read):
    write_list(tmp_path, 2)
    rows = [
        {"text": "text 0", "latent_path": "latents/000000.npy"},
        {"text": "text 5", "vector": vector(5).tolist()},
        {"text": "text 6", "vector": [vector(6).tolist()]},
    ]
    (tmp_path / "a.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
    require_numbers(read("a.jsonl"), [0, 5, 6])
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": "whole numbers", "vector": [1, 0, 2, 3]}))
    assert read("b.jsonl").vectors.tolist() == [[1, 0, 2, 3]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_safetensors_shards_have_their_texts_beside_them(tmp_path, read, dtype):
    for shard, numbers in enumerate(([0, 1, 2], [3])):
        stored = torch.from_numpy(np.stack([vector(number) for number in numbers])).to(dtype)
        save_file({"vectors": stored}, tmp_path / f"x-{shard:05d}.safetensors")
        lines = "".join(json.dumps({"text": f"text {number}"}) + "\n" for number in numbers)
        (tmp_path / f"x-{shard:05d}.jsonl").write_text(lines)
    pairs = read("x-{00000..00001}.safetensors")
    expected = torch.from_numpy(np.stack([vector(number) for number in range(4)])).to(dtype).float().numpy()
    assert np.array_equal(pairs.vectors, expected)
    assert list(pairs.texts) == [f"text {number}" for number in range(4)]


def test_webdataset_tars_hold_npy_or_pt_and_other_members_are_passed_over(tmp_path, read):
    buffer = io.BytesIO()
    torch.save(torch.from_numpy(vector(1)), buffer)
    write_tar(tmp_path / "s-0.tar", {"a.txt": b"text 0", "a.jpg": b"no picture", "a.npy": npy(vector(0))})
    write_tar(tmp_path / "s-1.tar", {"a.latent.pt": buffer.getvalue(), "a.txt": b"text 1"})
    require_numbers(read("s-{0..1}.tar"), [0, 1])
    (tmp_path / "shards").mkdir()
    for number in range(2):
        (tmp_path / f"s-{number}.tar").rename(tmp_path / "shards" / f"s-{number}.tar")
    require_numbers(read("shards"), [0, 1])


# ---- bad rows


def spoil(folder: Path) -> dict[str, int]:
    """A list of 20 rows, ten of them bad; the counts that are expected."""
    empty, number, none = ({"text": text, "latent_path": "latents/000000.npy"} for text in ("  ", 3, None))
    bad_rows = {"row2": empty, "row3": number, "row4": none, "row5": {"text": "text 5"}, "row6": "no object"}
    write_list(folder, 20, **bad_rows)
    latents = folder / "latents"
    (latents / "000010.npy").unlink()
    np.save(latents / "000011.npy", vector(11, DIM + 1))
    np.save(latents / "000012.npy", np.array([1, np.nan, 2, 3], dtype=np.float32))
    np.save(latents / "000013.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save(latents / "000014.npy", np.array([1, 2, 3, 4], dtype=np.int64))
    np.save(latents / "000015.npy", np.array(["a", "b", "c", "d"]))
    return {
        **{"empty text": 1, "no text": 2, "no vector": 1, "no pair": 1, "missing file": 1, "wrong width": 1},
        **{"NaN or infinite": 1, "unreadable file": 1, "wrong dtype": 2},
    }


def test_every_bad_row_is_named_and_counted_and_the_others_are_used(tmp_path, read, caplog):
    expected = spoil(tmp_path)
    with caplog.at_level(logging.WARNING, logger="latentloom"):
        pairs = read()
    assert dict(pairs.skipped) == expected
    require_numbers(pairs, [0, 1, 7, 8, 9, 16, 17, 18, 19])
    for row in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15, 16):
        assert f"train.json row {row} is left out: " in caplog.text
    assert "000010.npy: No such file" in caplog.text
    assert "has 5 channels and not 4" in caplog.text
    assert "pickled" in caplog.text


def test_many_bad_rows_of_a_kind_are_named_up_to_a_few(tmp_path, read, caplog):
    write_list(tmp_path, 30)
    for number in range(12):
        (tmp_path / f"latents/{number:06d}.npy").unlink()
    with caplog.at_level(logging.WARNING, logger="latentloom"):
        assert read().skipped["missing file"] == 12
    assert caplog.text.count("No such file") == 5
    assert "12 of 30 rows are left out: 12 x missing file" in caplog.text


def test_a_set_with_too_many_bad_rows_is_refused_with_counts_and_the_first(tmp_path, read):
    spoil(tmp_path)
    for _ in range(2):  # the second time out of the cache
        with pytest.raises(FileError) as error:
            read(max_bad_share=0.5)
        assert "11 of 20 rows are bad and max_bad_share is 0.5" in str(error.value)
        assert "2 x wrong dtype" in str(error.value)
        assert "row 3: the text is empty" in str(error.value)
        assert "\n" not in str(error.value)
    assert len(read(max_bad_share=0.55)) == 9


def test_bad_members_of_a_tar_are_named_by_their_key(tmp_path, read, caplog):
    members = {"a.txt": b"text 0", "a.npy": npy(vector(0)), "b.txt": b"alone", "c.npy": npy(vector(1))}
    write_tar(tmp_path / "s.tar", members | {"d.txt": b"\xff", "d.npy": npy(vector(1)), "e.txt": b"x", "e.npy": b"?"})
    with caplog.at_level(logging.WARNING, logger="latentloom"):
        pairs = read("s.tar")
    require_numbers(pairs, [0])
    assert dict(pairs.skipped) == {"no vector": 1, "no text": 1, "not Unicode": 1, "unreadable file": 1}
    assert "s.tar d is left out" in caplog.text


@pytest.mark.parametrize("latent_dim", [DIM - 1, 1024])
def test_vectors_of_another_width_than_the_model_are_refused_with_both_numbers(tmp_path, read, latent_dim):
    write_list(tmp_path)
    with pytest.raises(ConfigError, match=f"vectors of 4 channels and model.latent_dim is {latent_dim}"):
        read(latent_dim=latent_dim)
    assert read(latent_dim=None).dim == DIM


# ---- files as a whole


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '{"text": "x"}', "holds an object; give a list"),
        ("a.json", "[1, 2", "is not JSON"),
        ("a.json", "[]", "it is empty"),
        ("a.json", '[{"text": "", "vector": [1.0]}]', "1 x empty text; the first is .*row 1: the text is empty"),
        ("a.jsonl", "", "it is empty"),
        ("a.tar", "no tar at all" * 100, "is no tar"),
        ("a.safetensors", "no tensors at all", "no safetensors file"),
        ("a.csv", "text,vector", "is of no kind that holds pairs"),
    ],
)
def test_a_file_that_holds_no_pairs_is_refused_in_one_line(tmp_path, read, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(FileError, match=message) as error:
        read(name)
    assert "\n" not in str(error.value)
    assert name in str(error.value)


def test_missing_files_and_folders_without_pairs_are_refused(tmp_path, read):
    with pytest.raises(FileError, match=r"absent\.json does not exist"):
        read("absent.json")
    with pytest.raises(FileError, match="brace that is not closed"):
        read("x-{0..1.tar")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileError, match=r"neither pairs\.json"):
        read("empty")


def test_safetensors_without_vectors_or_with_fewer_texts_are_refused(tmp_path, read):
    save_file({"other": torch.zeros(2, 3)}, tmp_path / "a.safetensors")
    with pytest.raises(FileError, match="holds no tensor 'vectors'"):
        read("a.safetensors")
    save_file({"vectors": torch.ones(2, 3)}, tmp_path / "b.safetensors")
    with pytest.raises(FileError, match="lacks its texts"):
        read("b.safetensors")
    (tmp_path / "b.jsonl").write_text('{"text": "one"}\n')
    with pytest.raises(FileError, match=r"2 vectors and .* 1 texts"):
        read("b.safetensors")


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_tar_that_is_cut_is_refused(tmp_path, read, share):
    members = {f"{number}.{kind}": npy(vector(number)) for number in range(20) for kind in ("npy", "txt")}
    whole = write_tar(tmp_path / "s.tar", members).read_bytes()
    end = len(whole.rstrip(b"\0"))
    (tmp_path / "s.tar").write_bytes(whole[: int(share * end)])
    with pytest.raises(CorruptFileError, match=r"s\.tar"):
        read("s.tar")
    cut_between = whole[: 512 * 8]
    (tmp_path / "s.tar").write_bytes(cut_between)
    with pytest.raises(CorruptFileError, match=r"s\.tar"):
        read("s.tar")


# ---- what is kept


def test_a_set_is_mapped_and_kept_until_a_file_of_it_changes(tmp_path, read):
    path = write_list(tmp_path)
    first = read()
    assert isinstance(first.vectors, np.memmap)
    stored = next((tmp_path / "cache").glob("pairs-*/vectors.npy"))
    written = stored.stat().st_mtime_ns, stored.stat().st_ino
    assert read().fingerprint == first.fingerprint
    assert (stored.stat().st_mtime_ns, stored.stat().st_ino) == written
    np.save(tmp_path / "latents/000003.npy", vector(33))
    changed = read()
    assert np.array_equal(changed.vectors[3], vector(33))
    assert changed.fingerprint != first.fingerprint
    assert np.array_equal(first.vectors[3], vector(3)), "a set that is in use stays as it was"
    path.write_text(path.read_text().replace("text 5", "another text"))
    assert read().texts[5] == "another text"


def test_a_missing_vector_that_appears_is_read(tmp_path, read):
    write_list(tmp_path)
    (tmp_path / "latents/000002.npy").unlink()
    assert len(read()) == 5
    np.save(tmp_path / "latents/000002.npy", vector(2))
    require_numbers(read(), list(range(6)))


def test_a_damaged_cache_is_made_again(tmp_path, read):
    write_list(tmp_path)
    read()
    stored = next((tmp_path / "cache").glob("pairs-*/vectors.npy"))
    stored.write_bytes(stored.read_bytes()[:-4])
    require_numbers(read(), list(range(6)))
    (stored.parent / "facts.json").write_text("{}")
    require_numbers(read(), list(range(6)))


def test_the_fingerprint_is_of_texts_and_vectors_and_not_of_the_format(tmp_path, read):
    write_list(tmp_path)
    rows = [{"text": f"text {number}", "vector": vector(number).tolist()} for number in range(6)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert read("a.jsonl").fingerprint == read().fingerprint


def test_a_selection_keeps_texts_with_their_vectors(tmp_path, read):
    write_list(tmp_path)
    pairs = read()
    chosen = pairs.select([5, 1, 3]).select([2, 0])
    require_numbers(chosen, [3, 5])
    texts, vectors = chosen.load([1, 0, 1])
    assert texts == ["text 5", "text 3", "text 5"]
    assert torch.equal(vectors, torch.from_numpy(np.stack([vector(5), vector(3), vector(5)])))
    assert chosen.fingerprint == pairs.select([5, 1, 3]).select([2, 0]).fingerprint
    assert pairs.select([0, 1]).fingerprint != pairs.select([1, 0]).fingerprint


def test_moments_are_those_of_the_selection(tmp_path, read, monkeypatch):
    monkeypatch.setattr("latentloom.bridge.pairs.ROWS_AT_ONCE", 2)
    write_list(tmp_path)
    chosen = read().select([0, 2, 3, 4, 5])
    mean, std = chosen.moments()
    np.testing.assert_allclose(mean, chosen.vectors.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(std, chosen.vectors.std(axis=0), atol=1e-6)
