import contextlib
import io
import os
import pickle
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentloom.errors import CorruptFileError, FileError
from latentloom.storage import read_npz, read_pt
from latentloom.storage.foreign import read_npy_bytes


class RunsCode:
    """Unpickling it makes a folder."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


class Allocates:
    """Unpickling it takes as many bytes as it is told."""

    def __reduce__(self):
        return bytearray, (8 * 2**30,)


def refusal(read, path) -> str:
    tracemalloc.start()
    with pytest.raises(CorruptFileError) as error:
        read(path)
    assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    tracemalloc.stop()
    assert "\n" not in str(error.value)
    return str(error.value)


def npy_header(shape: str, dtype: str = "<f4") -> bytes:
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def zip_of(path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_arrays_come_back_exactly(tmp_path):
    arrays = {
        "c": np.arange(6, dtype=np.float16).reshape(2, 3),
        "columns": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "scalar": np.array(2.5),
        "empty": np.zeros((0, 4), np.uint8),
        "text": np.array(["a", "größe"]),
    }
    for save, name in ((np.savez, "a.npz"), (np.savez_compressed, "b.npz")):
        save(tmp_path / name, **arrays)
        loaded = read_npz(tmp_path / name)
        assert loaded.keys() == arrays.keys()
        for key, array in arrays.items():
            assert loaded[key].dtype == array.dtype
            assert np.array_equal(loaded[key], array)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_array_is_held_once_while_it_is_read(tmp_path, save):
    array = np.arange(3 * 2**20 + 5, dtype=np.float64)  # 24 MiB, in several parts, the last of them short
    save(tmp_path / "a.npz", a=array)
    tracemalloc.start()
    loaded = read_npz(tmp_path / "a.npz")["a"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert array.nbytes < peak < 1.3 * array.nbytes
    assert np.array_equal(loaded, array)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_array_that_ends_before_its_header_says_is_refused(tmp_path, compression):
    whole = npy_header("(4,)") + bytes(16)
    path = zip_of(tmp_path / "short.npz", {"a.npy": whole[:-8]}, compression)
    sizes = (num_bytes.to_bytes(4, "little") for num_bytes in (len(whole) - 8, len(whole)))
    path.write_bytes(path.read_bytes().replace(*sizes))  # the zip's directory claims what the header claims
    assert "short.npz" in refusal(read_npz, path)


def test_pickled_objects_in_an_npz_are_refused(tmp_path):
    np.savez(tmp_path / "o.npz", a=np.array([RunsCode(str(tmp_path / "made"))], dtype=object))
    assert "pickled" in refusal(read_npz, tmp_path / "o.npz")
    assert not (tmp_path / "made").exists()


def test_an_npz_that_claims_more_than_it_holds_is_refused_before_allocating(tmp_path):
    for shape in ("(10**15,)", "(1000000000000,)", "(-4,)", "(2, 3)", "[" * 2000):
        zip_of(tmp_path / "claim.npz", {"a.npy": npy_header(shape) + b"\0" * 16})
        refusal(read_npz, tmp_path / "claim.npz")


def test_zip_bombs_are_refused_before_unpacking(tmp_path):
    nothing = bytes(100 * 2**20)
    bomb = zip_of(tmp_path / "bomb.npz", {"a.npy": npy_header("(1,)") + nothing}, zipfile.ZIP_DEFLATED)
    assert "would unpack to" in refusal(read_npz, bomb)
    bomb = zip_of(tmp_path / "bomb.pt", {"archive/data.pkl": nothing}, zipfile.ZIP_DEFLATED)
    assert "would unpack to" in refusal(read_pt, bomb)
    small = zip_of(tmp_path / "small.pt", {"archive/data.pkl": bytes(2**20)}, zipfile.ZIP_DEFLATED)
    assert "never uses" in refusal(read_pt, small)


def test_a_state_dict_comes_back_exactly(tmp_path):
    state = {"w": torch.randn(3, 2).to(torch.bfloat16), "p": torch.nn.Parameter(torch.ones(2)), "step": 3}
    state["tied"] = state["w"]
    torch.save(state, tmp_path / "a.pt")
    for mmap in (True, False):
        loaded = read_pt(tmp_path / "a.pt", mmap=mmap)
        assert loaded["step"] == 3
        assert torch.equal(loaded["tied"], state["w"])
        assert torch.equal(loaded["p"], state["p"])


def test_code_in_a_pt_is_refused_and_not_run(tmp_path):
    torch.save({"w": RunsCode(str(tmp_path / "made"))}, tmp_path / "code.pt")
    assert "mkdir" in refusal(read_pt, tmp_path / "code.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(RunsCode(str(tmp_path / "made"))))
    assert "zip format" in refusal(read_pt, tmp_path / "plain.pt")
    assert not (tmp_path / "made").exists()


def test_a_pt_that_allocates_on_request_is_refused(tmp_path):
    torch.save({"w": Allocates()}, tmp_path / "big.pt")
    assert "bytearray" in refusal(read_pt, tmp_path / "big.pt")


def test_tensors_that_claim_more_than_the_file_are_refused(tmp_path):
    torch.save({"w": torch.ones(1).expand(2**40)}, tmp_path / "wide.pt")
    assert "claims" in refusal(read_pt, tmp_path / "wide.pt")
    torch.save({"w": torch.ones(100)}, tmp_path / "a.pt")
    with pytest.raises(CorruptFileError, match="at most 399"):
        read_pt(tmp_path / "a.pt", max_bytes=399)


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("change", ["shorter", "longer", "renamed"])
def test_a_tensor_that_is_not_as_long_as_its_part_is_refused(tmp_path, mmap, change):
    buffer = io.BytesIO()
    torch.save({"w": torch.arange(50), "v": torch.arange(5)}, buffer)
    with zipfile.ZipFile(buffer) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in parts if name.endswith("/data/0"))
    content = parts.pop(name)
    changed = {"shorter": {name: content[:8]}, "longer": {name: content * 2}, "renamed": {name + "x": content}}[change]
    zip_of(tmp_path / "a.pt", parts | changed)
    refusal(lambda path: read_pt(path, mmap=mmap), tmp_path / "a.pt")


@given(st.sampled_from(["npz", "pt"]), st.floats(0, 1, exclude_max=True))
def test_an_archive_cut_anywhere_is_refused(tmp_path_factory, kind, fraction):
    buffer = io.BytesIO()
    if kind == "npz":
        np.savez_compressed(buffer, a=np.arange(50))
    else:
        torch.save({"w": torch.arange(50)}, buffer)
    path = tmp_path_factory.mktemp("cut") / f"a.{kind}"
    path.write_bytes(buffer.getvalue()[: int(fraction * len(buffer.getvalue()))])
    refusal(read_npz if kind == "npz" else read_pt, path)


@given(st.sampled_from(["npz", "pt"]), st.data())
def test_a_flipped_byte_never_escapes_the_file_errors(tmp_path_factory, kind, data):
    buffer = io.BytesIO()
    if kind == "npz":
        np.savez_compressed(buffer, a=np.arange(50))
    else:
        torch.save({"w": torch.arange(50)}, buffer)
    content = bytearray(buffer.getvalue())
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("flip") / f"a.{kind}"
    path.write_bytes(content)
    with contextlib.suppress(FileError):  # anything else fails the test
        read_npz(path) if kind == "npz" else read_pt(path)


# ---- npy


def npy_bytes(array: np.ndarray, allow_pickle: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=allow_pickle)
    return buffer.getvalue()


def test_an_npy_in_memory_comes_back_exactly():
    for array in (
        np.array([1.5, -2], dtype=np.float32),
        np.asfortranarray(np.arange(6).reshape(2, 3)),
        np.zeros((0, 4), np.float16),
    ):
        loaded = read_npy_bytes(npy_bytes(array), "a.npy")
        assert loaded.dtype == array.dtype
        assert np.array_equal(loaded, array)


@pytest.mark.parametrize(
    "data",
    [
        npy_bytes(np.zeros(4))[:-1],
        npy_bytes(np.zeros(4)) + b"more",
        npy_header("(10000000000,)") + bytes(16),
        npy_bytes(np.array([{}], dtype=object), allow_pickle=True),
        b"\x80\x04N.",
        b"",
    ],
)
def test_bytes_that_are_no_npy_of_their_size_are_refused(data):
    with pytest.raises(CorruptFileError, match=r"^a\.npy is not an npy file, or is damaged: .+$"):
        read_npy_bytes(data, "a.npy")
