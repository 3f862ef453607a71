"""Encoded pairs: exact on disk, refused when damaged, and built so that an interruption loses one shard at most."""

import json
import os
import random
import resource
import signal
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from latentloom.delta.cache import PairEmbeddings, build_cache, read_cache, shard_folder, write_cache
from latentloom.delta.pairs import PromptPair
from latentloom.errors import ConfigError, CorruptFileError, FileError, PromptError, ShapeError
from latentloom.storage import read_npz, save_module
from latentloom.tensors import TextEmbeddings

SUFFIXES = pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
DIM = 6


def embeddings(lengths: list[int], seed: int, dtype: torch.dtype = torch.float32) -> TextEmbeddings:
    tokens = torch.randn(sum(lengths), DIM, generator=torch.Generator().manual_seed(seed))
    return TextEmbeddings(tokens.to(dtype), torch.tensor(lengths, dtype=torch.long))


def some_pairs(num: int) -> list[PromptPair]:
    return [PromptPair(f"boat {'x' * (row % 5)}{row}", f"A long boat, number {row}, 雨 \ud800.") for row in range(num)]


def some_cache(dtype: torch.dtype = torch.float32) -> PairEmbeddings:
    sides = embeddings([3, 0, 2], 1, dtype), embeddings([4, 6, 1], 2, dtype)
    return PairEmbeddings(*sides, pairs=some_pairs(3), encoder="0123456789abcdef")


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


def assert_same(found: PairEmbeddings, expected: PairEmbeddings) -> None:
    for one, other in ((found.base, expected.base), (found.rewritten, expected.rewritten)):
        assert one.dtype == other.dtype
        assert torch.equal(bits(one.tokens), bits(other.tokens))
        assert torch.equal(one.lengths, other.lengths)
    assert found.pairs == expected.pairs
    assert found.encoder == expected.encoder


# ---- the type


def test_rows_of_both_sides_and_their_texts_stay_together():
    cache = some_cache()
    chosen = cache[[2, 0]]
    assert torch.equal(chosen.rewritten.to_list()[0], cache.rewritten.to_list()[2])
    assert torch.equal(chosen.base.to_list()[1], cache.base.to_list()[0])
    assert chosen.pairs == [some_pairs(3)[2], some_pairs(3)[0]]
    assert (chosen.encoder, chosen.dim, len(chosen)) == (cache.encoder, DIM, 2)
    assert len(cache[torch.tensor([False, True, False])]) == len(cache[-1]) == len(cache[1:2]) == 1
    assert len(cache[[]]) == 0
    assert [len(row) for row in cache] == [1, 1, 1]


def test_without_texts_rows_can_be_chosen_too():
    assert PairEmbeddings(embeddings([1, 2], 0), embeddings([3, 4], 1))[1].pairs is None


def test_sides_that_do_not_belong_together_are_refused():
    with pytest.raises(ShapeError, match=r"2 of 6 channels in torch\.float32 and 1 of 6"):
        PairEmbeddings(embeddings([1, 2], 0), embeddings([3], 1))
    with pytest.raises(ShapeError, match=r"torch\.bfloat16"):
        PairEmbeddings(embeddings([1], 0), embeddings([3], 1, torch.bfloat16))
    with pytest.raises(ShapeError, match="3 texts for 1 encoded pairs"):
        PairEmbeddings(embeddings([1], 0), embeddings([3], 1), some_pairs(3))


# ---- files


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


def in_child(work: Callable[[], int]) -> int:
    """The exit code of a copy of this process that does the work, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            code = work()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


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


# ---- padded files of the first tools


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


# ---- building


class Encoder:
    """One token per letter, each a number of its own; counts what it is asked, and stops when told to."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.calls: list[list[str]] = []
        self.stop_after = stop_after

    def __call__(self, prompts: list[str]) -> TextEmbeddings:
        if len(self.calls) == self.stop_after:
            raise KeyboardInterrupt
        self.calls.append(prompts)
        rows = [
            torch.tensor([[hash((ord(letter), at)) % 997 / 7] for letter in prompt])
            for at, prompt in enumerate(prompts)
        ]
        return TextEmbeddings.from_list([row.repeat(1, DIM) + torch.arange(DIM) / 3 for row in rows])


def quiet_build(encode: Encoder, out: Path, **settings) -> PairEmbeddings:
    return build_cache(some_pairs(10), encode, settings.pop("encoder", "e1"), out, **{"shard_size": 3, **settings})


@SUFFIXES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_built_cache_holds_every_prompt_in_order(tmp_path: Path, suffix: str, dtype: torch.dtype):
    encode, out = Encoder(), tmp_path / "new" / f"c{suffix}"
    built = quiet_build(encode, out, dtype=dtype)
    assert_same(read_cache(out), built)
    assert (built.pairs, built.encoder, built.base.dtype, len(built)) == (some_pairs(10), "e1", dtype, 10)
    assert built.base.lengths.tolist() == [len(pair.base) for pair in some_pairs(10)]
    for start in (0, 3, 6, 9):
        shard = some_pairs(10)[start : start + 3]
        expected = Encoder()([pair.rewritten for pair in shard]).to(dtype=dtype)
        assert torch.equal(built.rewritten[start : start + 3].tokens, expected.tokens)
    assert [len(call) for call in encode.calls] == [3, 3, 3, 3, 3, 3, 1, 1]
    assert list(out.parent.iterdir()) == [out]  # no shard is left


