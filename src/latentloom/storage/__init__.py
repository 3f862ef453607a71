"""Files that the package reads and writes: safetensors that rebuild what they hold, foreign arrays, clips, embeddings.

Everything is written to a temporary name and renamed. Nothing is read by pickle, and no reader allocates memory on a
file's word alone; a damaged or unsafe file raises `CorruptFileError`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__all__ = [
    "EmbeddingStore",
    "atomic_write",
    "encode_mp4",
    "load_object",
    "read_header",
    "read_module",
    "read_npz",
    "read_pt",
    "read_video",
    "replace_folder",
    "require_writable",
    "save_module",
    "save_object",
    "write_contact_sheet",
    "write_json",
    "write_text",
    "write_video",
]

_MODULES = {
    "EmbeddingStore": "embedding_store",
    "atomic_write": "atomic",
    "encode_mp4": "video",
    "load_object": "objects",
    "read_header": "header",
    "read_module": "modules",
    "read_npz": "foreign",
    "read_pt": "foreign",
    "read_video": "video",
    "replace_folder": "atomic",
    "require_writable": "atomic",
    "save_module": "modules",
    "save_object": "objects",
    "write_contact_sheet": "contact_sheet",
    "write_json": "atomic",
    "write_text": "atomic",
    "write_video": "video",
}

if TYPE_CHECKING:
    from latentloom.storage.atomic import atomic_write, replace_folder, require_writable, write_json, write_text
    from latentloom.storage.contact_sheet import write_contact_sheet
    from latentloom.storage.embedding_store import EmbeddingStore
    from latentloom.storage.foreign import read_npz, read_pt
    from latentloom.storage.header import read_header
    from latentloom.storage.modules import read_module, save_module
    from latentloom.storage.objects import load_object, save_object
    from latentloom.storage.video import encode_mp4, read_video, write_video
else:  # text and headers are handled without torch, PyAV and matplotlib, which take seconds to import

    def __getattr__(name: str) -> object:
        """A public name, from its module, which is imported when the name is first asked for."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
