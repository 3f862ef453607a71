import contextlib
import json
import struct
import tracemalloc

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import save_file

from latentloom.errors import CorruptFileError, FileError
from latentloom.storage import load_object, read_header, read_module, save_object
from latentloom.tensors import TextEmbeddings


def whole_file(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "t.safetensors"
    save_object(path, TextEmbeddings(torch.ones(3, 2), torch.tensor([1, 2])))
    return path.read_bytes()


def with_header(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(shape: object, offsets: object, dtype: object = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def assert_refused(path, content: bytes) -> None:
    path.write_bytes(content)
    tracemalloc.start()
    for read in (read_header, read_module, load_object):
        with pytest.raises(CorruptFileError) as error:
            read(path)
        assert "\n" not in str(error.value)
        assert str(path) in str(error.value)
    assert tracemalloc.get_traced_memory()[1] < 32 * 2**20
    tracemalloc.stop()


def test_a_header_is_what_safetensors_wrote(tmp_path):
    save_file({"a": torch.ones(2, 3, dtype=torch.bfloat16), "b": torch.ones(0)}, tmp_path / "x.safetensors", {"k": "v"})
    header = read_header(tmp_path / "x.safetensors")
    assert header["__metadata__"] == {"k": "v"}
    assert header["a"] == {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}
    assert header["b"]["shape"] == [0]


@given(st.floats(0, 1, exclude_max=True))
@example(0.0)
def test_a_file_cut_anywhere_is_refused(tmp_path_factory, fraction):
    content = whole_file(tmp_path_factory)
    assert_refused(tmp_path_factory.mktemp("cut") / "t.safetensors", content[: int(fraction * len(content))])


@given(st.data())
def test_a_flipped_byte_in_the_header_never_escapes_the_file_errors(tmp_path_factory, data):
    content = bytearray(whole_file(tmp_path_factory))
    length = int.from_bytes(content[:8], "little")
    content[data.draw(st.integers(0, length + 7))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("flip") / "t.safetensors"
    path.write_bytes(content)
    with contextlib.suppress(FileError):  # anything else fails the test
        load_object(path)


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2**40) + b"{}" * 100,
        struct.pack("<Q", 100_000_001) + b"{}",
        struct.pack("<Q", 0),
        b"not a safetensors file at all, only words",
        with_header(b"{garbage"),
        with_header(b"\xff\xfe\x00"),
        with_header(b"[" * 100_000),
        with_header(b'{"a":' * 50_000),
        with_header(b'{"a":' + b"9" * 10_000 + b"}"),
        with_header([1, 2]),
        with_header({"a": 3}),
        with_header({"a": {"dtype": "F32"}}),
        with_header({"a": entry([1], [0, 4], dtype="F99")}, b"\0" * 4),
        with_header({"a": entry([1], [0, 4], dtype=["F32"])}, b"\0" * 4),
        with_header({"a": entry([-1], [0, 4])}, b"\0" * 4),
        with_header({"a": entry([True], [0, 4])}, b"\0" * 4),
        with_header({"a": entry([1.0], [0, 4])}, b"\0" * 4),
        with_header({"a": entry("1", [0, 4])}, b"\0" * 4),
        with_header({"a": entry([2**62, 2**62], [0, 4])}, b"\0" * 4),
        with_header({"a": entry([2**40], [0, 2**42])}, b"\0" * 4),
        with_header({"a": entry([1] * 65, [0, 4])}, b"\0" * 4),
        with_header({"a": entry([1], [-4, 0])}, b"\0" * 4),
        with_header({"a": entry([1], [4, 0])}, b"\0" * 4),
        with_header({"a": entry([1], [0, 4, 8])}, b"\0" * 4),
        with_header({"a": entry([2], [0, 4])}, b"\0" * 4),
        with_header({"a": entry([1], [0, 4]), "b": entry([1], [0, 4])}, b"\0" * 4),
        with_header({"a": entry([2], [0, 8]), "b": entry([2], [4, 12])}, b"\0" * 12),
        with_header({"a": entry([1], [0, 4]), "b": entry([1], [8, 12])}, b"\0" * 12),
        with_header({"a": entry([1], [0, 4])}, b"\0" * 5),
        with_header(b'{"a":{"dtype":"U8","shape":[],"data_offsets":[0,1]},"a":{}}', b"\0"),
        with_header({"__metadata__": {"k": 1}}),
        with_header({"__metadata__": ["k"]}),
        with_header({"__metadata__": {"latentloom": "{not json"}}),
        with_header({"__metadata__": {"latentloom": "[]"}}),
        with_header({"__metadata__": {"latentloom": "[" * 100_000}}),
        with_header(
            {"__metadata__": {"latentloom": json.dumps(dict.fromkeys(["class", "config", "versions", "record"]))}}
        ),
    ],
)
def test_a_hostile_header_is_refused_in_one_line_without_memory(tmp_path, content):
    path = tmp_path / "hostile.safetensors"
    if b"latentloom" in content:  # a sound safetensors file; only what it says about itself is wrong
        path.write_bytes(content)
        with pytest.raises(CorruptFileError, match="says about itself"):
            read_module(path)
    else:
        assert_refused(path, content)


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(FileError, match="does not exist"):
        read_header(tmp_path / "none.safetensors")
    with pytest.raises(FileError, match="is a folder"):
        read_header(tmp_path)
