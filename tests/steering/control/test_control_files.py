"""Control vectors on disk: exact in both formats, readable to repeng, and damaged files refused in one line."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader, GGUFWriter
from hypothesis import given
from hypothesis import strategies as st

from latentloom.errors import ConfigError, CorruptFileError, FileError
from latentloom.steering.control import files as control_files
from latentloom.steering.control.files import load_control, save_control
from latentloom.steering.control.vector import ControlVector
from latentloom.storage import save_module

SUFFIXES = (".safetensors", ".gguf")


def control(**changes: Any) -> ControlVector:
    directions = torch.randn(1, 4, 6, generator=torch.Generator().manual_seed(0))
    settings = {"site": "attention_output", "directions": directions, "model": "micro", "windows": ((0.25, 0.75),)}
    return ControlVector(**{**settings, "provenance": {"pairs": [["rød", "blå"]], "seeds": [1, 2]}, **changes})


def write_as_repeng_does(path: Path, directions: dict[int, np.ndarray], **strings: str) -> None:
    """The calls of repeng's `export_gguf`, with more keys and tensors where a test asks for them."""
    writer = GGUFWriter(path, strings.pop("architecture", "controlvector"))
    writer.add_string("controlvector.model_hint", strings.pop("model_hint", "mistral"))
    writer.add_uint32("controlvector.layer_count", len(directions))
    for key, value in strings.items():
        writer.add_string(key, value)
    for layer, vector in directions.items():
        writer.add_tensor(f"direction.{layer}", vector)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_gives_back_the_same_bits_and_story(tmp_path, suffix):
    odd = torch.tensor([0.0, -0.0, 1e-45, -3.4e38, 1.1754944e-38, 1 / 3])
    written = control(directions=torch.stack([odd, odd.flip(0), torch.zeros(6), odd * 0])[None])
    save_control(tmp_path / f"a{suffix}", written)
    read = load_control(tmp_path / f"a{suffix}")
    assert torch.equal(read.directions.view(torch.int32), written.directions.view(torch.int32))
    for name in ("site", "model", "windows", "provenance"):
        assert getattr(read, name) == getattr(written, name)


def test_several_windows_are_written_to_safetensors_and_not_to_gguf(tmp_path):
    written = control(directions=torch.randn(2, 4, 6), windows=((0.0, 0.5), (0.5, 1.0)))
    save_control(tmp_path / "a.safetensors", written)
    assert load_control(tmp_path / "a.safetensors").windows == written.windows
    with pytest.raises(ConfigError, match=r"holds one window and these are 2; write .safetensors"):
        save_control(tmp_path / "a.gguf", written)
    assert not (tmp_path / "a.gguf").exists()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_for_another_depth_is_refused(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    save_control(path, control())
    assert load_control(path, num_blocks=4).num_blocks == 4
    with pytest.raises(ConfigError, match=r"\b4\b|layer 3"):
        load_control(path, num_blocks=3)


def test_a_gguf_has_repengs_keys_and_tensors(tmp_path):
    written = control()
    save_control(tmp_path / "a.gguf", written)
    reader = GGUFReader(tmp_path / "a.gguf")
    fields = {
        name: field.contents() for name in reader.fields if (field := reader.get_field(name)) and "GGUF" not in name
    }
    assert fields == {
        "general.architecture": "controlvector",
        "controlvector.model_hint": "micro",
        "controlvector.layer_count": 4,
        "latentloom.site": "attention_output",
        "latentloom.windows": "[[0.25, 0.75]]",
        "latentloom.provenance": json.dumps(written.provenance),
    }
    assert [tensor.name for tensor in reader.tensors] == [f"direction.{block}" for block in range(4)]
    for tensor, direction in zip(reader.tensors, written.directions[0], strict=True):
        assert np.array_equal(tensor.data, direction.numpy())


def test_a_file_of_repengs_is_read_with_zeros_for_the_layers_it_leaves_out(tmp_path):
    rows = np.random.default_rng(0).standard_normal((2, 6)).astype(np.float32)
    write_as_repeng_does(tmp_path / "a.gguf", {3: rows[0], 1: rows[1]})
    read = load_control(tmp_path / "a.gguf")
    assert (read.site, read.model, read.windows) == ("hidden_states", "mistral", ((0.0, 1.0),))
    assert read.provenance == {"read_from": "a.gguf"}
    zeros = np.zeros(6)
    assert np.array_equal(read.directions[0].numpy(), [zeros, rows[1], zeros, rows[0]])
    deeper = load_control(tmp_path / "a.gguf", num_blocks=7).directions
    assert torch.equal(deeper[:, :4], read.directions)
    assert not deeper[:, 4:].any()


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_floats_of_a_gguf_become_float32(tmp_path, dtype):
    row = np.array([0.5, -2.0, 1 / 3]).astype(dtype)
    write_as_repeng_does(tmp_path / "a.gguf", {0: row})
    assert np.array_equal(load_control(tmp_path / "a.gguf").directions[0, 0].numpy(), row.astype(np.float32))


ROW = np.ones(6, dtype=np.float32)


@pytest.mark.parametrize(
    ("directions", "strings", "message"),
    [
        ({0: ROW}, {"architecture": "llama"}, "GGUF file of 'llama'"),
        ({}, {}, "no direction"),
        ({-1: ROW}, {}, "direction.-1"),
        ({0: ROW, 1: ROW[:5]}, {}, "one width"),
        ({0: ROW[None]}, {}, "one width"),
        ({0: ROW.astype(np.int32)}, {}, "quantised"),
        ({0: ROW * np.nan}, {}, "NaN"),
        ({0: np.full(6, 1e300)}, {}, "infinity"),
        ({99999: np.zeros(2**14, dtype=np.float32)}, {}, "claims 100000 layers"),
        ({0: ROW}, {"latentloom.site": "keys"}, "site"),
        ({0: ROW}, {"latentloom.windows": "[[0, 1e999]]"}, "windows"),
        ({0: ROW}, {"latentloom.windows": "[[0, " + "9" * 400 + "]]"}, "windows"),
        ({0: ROW}, {"latentloom.windows": "[[0.5, 0.1]]"}, "ascending"),
        ({0: ROW}, {"latentloom.windows": "[[0, 0.5], [0.5, 1]]"}, "for 2 windows"),
        ({0: ROW}, {"latentloom.windows": "[" * 100_000}, "cannot be read"),
        ({0: ROW}, {"latentloom.provenance": "[]"}, "provenance"),
        ({0: ROW}, {"latentloom.provenance": "{"}, "cannot be read"),
    ],
)
def test_a_gguf_that_is_no_control_vector_is_refused_in_one_line(tmp_path, directions, strings, message):
    path = tmp_path / "a.gguf"
    write_as_repeng_does(path, directions, **strings)
    with pytest.raises(FileError, match=message) as refusal:
        load_control(path)
    assert "\n" not in str(refusal.value)
    assert str(path) in str(refusal.value)


def test_a_short_file_that_claims_an_endless_array_costs_nothing(tmp_path):
    key = b"general.architecture"
    array = struct.pack("<I I Q", 9, 0, 2**60)  # an array of 2^60 bytes
    header = b"GGUF" + struct.pack("<I Q Q", 3, 0, 1) + struct.pack("<Q", len(key)) + key + array
    (tmp_path / "short.gguf").write_bytes(header)
    (tmp_path / "long.gguf").write_bytes(header + bytes(2 * control_files.MAX_PARTS))
    with pytest.raises(CorruptFileError, match="ends at byte 68, before"):
        load_control(tmp_path / "short.gguf")
    with pytest.raises(CorruptFileError, match="more than 100000 parts"):
        load_control(tmp_path / "long.gguf")


def read_or_refuse(path: Path) -> ControlVector | None:
    """What the file holds, if it can be read; any other failure than one line about the file fails the test."""
    lines = []
    try:
        return load_control(path)
    except FileError as refusal:
        lines = str(refusal).splitlines()
    assert len(lines) == 1
    return None


@pytest.fixture(scope="module", params=SUFFIXES)
def whole(request, tmp_path_factory) -> tuple[Path, bytes]:
    path = tmp_path_factory.mktemp("whole") / f"a{request.param}"
    save_control(path, control())
    return path, path.read_bytes()


@given(share=st.floats(0, 1, exclude_max=True))
def test_a_cut_file_is_never_read(whole, share: float):
    path, content = whole
    cut = path.with_stem("cut")
    # what follows the last direction is padding, and nobody misses it
    last = content.rfind(control().directions[0, -1].numpy().tobytes()) + 6 * 4
    cut.write_bytes(content[: int(share * last)])
    assert read_or_refuse(cut) is None


@given(changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=8))
def test_changed_bytes_are_refused_or_read_as_another_vector(whole, changes: list[tuple[float, int]]):
    path, content = whole
    damaged = bytearray(content)
    for share, change in changes:
        damaged[int(share * len(damaged))] ^= change
    changed = path.with_stem("changed")
    changed.write_bytes(damaged)
    read = read_or_refuse(changed)
    assert read is None or read.directions.isfinite().all()


