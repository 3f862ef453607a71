"""Edits as pure functions: which rows of a batch, which tokens, and what padding becomes."""

import pytest
import torch
from torch import Tensor

from latentloom.errors import ConfigError
from latentloom.steering.inject import BlockEdits, Injector, of_clips
from latentloom.steering.plan import DirectionPayload, Operation, Plan, PromptPayload, RowsPayload, Tokens
from latentloom.steering.text_rows import TextRows, aligned
from latentloom.tensors import TextEmbeddings

DIM = 4
PAD = torch.full((DIM,), 9.0)


def rows(*lengths: int, seed: int = 0, num_rows: int | None = None, folded: bool = True) -> TextRows:
    """Contexts of these lengths, their padding equal to PAD."""
    num_rows = num_rows or max(lengths) + 1
    values = torch.randn(len(lengths), num_rows, DIM, generator=torch.Generator().manual_seed(seed))
    text = TextRows(values, torch.tensor(lengths), 512 if folded else None)
    values[~text.is_true] = PAD
    return text


def edits_of(operation: Operation, conditional: tuple[bool, ...], material=None, progress: float = 0.0) -> BlockEdits:
    injector = Injector(Plan((operation,)))
    return injector.edits(0, injector.acting(conditional, progress), [material])


def edited(operation: Operation, text: TextRows, material=None, conditional=(True, True)) -> TextRows:
    (edit,) = edits_of(operation, conditional, material).context
    return edit(text)


def inject(strength: float = 1.0, tokens: Tokens = "text") -> Operation:
    payload = PromptPayload(TextEmbeddings.from_list([torch.zeros(1, DIM)]))
    return Operation("context", "lerp", (strength,), payload, tokens=tokens)


def test_strength_one_takes_the_payload_as_it_is():
    given = rows(3, 3, seed=1)
    assert edited(inject(), rows(5, 2), given) is given


def test_a_mix_goes_row_by_row_and_towards_padding_where_one_text_has_ended():
    text, given = rows(2, 4), rows(3, 1, seed=1)
    mixed = edited(inject(0.25), text, given)
    assert mixed.lengths.tolist() == [3, 4]
    torch.testing.assert_close(mixed.rows[0, :2], 0.75 * text.rows[0, :2] + 0.25 * given.rows[0, :2])
    torch.testing.assert_close(mixed.rows[0, 2], 0.75 * PAD + 0.25 * given.rows[0, 2])
    torch.testing.assert_close(mixed.rows[1, 3], 0.75 * text.rows[1, 3] + 0.25 * PAD)
    torch.testing.assert_close(mixed.rows[:, -1], PAD.expand(2, -1))


def test_the_key_bias_counts_the_padding_that_is_left():
    mixed = edited(inject(0.5), rows(2, 4), rows(3, 1, seed=1))
    assert mixed.bias is not None
    torch.testing.assert_close(mixed.bias[:, 0, 0, -1].exp(), torch.tensor([509.0, 508.0]), rtol=1e-4, atol=0.0)
    assert mixed.bias[0, 0, 0].tolist()[:4] == [0, 0, 0, -torch.inf]


def test_folded_and_padded_contexts_are_edited_alike():
    text, given = rows(2, 4, num_rows=5), rows(3, 1, seed=1, num_rows=5)
    padded = [TextRows(part.rows, part.lengths) for part in (text, given)]
    folded = edited(inject(0.3), text, given)
    whole = edited(inject(0.3), *padded)
    torch.testing.assert_close(folded.rows, whole.rows)
    assert whole.bias is None


def test_a_range_of_tokens_leaves_the_others_alone():
    text, given = rows(4, 4), rows(4, 4, seed=1)
    mixed = edited(inject(1.0, (1, 3)), text, given)
    assert torch.equal(mixed.rows[:, 1:3], given.rows[:, 1:3])
    assert torch.equal(mixed.rows[:, [0, 3]], text.rows[:, [0, 3]])


