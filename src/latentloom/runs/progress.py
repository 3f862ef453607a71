"""How far a long piece of work is, and when it will be done."""

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from datetime import timedelta
from typing import TypeVar, overload

from latentloom.runs.processes import process_rank

Item = TypeVar("Item")
SECONDS_BETWEEN_LINES = 5.0


@overload
def track(work: int, description: str) -> Iterator[int]: ...
@overload
def track(work: Iterable[Item], description: str) -> Iterator[Item]: ...
def track(work: int | Iterable[Item], description: str) -> Iterator[int] | Iterator[Item]:
    """The items of `work`, while standard error shows progress, rate and time left.

    A bar on a terminal; elsewhere a plain line every few seconds and one at the end. Of several processes only the
    first shows anything.

    Args:
        work: what to go through, or how many steps to count.
        description: what is done, in a word or two.
    """
    items: Iterable = range(work) if isinstance(work, int) else work
    total = len(items) if isinstance(items, Sized) else None
    if process_rank() != 0:
        return iter(items)
    return _as_bar(items, total, description) if sys.stderr.isatty() else _as_lines(items, total, description)


def _as_bar(items: Iterable[Item], total: int | None, description: str) -> Iterator[Item]:
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TextColumn("ETA"),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(description, total=total)
        for item in items:
            yield item
            bars.advance(task)


def _as_lines(items: Iterable[Item], total: int | None, description: str) -> Iterator[Item]:
    started = shown = time.monotonic()
    done = 0
    for item in items:
        yield item
        done += 1
        now = time.monotonic()
        if now - shown >= SECONDS_BETWEEN_LINES and done != total:
            shown = now
            print(_line(description, done, total, now - started), file=sys.stderr, flush=True)
    print(_line(description, done, done, time.monotonic() - started), file=sys.stderr, flush=True)


def _line(description: str, done: int, total: int | None, seconds: float) -> str:
    elapsed = timedelta(seconds=round(seconds))
    rate = f"{done / seconds:.3g}/s" if seconds > 0 else "-/s"
    if total is None:
        return f"{description}: {done}, {rate}, {elapsed} so far"
    if done == total:
        return f"{description}: {done}/{total}, {rate}, done in {elapsed}"
    left = timedelta(seconds=round(seconds / done * (total - done)))
    return f"{description}: {done}/{total} ({100 * done // total}%), {rate}, {elapsed} so far, ETA {left}"