@SUFFIXES
@pytest.mark.parametrize("stop_after", [0, 1, 4, 5, 7])
def test_an_interrupted_build_resumes_and_ends_in_the_same_bytes(tmp_path: Path, suffix: str, stop_after: int):
    whole, out = tmp_path / f"whole{suffix}", tmp_path / f"c{suffix}"
    quiet_build(Encoder(), whole)
    with pytest.raises(KeyboardInterrupt):
        quiet_build(Encoder(stop_after), out)
    assert not out.exists()
    done = stop_after // 2  # both sides of a shard, or nothing of it
    assert len(list(shard_folder(out).glob("0*.safetensors"))) == done
    encode = Encoder()
    quiet_build(encode, out)
    assert len(encode.calls) == 8 - 2 * done
    assert out.read_bytes() == whole.read_bytes()
    assert not shard_folder(out).exists()


def test_a_killed_process_leaves_shards_that_the_next_one_takes_up(tmp_path: Path):
    class KilledEncoder(Encoder):
        def __call__(self, prompts: list[str]) -> TextEmbeddings:
            if len(self.calls) == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__call__(prompts)

    out = tmp_path / "c.npz"
    assert in_child(lambda: len(quiet_build(KilledEncoder(), out))) == -signal.SIGKILL
    assert sorted(path.name for path in shard_folder(out).iterdir()) == ["00000.safetensors", "00001.safetensors"]
    encode = Encoder()
    quiet_build(encode, out)
    quiet_build(Encoder(), tmp_path / "whole.npz")
    assert len(encode.calls) == 4
    assert out.read_bytes() == (tmp_path / "whole.npz").read_bytes()


@pytest.mark.parametrize(
    ("settings", "num_calls"),
    [
        ({}, 2),
        ({"encoder": "e2"}, 8),
        ({"dtype": torch.float32}, 8),
        ({"shard_size": 5}, 4),
        ({"shard_size": 1}, 20),
    ],
)
def test_shards_of_another_encoder_dtype_or_size_are_encoded_again(tmp_path: Path, settings: dict, num_calls: int):
    with pytest.raises(KeyboardInterrupt):
        quiet_build(Encoder(6), tmp_path / "c.npz")
    encode = Encoder()
    built = quiet_build(encode, tmp_path / "c.npz", **settings)
    assert len(encode.calls) == num_calls
    fresh = quiet_build(Encoder(), tmp_path / "fresh.npz", **settings)
    assert_same(built, fresh)


def test_only_the_shard_whose_prompts_changed_is_encoded_again(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt):
        quiet_build(Encoder(6), tmp_path / "c.npz")
    pairs = some_pairs(10)
    pairs[4] = PromptPair(pairs[4].base, "A harbour in the morning.")
    encode = Encoder()
    built = build_cache(pairs, encode, "e1", tmp_path / "c.npz", shard_size=3)
    assert [call[0] for call in encode.calls] == [pairs[3].base, pairs[3].rewritten, pairs[9].base, pairs[9].rewritten]
    assert built.rewritten.lengths[4] == len("A harbour in the morning.")


def test_damaged_shards_and_half_written_files_are_encoded_again(tmp_path: Path):
    out = tmp_path / "c.npz"
    with pytest.raises(KeyboardInterrupt):
        quiet_build(Encoder(6), out)
    first, second, third = sorted(shard_folder(out).iterdir())
    first.write_bytes(first.read_bytes()[:-5])
    second.write_bytes(b"")
    tensors = load_file(third)
    save_file({**tensors, "base_lengths": tensors["base_lengths"] + 1}, third, metadata=None)
    (shard_folder(out) / ".0badc0ffee.partial.safetensors").write_bytes(b"half")
    encode = Encoder()
    quiet_build(encode, out)
    assert len(encode.calls) == 8
    quiet_build(Encoder(), tmp_path / "whole.npz")
    assert out.read_bytes() == (tmp_path / "whole.npz").read_bytes()
    assert not shard_folder(out).exists()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_an_embedding_that_is_not_finite_is_refused_by_its_pair(tmp_path: Path, value: float):
    def encode(prompts: list[str]) -> TextEmbeddings:
        found = Encoder()(prompts)
        row = next((row for row, prompt in enumerate(prompts) if prompt.startswith("A long boat, number 7")), None)
        if row is not None:
            found.to_list()[row][-1, 2] = value
        return found

    with pytest.raises(PromptError, match=r"the rewritten prompt of pair 8 .*not finite: 'A long boat, number 7"):
        build_cache(some_pairs(10), encode, "e", tmp_path / "c.npz", shard_size=3)
    assert not (tmp_path / "c.npz").exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"pairs": []}, "no pairs to encode"),
        ({"shard_size": 0}, "from shards of 0"),
        ({"dtype": torch.float16}, "a cache in torch.float16"),
        ({"out": "c.pt"}, "stored as .npz or .safetensors"),
        ({"out": "folder.npz"}, "is not a file"),
        ({"out": "file/c.npz"}, "cannot write"),
    ],
)
def test_settings_are_checked_before_anything_is_encoded(tmp_path: Path, settings: dict, said: str):
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "file").write_text("")
    encode, settings = Encoder(), {"pairs": some_pairs(2), "out": "c.npz", **settings}
    pairs, out = settings.pop("pairs"), tmp_path / settings.pop("out")
    with pytest.raises((ConfigError, FileError), match=said):
        build_cache(pairs, encode, "e", out, **settings)
    assert encode.calls == []


def test_progress_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    quiet_build(Encoder(), tmp_path / "c.npz")
    assert "encoding pairs: 4/4" in capsys.readouterr().err
