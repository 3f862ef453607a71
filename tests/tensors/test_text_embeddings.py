import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from latentloom.errors import ShapeError
from latentloom.tensors import TextEmbeddings

DIM = 3


@st.composite
def batches(draw: st.DrawFn, min_size: int = 1) -> TextEmbeddings:
    lengths = draw(st.lists(st.integers(0, 6), min_size=min_size, max_size=5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    return TextEmbeddings(torch.randn(sum(lengths), DIM, generator=generator), torch.tensor(lengths))


def assert_same(one: TextEmbeddings, other: TextEmbeddings) -> None:
    assert one.lengths.tolist() == other.lengths.tolist()
    assert one.dtype == other.dtype
    assert torch.equal(one.tokens, other.tokens)


@given(batches())
def test_list_and_ragged_round_trip(batch):
    assert [len(prompt) for prompt in batch.to_list()] == batch.lengths.tolist()
    assert_same(TextEmbeddings.from_list(batch.to_list()), batch)


@given(batches(), st.integers(6, 9))
def test_padded_and_ragged_round_trip(batch, length):
    padded, mask = batch.padded(length), batch.mask(length)
    assert padded.shape == (len(batch), length, DIM)
    assert_same(TextEmbeddings.from_padded(padded, lengths=batch.lengths), batch)
    assert_same(TextEmbeddings.from_padded(padded, mask=mask), batch)
    assert_same(TextEmbeddings.from_prompt_embeds(batch.prompt_embeds(length), mask.long()), batch)


@given(batches())
def test_padding_is_zero_after_each_length(batch):
    padded = batch.padded(8)
    assert padded[~batch.mask(8)].abs().sum() == 0
    for row, prompt in zip(padded, batch.to_list(), strict=True):
        assert torch.equal(row[: len(prompt)], prompt)


@given(batches(), st.data())
def test_cat_of_two_slices_is_the_batch(batch, data):
    cut = data.draw(st.integers(0, len(batch)))
    assert_same(TextEmbeddings.cat([batch[:cut], batch[cut:]]), batch)


@given(batches(), st.data())
def test_every_index_chooses_the_rows_a_list_would(batch, data):
    prompts = batch.to_list()
    rows = data.draw(st.lists(st.integers(-len(batch), len(batch) - 1), max_size=6))
    step = data.draw(st.sampled_from([-2, -1, 1, 2, None]))
    keep = data.draw(st.lists(st.booleans(), min_size=len(batch), max_size=len(batch)))
    expected = {
        "list": (batch[rows], [prompts[row] for row in rows]),
        "tensor": (batch[torch.tensor(rows, dtype=torch.long)], [prompts[row] for row in rows]),
        "slice": (batch[::step], prompts[::step]),
        "mask": (batch[torch.tensor(keep)], [p for p, kept in zip(prompts, keep, strict=True) if kept]),
    }
    for name, (chosen, wanted) in expected.items():
        assert chosen.dim == DIM, name
        assert len(chosen) == len(wanted), name
        assert all(torch.equal(a, b) for a, b in zip(chosen.to_list(), wanted, strict=True)), name


def test_an_integer_index_gives_a_batch_of_one_and_iteration_ends():
    batch = TextEmbeddings(torch.arange(9.0).view(3, 3), torch.tensor([2, 0, 1]))
    assert batch[-1].tokens.tolist() == [[6.0, 7.0, 8.0]]
    assert [row.lengths.tolist() for row in batch] == [[2], [0], [1]]
    with pytest.raises(IndexError):
        batch[3]


def test_padded_length_defaults_to_the_models_512():
    assert TextEmbeddings(torch.ones(2, 4), torch.tensor([2])).padded().shape == (1, 512, 4)


def test_gradients_flow_from_the_padded_form_to_the_tokens():
    tokens = torch.ones(3, 2, requires_grad=True)
    (TextEmbeddings(tokens, torch.tensor([1, 2])).padded(4) * 5).sum().backward()
    assert tokens.grad is not None
    assert tokens.grad.tolist() == [[5.0, 5.0]] * 3


def test_moves_change_tokens_and_keep_lengths_whole():
    moved = TextEmbeddings(torch.ones(3, 2), torch.tensor([1, 2], dtype=torch.int32)).to(dtype=torch.bfloat16)
    assert (moved.dtype, moved.lengths.dtype, moved.device.type) == (torch.bfloat16, torch.long, "cpu")
    assert moved.to("meta").lengths.is_meta


@pytest.mark.parametrize(
    "make",
    [
        lambda: TextEmbeddings(torch.ones(3, 2), torch.tensor([1, 1])),
        lambda: TextEmbeddings(torch.ones(3, 2), torch.tensor([4, -1])),
        lambda: TextEmbeddings.from_list([]),
        lambda: TextEmbeddings.cat([TextEmbeddings(torch.ones(1, d), torch.tensor([1])) for d in (2, 3)]),
        lambda: TextEmbeddings.cat([]),
        lambda: TextEmbeddings.from_padded(torch.ones(1, 4, 2)),
        lambda: TextEmbeddings.from_padded(torch.ones(1, 4, 2), lengths=[5]),
        lambda: TextEmbeddings.from_padded(torch.ones(1, 3, 2), mask=torch.tensor([[True, False, True]])),
        lambda: TextEmbeddings(torch.ones(3, 2), torch.tensor([3])).padded(2),
        lambda: TextEmbeddings(torch.ones(3, 2), torch.tensor([3]))[torch.tensor([True, False])],
    ],
)
def test_tensors_that_do_not_fit_are_refused_in_one_line(make):
    with pytest.raises(ShapeError) as error:
        make()
    assert "\n" not in str(error.value)


def test_annotations_are_enforced_while_testing():
    with pytest.raises(TypeCheckError):
        TextEmbeddings(torch.ones(3, 2, dtype=torch.long), torch.tensor([3]))
