"""Pairs of prompts from a file."""

import json

import pytest

from latentloom.errors import FileError
from latentloom.steering.prompt_pairs import read_prompt_pairs

KEYS = ("base", "injected")


def test_pairs_come_in_the_files_order_and_blank_lines_do_not_count(tmp_path):
    path = tmp_path / "pairs.jsonl"
    rows = [{"base": "a lake", "injected": "a forest", "note": 1}, {"base": "Ein Haus", "injected": "ein Schloß"}]
    path.write_text("\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n", encoding="utf-8")
    assert read_prompt_pairs(path, KEYS) == [("a lake", "a forest"), ("Ein Haus", "ein Schloß")]


@pytest.mark.parametrize(
    "line", ["a lake", "[]", "3", '{"base": "a"}', '{"base": "a", "injected": " "}', '{"base": "a", "injected": 3}']
)
def test_a_line_that_is_no_pair_is_named(tmp_path, line):
    path = tmp_path / "pairs.jsonl"
    path.write_text(f'{{"base": "a", "injected": "b"}}\n{line}\n')
    with pytest.raises(FileError, match=r"pairs.jsonl, line 2: no pair; write "):
        read_prompt_pairs(path, KEYS)


def test_files_without_pairs_are_refused(tmp_path):
    empty, binary = tmp_path / "empty.jsonl", tmp_path / "binary.jsonl"
    empty.write_text("\n")
    binary.write_bytes(b"\xff\xfe\x00")
    for path, message in ((empty, "no pair"), (binary, "not UTF-8"), (tmp_path / "missing.jsonl", "No such file")):
        with pytest.raises(FileError, match=message):
            read_prompt_pairs(path, KEYS)
