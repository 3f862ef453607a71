"""Control vectors as files: safetensors, exactly, and GGUF in repeng's layout.

In the GGUF layout, `direction.<layer>` is counted from layer 0 of the model, as repeng does after it has turned its
negative indices (-1 is the last) around; here layer L is block L. repeng reads and edits what a layer returns, so its
direction L belongs to what enters block L + 1: at site "hidden_states", which is what enters a block, a vector of
repeng's acts one block earlier than there. repeng leaves out layer 0 by default and any that were not asked for.

Source: repeng (https://github.com/vgel/repeng), `ControlVector.export_gguf` and `import_gguf`.
"""

import json
import re
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
from gguf.gguf_reader import ReaderTensor
from torch import Tensor

from latentloom.errors import ConfigError, CorruptFileError, FileError, LatentLoomError
from latentloom.steering.control.vector import WHOLE_SCHEDULE, ControlVector, Window
from latentloom.steering.plan import Site
from latentloom.storage import atomic_write, read_module, save_module
from latentloom.storage.header import existing_file

ARCHITECTURE = "controlvector"
MODEL, COUNT = f"{ARCHITECTURE}.model_hint", f"{ARCHITECTURE}.layer_count"
SITE, WINDOWS, PROVENANCE = "latentloom.site", "latentloom.windows", "latentloom.provenance"  # repeng reads past these
SUFFIXES = (".safetensors", ".gguf")
MAX_BYTES = 2**28
"""The most that directions take in memory; those of 100 blocks of 16,384 channels take 6.6 MB."""
MAX_PARTS = 100_000
"""The most numbers and names in a GGUF header: about 6 per direction and 4 per key, and each costs some 300 bytes."""

_KIND = ControlVector.__name__
_DIRECTION = re.compile(r"direction\.(0|[1-9][0-9]{0,4})", re.ASCII)
_FLOATS = (GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.F64)


def save_control(path: Path | str, control: ControlVector) -> None:
    """Write a control vector; what is read back is the same to the last bit.

    Args:
        path: ends in .safetensors, which holds any control vector, or in .gguf, which holds those of one window.
        control: what to write.

    Raises:
        FileError: another suffix, or a place that cannot be written to.
        ConfigError: several windows for a .gguf.
    """
    if _suffix(path) == ".safetensors":
        config = {"site": control.site, "model": control.model, "windows": control.windows}
        save_module(path, {"directions": control.directions}, _KIND, config, control.provenance)
    else:
        _write_gguf(path, control)


def load_control(path: Path | str, num_blocks: int | None = None) -> ControlVector:
    """A control vector from its file, on the CPU.

    A .gguf that this package did not write counts as directions of "hidden_states" for the whole schedule; layers that
    it leaves out get zero directions.

    Args:
        path: what `save_control` wrote, or a .gguf of repeng's.
        num_blocks: blocks that it must be for. For a .gguf that leaves layers out, None takes them to end with the
            last one in the file.

    Raises:
        FileError: no such file, or it holds something else.
        CorruptFileError: damaged.
        ConfigError: a control vector for another number of blocks.
    """
    control = _read_safetensors(path) if _suffix(path) == ".safetensors" else _read_gguf(path, num_blocks)
    if num_blocks is not None and control.num_blocks != num_blocks:
        raise ConfigError(
            f"{path} is for a model of {control.num_blocks} blocks, not {num_blocks}; fit one for this model"
        )
    return control


def _read_safetensors(path: Path | str) -> ControlVector:
    stored = read_module(path)
    if stored.kind != _KIND:
        raise FileError(f"{path} holds {stored.kind}; give a control vector that `latentloom steer control fit` wrote")
    shapes = {name: tuple(tensor.shape) for name, tensor in stored.tensors.items()}
    if shapes.keys() != {"directions"} or len(shapes["directions"]) != 3:
        raise CorruptFileError(f"{path} is damaged: it holds {str(shapes)[:80]} instead of directions [W, N, D]")
    site, model, windows = (stored.config.get(name) for name in ("site", "model", "windows"))
    return _rebuilt(path, stored.tensors["directions"], site, model, windows, stored.record)


