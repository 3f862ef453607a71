"""Encoded pairs on disk: exact, and refused when damaged or of another kind."""

import json
import random
import resource
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from delta_caches import DIM, SUFFIXES, assert_same, embeddings, in_child, some_cache, some_pairs
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from latentloom.delta.cache import PairEmbeddings, read_cache, write_cache
from latentloom.errors import CorruptFileError, FileError, ShapeError
from latentloom.storage import read_npz, save_module
from latentloom.tensors import TextEmbeddings


def save_arrays(path: Path, arrays: dict[str, Any], save: Callable[..., None] = np.savez) -> None:
    save(path, **arrays)


@SUFFIXES
@given(
    lengths=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=5),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    with_pairs=st.booleans(),
    encoder=st.none() | st.text(max_size=5),
    seed=st.integers(0, 99),
)
def test_a_cache_comes_back_exactly(tmp_path_factory, suffix, lengths, dtype, with_pairs, encoder, seed):
    sides = [embeddings([pair[side] for pair in lengths], seed + side, dtype) for side in (0, 1)]
    cache = PairEmbeddings(*sides, pairs=some_pairs(len(lengths)) if with_pairs else None, encoder=encoder)
    path = tmp_path_factory.mktemp("cache") / f"pairs{suffix}"
    write_cache(path, cache)
    assert_same(read_cache(path), cache)


@SUFFIXES
def test_the_extreme_numbers_of_a_dtype_come_back(tmp_path: Path, suffix: str):
    for dtype in (torch.float32, torch.bfloat16):
        info = torch.finfo(dtype)
        values = [info.max, info.min, info.tiny, info.smallest_normal / 4, -0.0, info.eps]
        side = TextEmbeddings(torch.tensor([values], dtype=dtype), torch.tensor([1]))
        write_cache(tmp_path / f"c{suffix}", PairEmbeddings(side, side))
        assert_same(read_cache(tmp_path / f"c{suffix}"), PairEmbeddings(side, side))


@SUFFIXES
def test_the_same_cache_is_written_in_the_same_bytes(tmp_path: Path, suffix: str):
    for name in ("first", "second"):
        write_cache(tmp_path / f"{name}{suffix}", some_cache())
    assert (tmp_path / f"first{suffix}").read_bytes() == (tmp_path / f"second{suffix}").read_bytes()


@SUFFIXES
def test_slices_views_and_trained_tensors_are_written_as_they_are(tmp_path: Path, suffix: str):
    wide = torch.randn(8, 2 * DIM, requires_grad=True)
    side = TextEmbeddings(wide[2:5, ::2], torch.tensor([1, 2]))
    other = TextEmbeddings(wide[5:, 1::2], torch.tensor([0, 3]))
    write_cache(tmp_path / f"c{suffix}", PairEmbeddings(side, other))
    found = read_cache(tmp_path / f"c{suffix}")
    assert torch.equal(found.base.tokens, side.tokens)
    assert torch.equal(found.rewritten.tokens, other.tokens)


def test_numpy_alone_reads_the_npz(tmp_path: Path):
    cache = some_cache(torch.bfloat16)
    write_cache(tmp_path / "c.npz", cache)
    arrays = np.load(tmp_path / "c.npz", allow_pickle=False)
    assert sorted(arrays) == [
        "base_lengths", "base_tokens", "metadata", "pairs", "rewritten_lengths", "rewritten_tokens"
    ]  # fmt: skip
    assert arrays["base_tokens"].dtype == np.uint16
    widened = (arrays["base_tokens"].astype(np.uint32) << 16).view(np.float32)
    assert np.array_equal(widened, cache.base.tokens.float().numpy())
    assert arrays["rewritten_lengths"].tolist() == [4, 6, 1]
    assert json.loads(arrays["pairs"].tobytes())[0] == ["boat 0", "A long boat, number 0, 雨 \ud800."]
    metadata = json.loads(arrays["metadata"].tobytes())
    assert (metadata["class"], metadata["encoder"], metadata["dtype"]) == (
        "PairEmbeddings", "0123456789abcdef", "bfloat16"
    )  # fmt: skip
    with zipfile.ZipFile(tmp_path / "c.npz") as archive:
        assert all(member.compress_type == zipfile.ZIP_STORED for member in archive.infolist())