@given(content=st.binary(max_size=200))
def test_random_bytes_are_refused(tmp_path_factory, content: bytes):
    path = tmp_path_factory.getbasetemp() / "random.gguf"
    path.write_bytes(b"GGUF\x03\x00\x00\x00" + content)
    assert read_or_refuse(path) is None


GOOD = {"site": "context", "model": "micro", "windows": [[0, 1]]}


@pytest.mark.parametrize(
    ("shape", "config", "record", "message"),
    [
        ((6,), GOOD, {}, "instead of directions"),
        ((2, 1, 6), GOOD, {}, "for 1 windows"),
        ((1, 1, 6), {**GOOD, "site": "keys"}, {}, "site"),
        ((1, 1, 6), {**GOOD, "model": 3}, {}, "model"),
        ((1, 1, 6), {**GOOD, "windows": 3}, {}, "windows"),
        ((1, 1, 6), {**GOOD, "windows": [["a", "b"]]}, {}, "windows"),
        ((1, 1, 6), {}, {}, "site"),
        ((1, 1, 6), GOOD, None, "provenance"),
    ],
)
def test_a_safetensors_file_that_is_no_control_vector_is_damaged(tmp_path, shape, config, record, message):
    path = tmp_path / "a.safetensors"
    save_module(path, {"directions": torch.ones(shape)}, "ControlVector", config, record)
    with pytest.raises(CorruptFileError, match=message):
        load_control(path)


def test_a_safetensors_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    save_module(path, {"directions": torch.ones(1, 1, 6)}, "EmbeddingDelta", GOOD, {})
    with pytest.raises(FileError, match="holds EmbeddingDelta; give a control vector"):
        load_control(path)
    save_module(path, {"other": torch.ones(1, 1, 6)}, "ControlVector", GOOD, {})
    with pytest.raises(CorruptFileError, match="instead of directions"):
        load_control(path)


def test_names_that_are_no_control_vectors_are_refused(tmp_path):
    for act in (lambda path: save_control(path, control()), load_control):
        with pytest.raises(FileError, match=r"end it in .safetensors or .gguf"):
            act(tmp_path / "a.pt")
    for suffix in SUFFIXES:
        with pytest.raises(FileError, match="does not exist"):
            load_control(tmp_path / f"a{suffix}")
