"""What lies in weight files, as a report: one line per model, blocks that differ, and every key as CSV."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from latentloom.errors import LatentLoomError
from latentloom.finetune.probes.keys import KeyGroup
from latentloom.finetune.probes.report import ProbeReport, describe_files

GROUP_COLUMNS = ("file", "what it is", "tensors", "parameters", "types", "blocks")


def write_keys_report(path: Path, groups: Sequence[KeyGroup], out: Path | None) -> tuple[Path, dict[str, Any]]:
    """Write the report; returns the path of report.md and what summary.json holds.

    Args:
        path: what was scanned.
        groups: what `scan_keys` found there.
        out: the folder; None makes one below `reports/keys`.

    Raises:
        FileError: the folder cannot be written to.
    """
    report = ProbeReport("keys", f"Keys and shapes of {path.resolve().name or path}")
    whole = describe_whole(path)
    report.paragraph(f"As a checkpoint: {whole}.")
    report.table(GROUP_COLUMNS, group_rows(groups))
    for group in groups:
        notes = remarks(group)
        if notes:
            report.paragraph(f"{label(group)}:\n\n" + "\n".join(f"- {note}" for note in notes))
    base = path if path.is_dir() else path.parent
    report.csv(
        "keys",
        ("group", "prefix", "block", "key", "shape", "dtype", "file"),
        [
            (
                label(group),
                row.prefix,
                _number(row.block),
                row.key,
                _shape(row.shape),
                row.dtype,
                _below(row.file, base),
            )
            for group in groups
            for row in group.rows
        ],
        "every tensor, by block, its prefix taken off",
    )
    report.csv(
        "blocks",
        ("group", "block", "tensors", "parameters", "dtypes", "like_first"),
        [line for group in groups for line in _block_rows(group)],
        "tensors, values and types of every block, and whether it has the first block's keys, shapes and types",
    )
    files = sorted({file for group in groups for file in group.files})
    results = {"checkpoint": whole, "groups": [as_json(group) for group in groups]}
    return report.write(out, path.resolve().stem or "root", {"files": describe_files(files, hashed=False)}, {}, results)


def describe_whole(path: Path) -> str:
    """Which checkpoint lies at the path, or why it is none, in words."""
    from latentloom.wan.layouts import recognise  # torch, which the scan of headers does without

    try:
        found = recognise(path)
    except LatentLoomError as reason:  # most files are no checkpoint, and the scan lists them all the same
        return f"none ({reason})"
    title = found.facts.title if found.facts else "no transformer"
    experts = f", {' and '.join(found.experts)}-noise experts" if found.experts else ""
    return f"{title}{experts}, {found.layout} layout"


def group_rows(groups: Sequence[KeyGroup]) -> list[list[str]]:
    """One line per group, under `GROUP_COLUMNS`."""
    return [
        [
            label(group),
            group.kind.title,
            str(len(group.rows)),
            f"{group.num_parameters:,}",
            " ".join(sorted(group.dtypes)),
            spans(group.blocks),
        ]
        for group in groups
    ]


def label(group: KeyGroup) -> str:
    """The group's name, with its shards and its prefix where it has some."""
    shards = f" ({len(group.files)} of {group.num_shards} shards)" if group.num_shards > 1 else ""
    return f"{group.name}{shards}" + (f" [{group.prefix}]" if group.prefix else "")


def remarks(group: KeyGroup) -> list[str]:
    """What is worth knowing about a group, one sentence each."""
    odd = group.odd_blocks()
    return [*group.kind.notes, *([f"not like block {group.blocks[0]}: blocks {spans(odd)}"] if odd else [])]


def as_json(group: KeyGroup) -> dict[str, Any]:
    """A group without its keys, which keys.csv has."""
    return {
        "name": group.name,
        "files": [str(file) for file in group.files],
        "num_shards": group.num_shards,
        "prefix": group.prefix,
        "kind": group.kind.kind,
        "title": group.kind.title,
        "naming": group.kind.naming,
        "notes": remarks(group),
        "strangers": list(group.kind.strangers),
        "num_tensors": len(group.rows),
        "num_parameters": group.num_parameters,
        "dtypes": group.dtypes,
        "blocks": group.blocks,
    }


def spans(numbers: Sequence[int]) -> str:
    """Sorted numbers as ranges, such as "0-3, 7"."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


def _block_rows(group: KeyGroup) -> list[tuple[str, int, int, int, str, bool]]:
    odd = set(group.odd_blocks())
    lines = []
    for block in group.blocks:
        rows = [row for row in group.rows if row.block == block]
        dtypes = " ".join(sorted({row.dtype for row in rows}))
        lines.append((label(group), block, len(rows), sum(row.num_elements for row in rows), dtypes, block not in odd))
    return lines


def _number(block: int | None) -> str:
    return "" if block is None else str(block)


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _below(file: Path, base: Path) -> str:
    return str(file.relative_to(base))