def test_writing_takes_no_second_copy_of_the_tokens(tmp_path: Path):
    def grown_megabytes() -> int:
        side = TextEmbeddings(torch.ones(60_000, 512, dtype=torch.bfloat16), torch.full((600,), 100))  # 61 MB
        cache = PairEmbeddings(side, side)
        write_cache(tmp_path / "small.npz", some_cache())
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        write_cache(tmp_path / "c.npz", cache)
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024

    assert in_child(grown_megabytes) < 10
    assert (tmp_path / "c.npz").stat().st_size > 2 * 61_000_000


@pytest.mark.parametrize("name", ["c.pt", "c", "c.npz.gz"])
def test_other_suffixes_are_refused(tmp_path: Path, name: str):
    for action in (lambda: write_cache(tmp_path / name, some_cache()), lambda: read_cache(tmp_path / name)):
        with pytest.raises(FileError, match=r"stored as \.npz or \.safetensors"):
            action()
    assert list(tmp_path.iterdir()) == []


def test_other_dtypes_are_refused(tmp_path: Path):
    with pytest.raises(ShapeError, match="float16; it is stored in bfloat16 or float32"):
        write_cache(tmp_path / "c.npz", some_cache(torch.float16))


@SUFFIXES
def test_a_missing_file_is_a_mistake_and_no_damage(tmp_path: Path, suffix: str):
    with pytest.raises(FileError, match="does not exist") as refused:
        read_cache(tmp_path / f"none{suffix}")
    assert not isinstance(refused.value, CorruptFileError)


@SUFFIXES
def test_a_cut_file_is_refused_wherever_it_is_cut(tmp_path: Path, suffix: str):
    path = tmp_path / f"c{suffix}"
    write_cache(path, some_cache())
    whole = path.read_bytes()
    for length in [0, 1, 7, *range(8, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(CorruptFileError) as refused:
            read_cache(path)
        assert "\n" not in str(refused.value)


@SUFFIXES
def test_whatever_bytes_are_damaged_the_file_is_read_or_refused(tmp_path: Path, suffix: str):
    path = tmp_path / f"c{suffix}"
    write_cache(path, some_cache())
    whole, dice = path.read_bytes(), random.Random(0)
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(dice.choice([1, 3])):
            damaged[dice.randrange(len(damaged))] = dice.randrange(256)
        path.write_bytes(damaged)
        with suppress(FileError):
            assert read_cache(path).pairs == some_cache().pairs


def rewrite(path: Path, changes: dict[str, object]) -> None:
    """Replace arrays of a stored cache; None drops one."""
    arrays = {**read_npz(path), **changes}
    save_arrays(path, {name: np.asarray(array) for name, array in arrays.items() if array is not None})


def text(value: object) -> np.ndarray:
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


METADATA = {"class": "PairEmbeddings", "pairs": None, "encoder": None, "dtype": "float32"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"base_lengths": np.array([3, 0, 3])}, "lengths sum to 6 but there are 5 tokens"),
        ({"base_lengths": np.array([6, 0, -1])}, "a length of base_lengths is not 0 to 5"),
        ({"base_lengths": np.array([2**62, 2**62, 2**62, 2**62, 5])}, "a length of base_lengths is not 0 to 5"),
        ({"base_lengths": np.array([3.0, 0.0, 2.0])}, "not torch.float32 [N, D] and int64 [B]"),
        ({"base_lengths": np.array([[3, 0, 2]])}, "int64 [B]"),
        ({"base_lengths": np.array([5, 0])}, "2 of 6 channels in torch.float32 and 3 of 6 channels"),
        ({"base_tokens": np.zeros((5, 7), np.float32)}, "3 of 7 channels in torch.float32 and 3 of 6 channels"),
        ({"base_tokens": np.zeros((5, 6))}, "base_tokens and base_lengths are torch.float64"),
        ({"base_tokens": np.zeros((5, 6), np.uint16)}, "torch.uint16"),
        ({"base_tokens": np.zeros((5, 6), ">f4")}, "of a kind that caches never have"),
        ({"base_tokens": np.array(["a"] * 5)}, "of a kind that caches never have"),
        ({"base_tokens": np.full((5, 6), np.nan, np.float32)}, "base prompt 0 has numbers that are not finite"),
        ({"metadata": text({**METADATA, "dtype": "bfloat16"})}, "no bit patterns of bfloat16"),
        ({"metadata": text({**METADATA, "dtype": ["float32"]})}, "wrong types"),
        ({"metadata": text({**METADATA, "dtype": "float64"})}, "wrong types"),
        ({"metadata": text({**METADATA, "encoder": 5})}, "wrong types"),
        ({"metadata": text(METADATA)}, "its texts are not those that were encoded"),
        ({"metadata": text([])}, "is no table"),
        ({"metadata": np.zeros(4, np.uint8)}, "its metadata cannot be read"),
        ({"metadata": np.zeros((2, 2), np.uint8)}, "its metadata cannot be read"),
        ({"metadata": np.frombuffer(b"[" * 100_000, np.uint8)}, "its metadata cannot be read"),
        ({"pairs": text([["a", "b"]] * 3)}, "its texts are not those that were encoded"),
        ({"pairs": text([["a", "b", "c"]] * 3)}, "its texts are no pairs"),
        ({"pairs": text([["a", 1]] * 3)}, "its texts are no pairs"),
        ({"pairs": np.arange(3.0)}, "its pairs cannot be read"),
        ({"pairs": None}, "its texts are not those that were encoded"),
    ],
)
def test_contradictions_in_an_npz_are_told_in_one_line(tmp_path: Path, changes: dict[str, object], said: str):
    path = tmp_path / "c.npz"
    write_cache(path, some_cache())
    rewrite(path, changes)
    with pytest.raises(CorruptFileError) as refused:
        read_cache(path)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_row_with_a_number_that_is_not_finite_is_named(tmp_path: Path):
    cache = some_cache()
    cache.rewritten.tokens[9, 3] = torch.inf
    write_cache(tmp_path / "c.npz", cache)
    with pytest.raises(CorruptFileError, match="rewritten prompt 1 has numbers that are not finite"):
        read_cache(tmp_path / "c.npz")


