"""Files of prompts and rewrites: what is read, what is left out, and what a bad line is told."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentloom.delta.pairs import (
    BASE_KEYS,
    REWRITTEN_KEYS,
    PromptPair,
    normalise,
    read_pair_text,
    read_pairs,
    tidy_pairs,
    write_pairs,
)
from latentloom.errors import FileError

GOOD = '{"base": "a boat", "rewritten": "A small boat on a lake."}\n'


@pytest.fixture
def file(tmp_path: Path):
    """Writes a file and gives its path."""

    def body(content: str | bytes) -> Path:
        path = tmp_path / "pairs.jsonl"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return body


def test_a_row_is_a_pair(file):
    found = read_pairs(file(GOOD))
    assert found.pairs == [PromptPair("a boat", "A small boat on a lake.")]
    assert found.duplicates == []
    assert found.unchanged == []


@pytest.mark.parametrize("base", BASE_KEYS)
@pytest.mark.parametrize("rewritten", REWRITTEN_KEYS)
def test_either_side_goes_by_any_of_its_names(file, base: str, rewritten: str):
    row = json.dumps({"id": 7, rewritten: "A boat on a lake.", base: "a boat"})
    assert read_pairs(file(row)).pairs == [PromptPair("a boat", "A boat on a lake.")]


def test_beside_the_plain_name_another_name_of_the_side_is_no_prompt(file):
    row = '{"base": "a boat", "source": "album 3", "rewritten": "A boat.  On a lake.", "target": 5}'
    assert read_pairs(file(row)).pairs == [PromptPair("a boat", "A boat. On a lake.")]


def test_a_byte_order_mark_blank_lines_and_windows_line_ends_do_not_matter(file):
    found = read_pairs(file(b"\xef\xbb\xbf" + GOOD.encode().replace(b"\n", b"\r\n") + b"\r\n \t\r\n\n"))
    assert found.pairs == [PromptPair("a boat", "A small boat on a lake.")]


def test_other_line_separators_inside_a_text_do_not_end_the_row(file):
    assert read_pairs(file('{"base": "a\u2028boat", "rewritten": "A\\nlong\u2029boat"}')).pairs == [
        PromptPair("a boat", "A long boat")
    ]


def test_both_sides_are_cleaned_as_wan_cleans_prompts(file):
    row = json.dumps({"base": "  caf\u00c3\u00a9 &amp;amp; bar\x00 ", "rewritten": "A\tcaf\u00e9 \ud800 and\n a bar"})
    assert read_pairs(file(row)).pairs == [PromptPair("café & bar", "A café \ufffd and a bar")]


def test_repeats_and_rewrites_like_their_base_are_left_out_and_named_by_line(file):
    rows = [
        ("a boat", "A boat on a lake."),
        ("A  Boat!", "a boat, on a lake"),  # the same pair to the reader
        ("a boat", "A boat at sea."),  # another rewrite of the same prompt is a pair of its own
        ("a tree", "A tree."),
        ("a boat", "A boat on a lake."),
    ]
    content = "\n" + "\n".join(json.dumps({"base": base, "rewritten": rewritten}) for base, rewritten in rows)
    found = read_pairs(file(content))
    assert [pair.rewritten for pair in found.pairs] == ["A boat on a lake.", "A boat at sea."]
    assert found.duplicates == [3, 6]
    assert found.unchanged == [5]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{base: 1}", "is not JSON ('{base: 1}')"),
        ("[" * 100_000, "is not JSON"),
        ('["a boat", "A boat."]', "is a list and not an object"),
        ('{"rewritten": "A boat."}', "has 'rewritten' but no base prompt"),
        ('{"base": "a boat"}', "has 'base' but no rewritten prompt"),
        ("{}", "has no key but no base prompt"),
        ('{"base": null, "rewritten": "A boat."}', "'base' is None and not text"),
        ('{"prompt": "a boat", "verbose": true}', "'verbose' is True and not text"),
        ('{"prompt": "a", "source": "b", "rewritten": "c"}', "has 'source' and 'prompt'; name the one"),
        ('{"base": " ", "rewritten": "A boat."}', "its base prompt is empty"),
        ('{"base": "a boat", "rewritten": "\\u0000"}', "its rewritten prompt is empty"),
    ],
)
def test_a_bad_row_is_refused_with_its_file_and_line(file, row: str, said: str):
    path = file(GOOD + "\n" + row + "\n" + GOOD)
    with pytest.raises(FileError) as refused:
        read_pairs(path)
    line = str(refused.value)
    assert line.startswith(f"{path} line 3")
    assert said in line
    assert "\n" not in line
    assert len(line) < 500
    if "empty" not in said and "name the one" not in said:
        assert all(key in line for key in (*BASE_KEYS, *REWRITTEN_KEYS))


def test_a_line_in_another_encoding_is_named(file):
    with pytest.raises(FileError, match="line 2 is not UTF-8"):
        read_pairs(file(GOOD.encode() + b'{"base": "caf\xe9", "rewritten": "x"}\n'))
    with pytest.raises(FileError, match="line 1 is not UTF-8"):
        read_pairs(file(GOOD.encode("utf-16")))


@pytest.mark.parametrize("content", ["", "\ufeff", "\n \n"])
def test_an_empty_file_is_a_mistake(file, content: str):
    for read in (read_pairs, read_pair_text):
        with pytest.raises(FileError, match="holds nothing; give at least one pair"):
            read(file(content))


def test_a_file_without_one_changed_prompt_is_a_mistake(file):
    with pytest.raises(FileError, match="only rewrites that say what their base says"):
        read_pairs(file('{"base": "a boat", "rewritten": "A boat."}'))


def test_a_missing_file_is_a_mistake(tmp_path: Path):
    with pytest.raises(FileError, match=r"none\.jsonl does not exist"):
        read_pairs(tmp_path / "none.jsonl")


def test_what_is_written_is_read_back(tmp_path: Path):
    pairs = [
        PromptPair("bateau — lac", '"Un bateau" \\ sur un lac'),
        PromptPair("雨", "雨の夜の通り"),
        PromptPair("x", "y"),
    ]
    write_pairs(tmp_path / "new" / "pairs.jsonl", pairs)
    assert read_pairs(tmp_path / "new" / "pairs.jsonl").pairs == pairs
    assert "雨の夜の通り" in (tmp_path / "new" / "pairs.jsonl").read_text("utf-8")  # for people to read


def test_text_lines_are_split_at_a_tab_or_an_arrow(file):
    found = read_pair_text(
        file("a boat\tA boat on a lake.\r\n\na -> b\tAn arrow -> here.\ntree -> A tall tree.\nx → y\n")
    )
    assert found.pairs == [
        PromptPair("a boat", "A boat on a lake."),
        PromptPair("a -> b", "An arrow -> here."),
        PromptPair("tree", "A tall tree."),
        PromptPair("x", "y"),
    ]


def test_text_lines_are_numbered_with_the_blank_ones(file):
    found = read_pair_text(file("a -> b\n\na -> b\nc -> C.\n"))
    assert (found.duplicates, found.unchanged) == ([3], [4])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("a boat A boat on a lake.", "has no separator ('a boat A boat on a lake.')"),
        ("a boat->A boat", "has no separator"),
        ("a -> b -> c", "has 2 separators"),
        ("a\tb\tc", "has 2 separators"),
        ("a boat ->", "its rewritten prompt is empty"),
        ("\tA boat", "its base prompt is empty"),
    ],
)
def test_a_bad_text_line_is_refused_by_its_number(file, line: str, said: str):
    path = file(f"a -> b\n{line}\n")
    with pytest.raises(FileError) as refused:
        read_pair_text(path)
    assert str(refused.value).startswith(f"{path} line 2")
    assert said in str(refused.value)


def test_pairs_from_elsewhere_are_treated_alike():
    found = tidy_pairs([("a", "b"), ("A", "B!"), ("c", "c"), (" d", "e ")], "the list")
    assert found.pairs == [PromptPair("a", "b"), PromptPair("d", "e")]
    assert (found.duplicates, found.unchanged) == ([2], [3])
    with pytest.raises(FileError, match="the list line 1: its base prompt is empty"):
        tidy_pairs([("", "b")], "the list")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("A red  BOAT,\nat sea.", "a red boat at sea"),
        ("close-up", "Close up!"),
        ("STRASSE", "straße"),
        ("\uff41\uff42", "AB"),  # full width
        ("“boat”", "boat"),
    ],
)
def test_case_spacing_and_punctuation_do_not_tell_prompts_apart(first: str, second: str):
    assert normalise(first) == normalise(second)


@pytest.mark.parametrize(
    ("first", "second"), [("boat", "boats"), ("कि", "का"), ("?", "!"), ("C", "C++"), ("a=b", "a<b"), ("a b", "ab")]
)
def test_letters_marks_and_signs_tell_prompts_apart(first: str, second: str):
    assert normalise(first) != normalise(second)


@given(prompt=st.text(max_size=40), seed=st.integers(0, 2**31))
def test_normalising_again_or_spacing_words_differently_changes_nothing(prompt: str, seed: int):
    once = normalise(prompt)
    assert normalise(once) == once
    gaps = random.Random(seed)
    assert normalise("".join(gaps.choice([" ", "\n ", "\t"]) if x == " " else x for x in once)) == once


def test_reading_pairs_needs_no_model_library():
    code = "import sys, latentloom.delta.pairs; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