def _write_gguf(path: Path | str, control: ControlVector) -> None:
    if len(control.windows) > 1:
        raise ConfigError(f"{path}: a .gguf holds one window and these are {len(control.windows)}; write .safetensors")
    with atomic_write(path) as temporary:
        writer = GGUFWriter(temporary, ARCHITECTURE)
        writer.add_string(MODEL, control.model)
        writer.add_uint32(COUNT, control.num_blocks)
        writer.add_string(SITE, control.site)
        writer.add_string(WINDOWS, json.dumps(control.windows))
        writer.add_string(PROVENANCE, json.dumps(control.provenance))
        for block, vector in enumerate(control.directions[0].cpu().numpy()):
            writer.add_tensor(f"direction.{block}", vector)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _read_gguf(path: Path | str, num_blocks: int | None) -> ControlVector:
    path = existing_file(path)
    try:
        # overflow raises instead of printing a warning: sizes of a damaged file leave 64 bits
        with np.errstate(all="raise"):
            reader = _BoundedReader(path)
            architecture, model, site = (_text(reader, name) for name in ("general.architecture", MODEL, SITE))
            windows = json.loads(_text(reader, WINDOWS) or json.dumps(WHOLE_SCHEDULE))
            provenance = json.loads(_text(reader, PROVENANCE) or json.dumps({"read_from": path.name}))
    # what a hostile or cut file makes the parsers raise; to the user it is one thing
    except (ValueError, IndexError, KeyError, ArithmeticError, RecursionError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise CorruptFileError(f"{path} cannot be read as a GGUF control vector: {reason}") from error
    if architecture != ARCHITECTURE:
        raise FileError(f"{path} is a GGUF file of {str(architecture)[:40]!r}; give one of {ARCHITECTURE!r}")
    vectors = {tensor.name: tensor for tensor in reader.tensors if tensor.name.startswith("direction.")}
    directions = _stacked(path, vectors, num_blocks)
    return _rebuilt(path, directions, site or "hidden_states", model, windows, provenance)


def _stacked(path: Path, vectors: dict[str, ReaderTensor], num_blocks: int | None) -> Tensor:
    """The directions of a GGUF file, [1, N, D]; zero where it has none."""
    names = {name: _DIRECTION.fullmatch(name) for name in vectors}
    if not vectors or None in names.values():
        shown = next((name for name, match in names.items() if match is None), "no direction")
        raise CorruptFileError(f"{path} is damaged: it has {shown[:40]!r} where direction.<layer> belongs")
    shapes = {tuple(tensor.shape.tolist()) for tensor in vectors.values()}
    if len(shapes) != 1 or len(width := next(iter(shapes))) != 1:
        raise CorruptFileError(f"{path} is damaged: its directions are not vectors of one width")
    if any(tensor.tensor_type not in _FLOATS for tensor in vectors.values()):
        raise FileError(f"{path} holds quantised directions; give a file of floats, as repeng writes")
    layers = {int(match[1]): vectors[name] for name, match in names.items() if match is not None}
    depth = num_blocks or max(layers) + 1
    if max(layers) >= depth:
        raise ConfigError(f"{path} has a direction of layer {max(layers)}; a model of {depth} blocks ends before it")
    if depth * width[0] * 4 > MAX_BYTES:
        raise CorruptFileError(
            f"{path} claims {depth} layers of {width[0]} channels; at most {MAX_BYTES} bytes are read"
        )
    directions = torch.zeros(1, depth, width[0])
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite, which is refused
        for layer, tensor in layers.items():
            directions[0, layer] = torch.from_numpy(np.array(tensor.data, dtype=np.float32))
    return directions


class _BoundedReader(GGUFReader):
    """gguf's reader, which slices past the end of a cut file and counts as far as a hostile one says."""

    def __init__(self, path: Path) -> None:
        self._num_parts = 0
        super().__init__(path)

    def _get(self, offset: Any, dtype: Any, count: Any = 1, override_order: Any = None) -> np.ndarray:
        self._num_parts += 1
        if self._num_parts > MAX_PARTS:
            raise ValueError(f"its header has more than {MAX_PARTS} parts")
        if int(offset) + int(count) * np.dtype(dtype).itemsize > len(self.data):
            raise ValueError(f"it ends at byte {len(self.data)}, before what it says it holds")
        return super()._get(offset, dtype, count, override_order)


def _text(reader: GGUFReader, name: str) -> str | None:
    found = reader.get_field(name)
    if found is None:
        return None
    if found.types != [GGUFValueType.STRING]:
        raise ValueError(f"{name} is no text")
    return found.contents()


def _rebuilt(
    path: Path | str, directions: Tensor, site: Any, model: Any, windows: Any, provenance: Any
) -> ControlVector:
    """A control vector from a file's word."""
    try:
        if not isinstance(model, str) or not isinstance(provenance, dict) or site not in get_args(Site):
            raise ConfigError("its site, model or provenance cannot be read")
        return ControlVector(site, directions, model, _as_windows(windows), provenance)
    except LatentLoomError as error:
        raise CorruptFileError(f"{path} is damaged: {error}") from error


def _as_windows(stored: Any) -> tuple[Window, ...]:
    windows = []
    for window in stored if isinstance(stored, list | tuple) else [stored]:
        ends = list(window) if isinstance(window, list | tuple) else []
        # in range before they become floats, which an integer of JSON can be too large for
        if [type(end) in (int, float) and 0 <= end <= 1 for end in ends] != [True, True]:
            raise ConfigError("its windows are not pairs of numbers from 0 to 1")
        windows.append((float(ends[0]), float(ends[1])))
    return tuple(windows)


def _suffix(path: Path | str) -> str:
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise FileError(f"{path} is no name of a control vector; end it in {' or '.join(SUFFIXES)}")
    return suffix
