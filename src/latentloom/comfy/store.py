"""The embedding store of this ComfyUI: which file it is, and how nodes put texts and operations into it."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from latentloom.comfy import core
from latentloom.comfy.hosts.host import Host
from latentloom.comfy.hosts.native import NativeHost
from latentloom.storage import EmbeddingStore
from latentloom.storage.embedding_entries import PutResult
from latentloom.storage.embedding_file import PATH_VARIABLE
from latentloom.tensors import TextEmbeddings

GIVEN = "given"
"""Kind of a text that came over a link: it may be a prompt as encoded, or what another node made of one."""
ID_LETTERS = 8
UNKNOWN_PROMPT = ""
"""Neither host hands the words on with their embeddings."""


def open_store() -> EmbeddingStore:
    """The store of $LATENTLOOM_STORE, else of `latentloom/embeddings.duckdb` below ComfyUI's user directory.

    The command's own default lies elsewhere, below the user's data folder; the variable makes both use one file.
    """
    if os.environ.get(PATH_VARIABLE):
        return EmbeddingStore()
    return EmbeddingStore(Path(core.module("folder_paths").get_user_directory()) / "latentloom" / "embeddings.duckdb")


def encoder_name(host: Host, dim: int) -> str:
    """What stands for the encoder's fingerprint, as `comfyui-native:4096`.

    Neither host says which weights encoded a text, so this tells apart only what a search must not mix: the widths,
    and the hosts, whose encoders differ in precision. Two encoders of one width in one host share a name.
    """
    return f"{'comfyui-native' if isinstance(host, NativeHost) else 'wan-video-wrapper'}:{dim}"


def put_text(store: EmbeddingStore, host: Host, text: TextEmbeddings, kind: str = GIVEN) -> list[PutResult]:
    """Keep every prompt of a text; what is there already is not stored twice, and float32 becomes float16.

    Args:
        store: where to.
        host: whose text it is.
        text: B prompts.
        kind: the operation that made it.
    """
    return store.put_many(text, [UNKNOWN_PROMPT] * len(text), encoder_name(host, text.dim), kind)


def record_operation(
    host: Host,
    kind: str,
    operands: Sequence[TextEmbeddings],
    result: TextEmbeddings,
    parameters: Mapping[str, object],
    seconds: float,
) -> str:
    """Keep what went into an operation, what came out and how it was done; gives a line that says where.

    Args:
        host: whose texts they are.
        kind: name of the operation.
        operands: in order.
        result: all of its prompts are kept.
        parameters: JSON values by name.
        seconds: how long it took.
    """
    store = open_store()
    inputs = [each.id for operand in operands for each in put_text(store, host, operand)]
    outputs = [each.id for each in put_text(store, host, result, kind)]
    number = store.record_operation(kind, inputs, parameters, outputs, seconds)
    return f"stored as operation {number} ({short_ids(inputs)} -> {short_ids(outputs)}) in {store.path}"


def short_ids(ids: Sequence[str]) -> str:
    """The beginnings of ids, by which the command `latentloom store` finds them."""
    return ", ".join(each[:ID_LETTERS] for each in ids)
