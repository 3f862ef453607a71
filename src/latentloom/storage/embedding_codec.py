"""Numbers as compressed bytes, and the name that their content gives them."""

import hashlib
from typing import Literal, get_args

import numpy as np
import zstandard

from latentloom.errors import CorruptFileError

StoredDtype = Literal["float16", "bfloat16", "float32"]
ITEM_BYTES: dict[str, int] = dict(zip(get_args(StoredDtype), (2, 2, 4), strict=True))
LEVEL = 1  # on shuffled bytes higher levels are slower and no smaller (benchmarks/results/embedding_store.txt)
ID_LETTERS = 32


def compress(raw: np.ndarray, item_bytes: int, level: int = LEVEL) -> bytes:
    """The bytes of little-endian numbers as one zstd frame with a checksum.

    First come all first bytes of the numbers, then all second ones, and so on: sign and exponent repeat themselves
    across numbers and the low bits of mantissas do not. Each kind has blocks of its own in the frame, and with them
    its own code; a short prompt fits into one block, which would have one code for all.

    Args:
        raw: bytes [n * item_bytes].
        item_bytes: size of one number.
        level: zstd's.
    """
    planes = np.ascontiguousarray(raw.reshape(-1, item_bytes).T)
    frame = zstandard.ZstdCompressor(level=level, write_checksum=True).compressobj(size=planes.size)
    parts = []
    for plane in planes:
        parts += [frame.compress(plane.data), frame.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)]
    return b"".join([*parts, frame.flush()])


def decompress(blob: bytes, num_bytes: int, item_bytes: int) -> np.ndarray:
    """The bytes [num_bytes] that `compress` was given; writable.

    Raises:
        CorruptFileError: damaged, or of another size.
    """
    try:
        # the frame's own claim, before anything of that size is allocated
        if zstandard.get_frame_parameters(blob).content_size != num_bytes:
            raise CorruptFileError(f"an embedding of {num_bytes} bytes is stored with another size; put it again")
        planes = zstandard.ZstdDecompressor().decompress(blob)
    except zstandard.ZstdError as error:
        raise CorruptFileError(f"a stored embedding is damaged ({error}); put it again") from error
    shuffled = np.frombuffer(planes, np.uint8).reshape(item_bytes, -1)
    raw = np.empty((shuffled.shape[1], item_bytes), np.uint8)
    for place in range(item_bytes):
        raw[:, place] = shuffled[place]
    return raw.reshape(-1)


def content_id(raw: np.ndarray, *, prompt: str, encoder: str, dtype: str, num_tokens: int, dim: int) -> str:
    """32 hex digits that two embeddings share exactly when their content is the same.

    Args:
        raw: the bytes of the true tokens as stored.
        prompt: the text.
        encoder: fingerprint of what encoded it.
        dtype: of the stored tokens.
        num_tokens: the true length.
        dim: channels per token.
    """
    digest = hashlib.sha256(b"latentloom embedding")
    for part in (prompt, encoder, dtype, str(num_tokens), str(dim)):
        encoded = part.encode()
        digest.update(len(encoded).to_bytes(8, "little") + encoded)  # lengths, so that no two lists read the same
    digest.update(raw.data)
    return digest.hexdigest()[:ID_LETTERS]
