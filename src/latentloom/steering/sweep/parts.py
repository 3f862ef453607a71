"""Which blocks, during which share of the schedule, a sweep swaps the prompt in, one after another."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import torch

from latentloom.errors import ConfigError
from latentloom.steering.blocks import PRESETS
from latentloom.steering.plan import Operation, Plan, PromptPayload
from latentloom.tensors import TextEmbeddings

MAX_UNITS_FOR_SUBSETS = 10
"""All subsets of more units are over a thousand parts; orders drawn at random come to the same figure."""

FAMILIES = ("single", "prefix", "suffix", "left_out", "presets", "windows")
"""What `part_families` can be asked for."""


@dataclass(frozen=True)
class Part:
    """A part of the sampling that another prompt can take over.

    Args:
        blocks: whose context is swapped, ascending; none is the run as it is.
        window: share of the schedule, as in `Operation`.
    """

    blocks: tuple[int, ...]
    window: tuple[float, float] = (0.0, 1.0)

    def plan(self, injected: TextEmbeddings, num_blocks: int) -> Plan:
        """The plan that replaces the context in this part by other prompts', for the positive side of guidance.

        Args:
            injected: one prompt per clip, or one for all.
            num_blocks: of the model.
        """
        strengths = tuple(float(block in self.blocks) for block in range(num_blocks))
        return Plan((Operation("context", "replace", strengths, PromptPayload(injected), window=self.window),))

    @property
    def key(self) -> str:
        """Short and unique, such as `0-2,5` or `0-5@0.2-0.4`."""
        runs: list[list[int]] = []
        for block in self.blocks:
            if runs and block == runs[-1][-1] + 1:
                runs[-1][1:] = [block]
            else:
                runs.append([block])
        blocks = ",".join("-".join(map(str, run)) for run in runs) or "none"
        return blocks if self.window == (0.0, 1.0) else f"{blocks}@{self.window[0]:.4g}-{self.window[1]:.4g}"


@dataclass(frozen=True)
class Units:
    """What a sweep swaps as one: consecutive blocks, or windows of the schedule in which all blocks are swapped.

    Args:
        names: one per unit, in order.
        join: the part that some units, given by their places, make together.
        noun: what a unit is, in the singular.
    """

    names: tuple[str, ...]
    join: Callable[[Iterable[int]], Part]
    noun: str

    @classmethod
    def of_blocks(cls, num_blocks: int, group_size: int = 1) -> "Units":
        """Groups of that many blocks; the last one may be smaller.

        Raises:
            ConfigError: a group of less than one block or of more than there are.
        """
        if not 1 <= group_size <= num_blocks:
            raise ConfigError(f"groups of {group_size} blocks in a model of {num_blocks}; use 1 to {num_blocks}")
        groups = [range(start, min(start + group_size, num_blocks)) for start in range(0, num_blocks, group_size)]
        names = tuple(str(group[0]) if len(group) == 1 else f"{group[0]}-{group[-1]}" for group in groups)

        def join(places: Iterable[int]) -> Part:
            return Part(tuple(block for place in sorted(places) for block in groups[place]))

        return cls(names, join, "block" if group_size == 1 else "group")

    @classmethod
    def of_windows(cls, num_windows: int, num_blocks: int) -> "Units":
        """Windows of equal length over all blocks; only neighbours can be joined."""
        if num_windows < 1:
            raise ConfigError(f"{num_windows} windows of the schedule; use 1 or more")
        ends = [place / num_windows for place in range(num_windows + 1)]
        names = tuple(f"{start:.2g}-{end:.2g}" for start, end in pairwise(ends))

        def join(places: Iterable[int]) -> Part:
            chosen = sorted(places)
            if not chosen:
                return Part(())
            if chosen != list(range(chosen[0], chosen[-1] + 1)):
                raise ConfigError(f"windows {chosen} are not neighbours; a part has one window")
            return Part(tuple(range(num_blocks)), (ends[chosen[0]], ends[chosen[-1] + 1]))

        return cls(names, join, "window")

    def __len__(self) -> int:
        return len(self.names)

    def every(self) -> Part:
        """All units."""
        return self.join(range(len(self)))

    def single(self) -> dict[str, Part]:
        """Each unit alone."""
        return {name: self.join([place]) for place, name in enumerate(self.names)}

    def prefix(self) -> dict[str, Part]:
        """The first unit, the first two, and so on to all."""
        counts = range(1, len(self) + 1)
        return {self._label("first", "until", count, 1): self.join(range(count)) for count in counts}

    def suffix(self) -> dict[str, Part]:
        """The last unit, the last two, and so on to all."""
        total = len(self)
        return {
            self._label("last", "from", count, 0): self.join(range(total - count, total))
            for count in range(1, total + 1)
        }

    def left_out(self) -> dict[str, Part]:
        """All units but one."""
        every = set(range(len(self)))
        return {f"all but {name}": self.join(every - {place}) for place, name in enumerate(self.names)}

    def subsets(self) -> list[Part]:
        """Every choice of units, from none to all.

        Raises:
            ConfigError: more than `MAX_UNITS_FOR_SUBSETS` units.
        """
        if len(self) > MAX_UNITS_FOR_SUBSETS:
            raise ConfigError(
                f"{len(self)} {self.noun}s have {2 ** len(self)} subsets; give a larger --group-size, for at most "
                f"{MAX_UNITS_FOR_SUBSETS} groups, or --permutations"
            )
        places = range(len(self))
        return [self.join(chosen) for size in range(len(self) + 1) for chosen in combinations(places, size)]

    def along(self, order: Sequence[int]) -> list[Part]:
        """From no unit to all, as they are added in this order."""
        return [self.join(order[:count]) for count in range(len(order) + 1)]

    def _label(self, of_blocks: str, of_windows: str, count: int, end: int) -> str:
        if self.noun != "window":
            return f"{of_blocks} {count}"
        unit = self.names[count - 1 if end else len(self) - count]
        return f"{of_windows} {unit.split('-')[end]}"


def part_families(names: Sequence[str], units: Units, windows: Units, num_blocks: int) -> dict[str, dict[str, Part]]:
    """The parts of a map, by family and then by label, in the order of `FAMILIES`.

    Args:
        names: of `FAMILIES`; `windows` stands for windows alone, up to a point, and from a point on.
        units: of blocks.
        windows: of the schedule.
        num_blocks: of the model.

    Raises:
        ConfigError: an unknown name.
    """
    unknown = [name for name in names if name not in FAMILIES]
    if unknown or not names:
        given = repr(unknown[0]) if unknown else "nothing"
        raise ConfigError(f"{given} as sets of blocks to sweep; choose from {', '.join(FAMILIES)}")
    known: dict[str, Callable[[], dict[str, Part]]] = {
        "single": units.single,
        "prefix": units.prefix,
        "suffix": units.suffix,
        "left_out": units.left_out,
        "presets": lambda: preset_parts(num_blocks),
        "windows": windows.single,
    }
    found = {name: known[name]() for name in FAMILIES if name in names}
    if "windows" in names:
        from_early_to_late = dict(reversed(windows.suffix().items()))
        found |= {"windows_prefix": windows.prefix(), "windows_suffix": from_early_to_late}
    return found


def preset_parts(num_blocks: int) -> dict[str, Part]:
    """The presets by name, `none` and `all` among them."""
    return {name: Part(tuple(choose(num_blocks))) for name, choose in PRESETS.items()}


def plain_orders(num_units: int) -> list[tuple[int, ...]]:
    """First to last and last to first: the orders that prefixes and suffixes walk."""
    return [tuple(range(num_units)), tuple(reversed(range(num_units)))]


def random_orders(num_units: int, count: int, seed: int = 0) -> list[tuple[int, ...]]:
    """Orders drawn at random, every other one the one before it turned around, which steadies their average."""
    generator = torch.Generator().manual_seed(seed)
    orders: list[tuple[int, ...]] = []
    while len(orders) < count:
        order = torch.randperm(num_units, generator=generator).tolist()
        orders += [tuple(order), tuple(reversed(order))]
    return orders[:count]
