"""The processes that share the work of caching, and what they tell each other."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from torch import distributed

from latentloom.errors import LatentLoomError
from latentloom.runs import is_distributed

Value = TypeVar("Value")
LONGEST_WAIT = timedelta(days=30)


@dataclass(frozen=True)
class Ranks:
    """This process among those that share the work; where it is alone, nothing is sent.

    Args:
        number, count: which process this is, of how many.
        group: through which they talk.
    """

    number: int = 0
    count: int = 1
    group: Any = None

    @classmethod
    @contextmanager
    def open(cls) -> Iterator["Ranks"]:
        """All processes of the process group, over a group of their own.

        The shares take unequal times, and accelerators' groups give up waiting after minutes.
        """
        if not is_distributed():
            yield cls()
            return
        group: Any = distributed.new_group(backend="gloo", timeout=LONGEST_WAIT)
        try:
            yield cls(distributed.get_rank(), distributed.get_world_size(), group)
        finally:
            distributed.destroy_process_group(group)

    def share(self, work: Sequence[Value]) -> list[Value]:
        """This process's part of the work; neighbours go to different processes."""
        return list(work[self.number :: self.count])

    def first(self, action: Callable[[], Value]) -> Value:
        """What `action` returns in the first process; the others wait for it. Its error is raised in all."""
        values: list[Any] = self.all(lambda: action() if self.number == 0 else None)
        return values[0]

    def all(self, action: Callable[[], Value]) -> list[Value]:
        """What `action` returns in each process, in order. The first error is raised in all of them.

        Raises:
            LatentLoomError: of this or of another process.
            RuntimeError: another process failed in another way; its own error says how.
        """
        if self.count == 1:
            return [action()]
        value, error = None, None
        try:
            value = action()
        except Exception as raised:  # whatever it is, the others must not wait for this process for ever
            error = raised
        told = error if error is None or isinstance(error, LatentLoomError) else repr(error)
        outcomes: list[Any] = [None] * self.count
        distributed.all_gather_object(outcomes, (value, told), group=self.group)
        if error is not None:
            raise error
        for number, (_, problem) in enumerate(outcomes):
            if isinstance(problem, LatentLoomError):
                raise problem
            if problem is not None:
                raise RuntimeError(f"process {number} failed: {problem}")
        return [value for value, _ in outcomes]
