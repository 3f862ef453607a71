import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentloom.errors import CorruptFileError, FileError
from latentloom.storage import load_object, read_header, read_module, save_module, save_object
from latentloom.tensors import SentenceVector, TextEmbeddings, VideoLatents

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


@given(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), min_size=1, max_size=4), st.integers(0, 2**16))
def test_text_embeddings_come_back_exactly(tmp_path_factory, dtype, lengths, seed):
    path = tmp_path_factory.mktemp("objects") / "text.safetensors"
    tokens = torch.randn(sum(lengths), 5, generator=torch.Generator().manual_seed(seed)).to(dtype)
    save_object(path, TextEmbeddings(tokens, torch.tensor(lengths)))
    loaded = load_object(path, TextEmbeddings)
    assert loaded.dtype == dtype
    assert torch.equal(loaded.tokens, tokens)
    assert loaded.lengths.tolist() == lengths


@pytest.mark.parametrize("dtype", DTYPES)
def test_latents_and_vectors_come_back_as_what_they_were(tmp_path, dtype):
    latents = VideoLatents(torch.randn(2, 3, 1, 2, 2).to(dtype).transpose(3, 4))
    save_object(tmp_path / "a.safetensors", latents)
    save_object(tmp_path / "b.safetensors", SentenceVector(torch.randn(2, 3).to(dtype)[1:]))
    loaded = load_object(tmp_path / "a.safetensors")
    assert isinstance(loaded, VideoLatents)
    assert torch.equal(loaded.values, latents.values)
    assert load_object(tmp_path / "b.safetensors", SentenceVector).values.shape == (1, 3)


def test_a_module_file_rebuilds_class_config_and_record(tmp_path):
    weight = torch.randn(4, 3)
    config, record = {"rank": 8, "names": ["a"]}, {"seed": 0, "loss": 0.25}
    save_module(tmp_path / "m.safetensors", {"w": weight, "tied": weight, "row": weight[1]}, "Adapter", config, record)
    stored = read_module(tmp_path / "m.safetensors")
    assert (stored.kind, stored.config, stored.record) == ("Adapter", config, record)
    assert torch.equal(stored.tensors["w"], weight)
    assert torch.equal(stored.tensors["tied"], weight)
    assert torch.equal(stored.tensors["row"], weight[1])
    assert read_header(tmp_path / "m.safetensors")["row"]["shape"] == [3]


def test_a_file_can_be_read_by_those_who_can_read_its_neighbours(tmp_path):
    (tmp_path / "neighbour").touch()
    save_module(tmp_path / "m.safetensors", {"w": torch.ones(1)}, "Adapter", {})
    assert (tmp_path / "m.safetensors").stat().st_mode == (tmp_path / "neighbour").stat().st_mode


def test_another_kind_is_named_in_the_error(tmp_path):
    save_object(tmp_path / "v.safetensors", SentenceVector(torch.ones(1, 2)))
    with pytest.raises(FileError, match=r"holds SentenceVector; give a file that holds TextEmbeddings"):
        load_object(tmp_path / "v.safetensors", TextEmbeddings)
    save_module(tmp_path / "m.safetensors", {"w": torch.ones(1)}, "Adapter", {})
    with pytest.raises(FileError, match="holds Adapter"):
        load_object(tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    "tensors",
    [
        {"tokens": torch.ones(3, 2)},
        {"tokens": torch.ones(3), "lengths": torch.tensor([3])},
        {"tokens": torch.ones(3, 2), "lengths": torch.tensor([2])},
        {"tokens": torch.ones(3, 2), "lengths": torch.tensor([3.0])},
        {"tokens": torch.ones(3, 2, dtype=torch.long), "lengths": torch.tensor([3])},
        {"tokens": torch.ones(3, 2), "lengths": torch.tensor([3]), "more": torch.ones(1)},
    ],
)
def test_tensors_that_are_not_what_the_file_says_are_damage(tmp_path, tensors):
    save_module(tmp_path / "t.safetensors", tensors, "TextEmbeddings", {})
    with pytest.raises(CorruptFileError, match="is damaged") as error:
        load_object(tmp_path / "t.safetensors")
    assert "\n" not in str(error.value)