def test_contradictions_in_a_safetensors_file_are_told_in_one_line(tmp_path: Path):
    path, config = tmp_path / "c.safetensors", {**METADATA}
    good = {"base_tokens": torch.zeros(5, 6), "base_lengths": torch.tensor([3, 2])}
    good |= {"rewritten_tokens": torch.zeros(5, 6), "rewritten_lengths": torch.tensor([0, 5])}
    save_module(path, good, "PairEmbeddings", config)
    assert read_cache(path).base.lengths.tolist() == [3, 2]
    for changes, said in [
        ({"base_lengths": torch.tensor([3, 1])}, "lengths sum to 4"),
        ({"extra": torch.zeros(1)}, "tensors are missing or not known"),
        ({"base_tokens": torch.zeros(5, 6, dtype=torch.bfloat16)}, "not torch.float32"),
    ]:
        save_module(path, {**good, **changes}, "PairEmbeddings", config)
        with pytest.raises(CorruptFileError, match=said):
            read_cache(path)
    save_module(path, {"base_tokens": torch.zeros(5, 6)}, "PairEmbeddings", config)
    with pytest.raises(CorruptFileError, match="tensors are missing or not known"):
        read_cache(path)


def test_files_of_another_kind_are_named_for_what_they_are(tmp_path: Path):
    save_module(tmp_path / "a.safetensors", {"w": torch.zeros(2)}, "EmbeddingDelta", {})
    with pytest.raises(FileError, match="holds EmbeddingDelta; give a file of `latentloom delta cache`"):
        read_cache(tmp_path / "a.safetensors")
    save_file({"w": torch.zeros(2)}, tmp_path / "b.safetensors")
    with pytest.raises(FileError, match="does not say what it rebuilds"):
        read_cache(tmp_path / "b.safetensors")
    np.savez(tmp_path / "c.npz", weights=np.zeros(3), bias=np.zeros(1))
    with pytest.raises(FileError, match="holds 'weights', 'bias' and no encoded pairs"):
        read_cache(tmp_path / "c.npz")
    np.savez(tmp_path / "d.npz", base_tokens=np.array([{}], dtype=object))
    with pytest.raises(CorruptFileError, match="pickled"):
        read_cache(tmp_path / "d.npz")