def test_only_the_rows_of_the_side_that_was_meant_change():
    text, given = rows(2, 4), rows(3, 3, seed=1)
    mixed = edited(inject(), text, given, conditional=(False, True))
    kept, taken = aligned(mixed, text)[0].rows[0], aligned(mixed, given)[0].rows[1]
    assert torch.equal(kept, aligned(text, given)[0].rows[0])
    assert torch.equal(taken[:4], given.rows[1])
    assert mixed.lengths.tolist() == [2, 3]


def test_a_direction_acts_on_true_tokens_unless_padding_is_meant_too():
    text, direction = rows(2, 4), DirectionPayload(torch.ones(1, DIM))
    true_only = edited(Operation("context", "add", (2.0,), direction), text)
    everywhere = edited(Operation("context", "add", (2.0,), direction, tokens="all"), text)
    difference = true_only.rows - text.rows
    torch.testing.assert_close(difference, 2.0 * text.is_true.unsqueeze(-1).expand_as(difference))
    torch.testing.assert_close(everywhere.rows, text.rows + 2)


def test_rows_are_added_token_by_token():
    text, offsets = rows(2, 4), rows(3, 3, seed=1)
    add = Operation("context", "add", (0.5,), RowsPayload(TextEmbeddings.from_list([torch.zeros(1, DIM)])))
    moved = edited(add, text, offsets)
    torch.testing.assert_close(moved.rows[0, :3] - text.rows[0, :3], 0.5 * offsets.rows[0, :3])
    assert torch.equal(moved.rows[1, 3:], text.rows[1, 3:])
    assert moved.lengths.tolist() == [3, 4]


def test_video_tokens_are_edited_in_their_range_and_rows():
    def values(seed: int) -> Tensor:
        return torch.randn(2, 6, DIM, generator=torch.Generator().manual_seed(seed))

    operation = Operation("hidden_states", "add", (1.0,), DirectionPayload(torch.ones(1, DIM)), tokens=(2, 4))
    (edit,) = edits_of(operation, (True, False)).hidden_states
    before = values(0)
    changed = edit(before) - before
    expected = torch.zeros_like(changed)
    expected[0, 2:4] = 1
    torch.testing.assert_close(changed, expected)


def test_nothing_acts_outside_the_window_on_the_other_side_or_without_strength():
    late = Operation("hidden_states", "add", (1.0,), DirectionPayload(torch.ones(1, DIM)), window=(0.5, 1.0))
    assert Injector(Plan((late,))).acting((True,), 0.4) == [None]
    assert Injector(Plan((late,))).acting((False,), 0.6) == [None]
    assert edits_of(late, (True,), progress=0.6).hidden_states
    off = Operation("hidden_states", "add", (0.0,), DirectionPayload(torch.ones(1, DIM)))
    assert Injector(Plan((off,))).acting((True,), 0.4) == [None]


def test_operations_on_one_site_act_in_their_order():
    ones = DirectionPayload(torch.ones(1, DIM))
    operations = (Operation("hidden_states", "ablate", (1.0,), ones), Operation("hidden_states", "add", (1.0,), ones))
    injector = Injector(Plan(operations))
    first, second = injector.edits(0, injector.acting((True,), 0.0), [None, None]).hidden_states
    tokens = torch.randn(1, 3, DIM, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(second(first(tokens)).mean(dim=-1), torch.ones(1, 3))


def test_a_payload_of_one_prompt_serves_all_clips_and_of_several_each_its_own():
    one = TextEmbeddings.from_list([torch.ones(2, DIM)])
    three = TextEmbeddings.from_list([torch.full((n, DIM), float(n)) for n in (1, 2, 3)])
    assert of_clips(one, (4, 7)).lengths.tolist() == [2, 2]
    assert of_clips(three, (2, 0)).lengths.tolist() == [3, 1]
    with pytest.raises(ConfigError, match="3 prompts and the run has more clips"):
        of_clips(three, (3,))
