"""Compressed numbers come back bit for bit, damage is told, and content has one name."""

from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentloom.errors import ConfigError, CorruptFileError, PromptError, ShapeError
from latentloom.storage.embedding_codec import compress, content_id, decompress
from latentloom.storage.embedding_entries import PADDED_LENGTH
from latentloom.storage.embedding_tensors import analyze, pack, unpack
from latentloom.tensors import text_embeddings

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def normal(num_tokens: int, dim: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_tokens, dim, generator=torch.Generator().manual_seed(seed))


@given(raw=st.binary(max_size=600), item_bytes=st.sampled_from([1, 2, 4]))
def test_any_bytes_come_back(raw, item_bytes):
    whole = np.frombuffer(raw[: len(raw) // item_bytes * item_bytes], np.uint8)
    back = decompress(compress(whole, item_bytes), whole.size, item_bytes)
    assert np.array_equal(back, whole)
    assert back.flags.writeable


@given(place=st.integers(min_value=0), bit=st.integers(min_value=0, max_value=7))
def test_a_flipped_bit_is_told_or_harmless(place, bit):
    whole = np.arange(400, dtype=np.uint16).view(np.uint8)
    blob = bytearray(compress(whole, 2))
    blob[place % len(blob)] ^= 1 << bit
    with suppress(CorruptFileError):
        assert np.array_equal(decompress(bytes(blob), whole.size, 2), whole)


def test_a_blob_that_claims_another_size_is_refused_before_it_is_unpacked():
    bomb = compress(np.zeros(10**7, np.uint8), 2)
    assert len(bomb) < 10**4
    with pytest.raises(CorruptFileError, match="another size"):
        decompress(bomb, 64, 2)


@pytest.mark.parametrize("num_tokens", [8, 400])
def test_bytes_of_one_kind_together_compress_normal_numbers_better(num_tokens):
    raw = normal(num_tokens, 512).half().view(torch.uint8).numpy().reshape(-1)
    assert len(compress(raw, 2)) < 0.95 * len(compress(raw, 1))


@given(
    fields=st.lists(
        st.tuples(
            st.binary(max_size=4), st.text(max_size=3), st.text(max_size=3), st.sampled_from(["float16", "bfloat16"])
        ),
        min_size=2,
        max_size=2,
    )
)
def test_two_contents_share_an_id_exactly_when_they_are_the_same(fields):
    ids = [
        content_id(np.frombuffer(raw, np.uint8), prompt=prompt, encoder=encoder, dtype=dtype, num_tokens=1, dim=2)
        for raw, prompt, encoder, dtype in fields
    ]
    assert (ids[0] == ids[1]) == (fields[0] == fields[1])


def test_letters_cannot_move_from_prompt_to_encoder_unnoticed():
    raw = np.zeros(4, np.uint8)
    ids = {
        content_id(raw, prompt=prompt, encoder=encoder, dtype="float16", num_tokens=tokens, dim=dim)
        for prompt, encoder, tokens, dim in [("ab", "c", 1, 2), ("a", "bc", 1, 2), ("a", "bc", 2, 1)]
    }
    assert len(ids) == 3


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_bit_pattern_of_finite_numbers_survives(dtype):
    bits = torch.arange(2**16, dtype=torch.int32)
    tokens = (bits << 16).view(torch.float32) if dtype == torch.float32 else bits.to(torch.int16).view(dtype)
    tokens = tokens[tokens.isfinite()].reshape(-1, 32)  # signed zeros and subnormal numbers among them
    packed = pack(tokens, "p", "e", str(dtype).removeprefix("torch."))
    back = decompress(packed.blob, tokens.numel() * tokens.element_size(), tokens.element_size())
    assert back.tobytes() == tokens.contiguous().view(torch.uint8).numpy().tobytes()
    assert packed.note is None


def test_float32_is_rounded_to_float16_and_says_so():
    tokens = normal(3, 8)
    packed = pack(tokens, "p", "e", None)
    assert (packed.dtype, packed.source_dtype, packed.note) == ("float16", "float32", "rounded from float32 to float16")
    assert decompress(packed.blob, 48, 2).tobytes() == tokens.half().numpy().tobytes()


def test_float32_beyond_float16_stays_float32_and_says_so():
    tokens = normal(3, 8)
    tokens[1, 2] = -70000
    packed = pack(tokens, "p", "e", None)
    assert packed.dtype == "float32"
    assert packed.note == "kept as float32: its largest number, 70000, is beyond float16"
    assert decompress(packed.blob, 96, 4).tobytes() == tokens.numpy().tobytes()
    tokens[1, 2] = 65504
    assert pack(tokens, "p", "e", None).dtype == "float16"


def test_a_dtype_that_cannot_hold_the_numbers_is_refused():
    with pytest.raises(ConfigError, match="float16 cannot hold 999424"):
        pack(torch.full((1, 2), 1e6).bfloat16(), "p", "e", "float16")
    assert pack(torch.full((1, 2), 1e6).bfloat16(), "p", "e", "float32").note == "widened from bfloat16 to float32"


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_numbers_that_are_not_finite_are_refused(dtype, number):
    tokens = torch.zeros(4, 8, dtype=dtype)
    tokens[3, 7] = number
    with pytest.raises(PromptError, match="not finite"):
        pack(tokens, "p", "e", None)


def test_large_finite_numbers_whose_sum_overflows_are_stored():
    assert pack(torch.full((4, 8), 3e38, dtype=torch.bfloat16), "p", "e", None).num_tokens == 4


def test_other_dtypes_and_texts_that_are_not_unicode_are_refused():
    with pytest.raises(ShapeError, match="float64"):
        pack(torch.zeros(1, 2, dtype=torch.float64), "p", "e", None)
    with pytest.raises(ConfigError, match="'int8' is unknown"):
        pack(torch.zeros(1, 2), "p", "e", "int8")
    with pytest.raises(PromptError, match="not valid Unicode"):
        pack(torch.zeros(1, 2), "\ud800", "e", None)


def test_the_padded_length_is_the_one_of_the_tensors():
    assert PADDED_LENGTH == text_embeddings.PADDED_LENGTH


class TestAnalysis:
    def test_a_cloud_equally_wide_in_three_directions_has_three_dimensions(self):
        tokens = torch.zeros(6, 10)
        for axis in range(3):
            tokens[2 * axis, axis], tokens[2 * axis + 1, axis] = 2.0, -2.0
        analysis = analyze(tokens)
        assert analysis.effective_dim == pytest.approx(3, rel=1e-5)
        assert analysis.num_components == 3
        assert (analysis.norm_mean, analysis.norm_std, analysis.norm_min) == (2.0, 0.0, 2.0)
        assert (analysis.minimum, analysis.maximum, analysis.mean) == (-2.0, 2.0, 0.0)

    def test_the_dimensions_are_those_of_the_covariance(self):
        tokens = normal(40, 12) * torch.linspace(0.1, 3, 12) + 5
        variances = torch.linalg.eigvalsh(tokens.T.cov())
        expected = variances.sum() ** 2 / variances.square().sum()
        assert analyze(tokens.half()).effective_dim == pytest.approx(expected.item(), rel=1e-2)

    @pytest.mark.parametrize("num_tokens", [0, 1])
    def test_no_spread_has_no_dimensions(self, num_tokens):
        analysis = analyze(torch.ones(num_tokens, 4))
        assert (analysis.effective_dim, analysis.num_components) == (0.0, 0)


def test_unpack_needs_the_entry_that_belongs_to_the_blob():
    from datetime import UTC, datetime

    from latentloom.storage.embedding_entries import EmbeddingEntry

    packed = pack(normal(3, 8), "p", "e", "float32")
    fields = {"id": packed.id, "prompt": "p", "encoder": "e", "kind": "encoded", "source_dtype": "float32"}
    sizes = {"dim": 8, "stored_bytes": len(packed.blob), "created": datetime.now(UTC)}
    entry = EmbeddingEntry(**fields, **sizes, dtype="float32", num_tokens=3)
    assert torch.equal(unpack(packed.blob, entry).tokens, normal(3, 8))
    with pytest.raises(CorruptFileError):
        unpack(packed.blob, EmbeddingEntry(**fields, **sizes, dtype="float16", num_tokens=3))