def padded(changes: dict[str, Any] | None = None, dtype: type = np.float32) -> dict[str, Any]:
    cache, arrays = some_cache(), {}
    for name, side, width in (("base", cache.base, 4), ("rew", cache.rewritten, 7)):
        tokens = side.padded(width).numpy().astype(dtype)
        tokens[~side.mask(width).numpy()] = np.nan  # what stood in the padding is not looked at
        arrays |= {f"{name}_E": tokens, f"{name}_M": side.mask(width).numpy().astype(np.int64)}
        arrays |= {f"{name}_L": side.lengths.numpy()}
    return {**arrays, **(changes or {})}


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_padded_file_becomes_ragged_with_the_lengths_of_each_side(tmp_path: Path, dtype: type):
    save_arrays(tmp_path / "c.npz", padded(dtype=dtype), np.savez_compressed)
    found, expected = read_cache(tmp_path / "c.npz"), some_cache()
    assert found.base.lengths.tolist() == [3, 0, 2]
    assert found.rewritten.lengths.tolist() == [4, 6, 1]
    for one, other in ((found.base, expected.base), (found.rewritten, expected.rewritten)):
        assert torch.equal(one.tokens, torch.from_numpy(other.tokens.numpy().astype(dtype)).float())
    assert (found.pairs, found.encoder) == (None, None)


@pytest.mark.parametrize("kind", [bool, np.uint8, np.float32])
def test_the_mask_may_be_of_any_kind_and_more_arrays_may_lie_beside(tmp_path: Path, kind: type):
    arrays = {name: array.astype(kind) if name.endswith("M") else array for name, array in padded().items()}
    save_arrays(tmp_path / "c.npz", {"ids": np.arange(3), **arrays})
    assert_same(read_cache(tmp_path / "c.npz"), PairEmbeddings(some_cache().base, some_cache().rewritten))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rew_L": np.array([4, 5, 1])}, "rew_M marks 6 tokens of pair 1, rew_L says 5"),
        ({"base_M": np.array([[1, 1, 0, 1], [0] * 4, [1, 1, 0, 0]])}, "a mask has zeros before a one"),
        ({"base_L": np.array([3, 0])}, "not [B, P, D], [B, P] and [B]"),
        ({"base_M": np.ones((3, 5))}, "not [B, P, D], [B, P] and [B]"),
        ({"base_E": np.zeros((3, 4))}, "not [B, P, D], [B, P] and [B]"),
        ({"base_E": np.zeros((3, 4, 6), np.int32)}, "are int32, int64 and int64"),
        ({"base_L": np.array(["3", "0", "2"])}, "are float32, int64 and <U1"),
        ({"base_E": np.full((3, 4, 6), np.inf, np.float32)}, "base prompt 0 has numbers that are not finite"),
        ({f"base_{part}": array[:2] for part, array in zip("EML", padded().values(), strict=False)}, "2 of 6 channels"),
    ],
)
def test_a_padded_file_that_contradicts_itself_is_refused(tmp_path: Path, changes: dict[str, object], said: str):
    save_arrays(tmp_path / "c.npz", padded(changes))
    with pytest.raises(CorruptFileError) as refused:
        read_cache(tmp_path / "c.npz")
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_later_padded_form_is_refused_with_its_reason(tmp_path: Path):
    arrays = padded()
    later = {"E_base": arrays["base_E"], "E_rew": arrays["rew_E"], "M": arrays["base_M"], "L": arrays["base_L"]}
    save_arrays(tmp_path / "c.npz", later)
    with pytest.raises(FileError, match="the token counts of the rewrites are lost; cache the pairs again") as refused:
        read_cache(tmp_path / "c.npz")
    assert not isinstance(refused.value, CorruptFileError)
