"""A plan carried out, as clips side by side, a contact sheet and a page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from latentloom.runs import Report
from latentloom.steering.apply import Applied
from latentloom.steering.plan import Operation, Plan
from latentloom.storage import write_contact_sheet, write_video

Reading = Mapping[str, str]
"""What a clip shows, attribute by attribute; an attribute that cannot be read is left out."""

_TITLE = "A plan beside the plain model"
_CLIPS_ON_PAGE, _CLIPS_ON_SHEET, _FRAMES_PER_STRIP = 12, 4, 6
_HEIGHT, _GAP, _LABEL_HEIGHT, _FONT_SIZE = 192, 8, 28, 16
_PAPER, _INK = (255, 255, 255), (34, 38, 46)
# Okabe and Ito's colours, which people with any colour vision tell apart
_BLUE, _ORANGE = "#0072b2", "#d55e00"


@dataclass(frozen=True, eq=False)
class AppliedClips:
    """What the page and the files show.

    Args:
        plan: what was carried out.
        applied: its latents and figures, B clips.
        prompts: of the clips.
        injected: what the swapped run has in their place; None where there is no such run.
        seeds: of the clips.
        frames: the clips of each run, by the names of `Applied.runs`.
        fps: frames per second.
        readings: what each run's clips show; None where nobody can tell.
    """

    plan: Plan
    applied: Applied
    prompts: Sequence[str]
    injected: Sequence[str] | None
    seeds: Sequence[int]
    frames: Mapping[str, UInt8[Tensor, "B T H W 3"]]
    fps: float
    readings: Mapping[str, Sequence[Reading]] | None = None

    @property
    def attributes(self) -> list[str]:
        """The names of what can be read, in order."""
        found = (reading for readings in (self.readings or {}).values() for reading in readings)
        return list(dict.fromkeys(name for reading in found for name in reading))

    def flips(self) -> dict[str, dict[str, int]]:
        """Per attribute, over the clips where plain and swapped run differ in it: whose value the steered run shows."""
        if self.readings is None or "swapped" not in self.readings:
            return {}
        found = {}
        for name in self.attributes:
            rows = zip(*([reading.get(name) for reading in self.readings[run]] for run in self.frames), strict=True)
            apart = [(plain, steered, swapped) for plain, steered, swapped in rows if plain != swapped]
            found[name] = {
                "clips": len(apart),
                "as_swapped": sum(steered == swapped for _, steered, swapped in apart),
                "as_plain": sum(steered == plain for plain, steered, _ in apart),
            }
        return found


def write_applied(folder: Path | str, clips: AppliedClips) -> dict[str, Any]:
    """Write the steered clips, the runs side by side, a contact sheet and `report.html`; returns the files by kind.

    Args:
        folder: made where it does not exist.
        clips: what to show.

    Raises:
        FileError: the folder cannot be written to.
    """
    folder, count = Path(folder), len(clips.prompts)
    names = [""] if count == 1 else [f"_{index}" for index in range(count)]
    steered = [folder / f"steered{name}.mp4" for name in names]
    beside = [folder / f"side_by_side{name}.mp4" for name in names]
    for index in range(count):
        write_video(steered[index], clips.frames["steered"][index], clips.fps)
        runs = {run: frames[index].numpy() for run, frames in clips.frames.items()}
        write_video(beside[index], side_by_side(runs), clips.fps)
    sheet, page = folder / "contact_sheet.png", folder / "report.html"
    _write_sheet(sheet, clips)
    _report(clips).write(page)
    return {
        "steered": [str(path) for path in steered],
        "side_by_side": [str(path) for path in beside],
        "contact_sheet": str(sheet),
        "report": str(page),
    }


def side_by_side(runs: Mapping[str, UInt8[np.ndarray, "T H W 3"]]) -> UInt8[np.ndarray, "T Y X 3"]:
    """One clip of several, left to right under their names; small ones are enlarged by whole factors."""
    scale = max(1, -(-_HEIGHT // next(iter(runs.values())).shape[1]))
    large = [clip.repeat(scale, axis=1).repeat(scale, axis=2) for clip in runs.values()]
    num_frames, height, width, _ = large[0].shape
    canvas = Image.new("RGB", (len(large) * (width + _GAP) - _GAP, _LABEL_HEIGHT + height), _PAPER)
    pen = ImageDraw.Draw(canvas)
    font = ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", _FONT_SIZE)
    for place, name in enumerate(runs):
        pen.text((place * (width + _GAP) + 2, 4), name, _INK, font)
    frames = np.repeat(np.asarray(canvas)[None], num_frames, axis=0)
    for place, clip in enumerate(large):
        left = place * (width + _GAP)
        frames[:, _LABEL_HEIGHT:, left : left + width] = clip
    return frames


def effect_table(clips: AppliedClips, limit: int | None = None) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows: each run of the first clips, what it shows, and what the plan did.

    Args:
        clips: what was made.
        limit: how many clips; None for all.
    """
    attributes = clips.attributes
    columns = ["clip", "run", *attributes, "velocity", "after guidance", "equals"]
    rows: list[list[Any]] = []
    for index in range(len(clips.prompts))[:limit]:
        for run in clips.frames:
            reading = clips.readings[run][index] if clips.readings is not None else {}
            effect = _effect(clips.applied, index) if run == "steered" else [None] * 3
            rows.append([index if run == "plain" else "", run, *map(reading.get, attributes), *effect])
    return columns, rows


def flips_table(clips: AppliedClips) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows: whose attributes the steered clips show where the other two runs differ."""
    columns = ["attribute", "clips", "steered as swapped", "steered as plain", "neither"]
    rows = []
    for name, counts in clips.flips().items():
        total, swapped, plain = counts["clips"], counts["as_swapped"], counts["as_plain"]
        rows.append([name, total, *(_share(part, total) for part in (swapped, plain, total - swapped - plain))])
    return columns, rows


def plan_table(plan: Plan) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows: the operations, their blocks as a picture."""
    columns = ["blocks", "changed", "site", "method", "strength", "payload", "side", "window", "tokens"]
    rows = []
    for operation, told in zip(plan.operations, plan.describe(), strict=True):
        start, end = operation.window
        tokens = operation.tokens if isinstance(operation.tokens, str) else "{} to {}".format(*operation.tokens)
        payload = str(told["payload"]).removesuffix("Payload").lower()
        numbers = f"{len(operation.blocks)} of {plan.num_blocks}"
        where = [told["blocks"], numbers, operation.site]
        how = [operation.method, _strength(operation), payload, operation.side, f"{start:g} to {end:g}", tokens]
        rows.append([*where, *how])
    return columns, rows


def verdict(clips: AppliedClips) -> list[str]:
    """What the figures say, in plain sentences."""
    applied, count = clips.applied, len(clips.prompts)
    same, swapped = sum(applied.equals_plain), applied.equals_swapped
    if count == 1:
        plain = "equals" if same else "differs from"
        said = f"The clip {plain} the plain one"
        if swapped is not None:
            said += f" and {'equals' if swapped[0] else 'differs from'} the swapped one"
    else:
        said = f"{same} of {count} clips equal the plain one"
        if swapped is not None:
            said += f", {sum(swapped)} the swapped one"
    velocity, guided = float(applied.velocity.mean()), float(applied.guided.mean())
    return [
        f"{said}, bit for bit.",
        f"Along the plain run the plan moves the predicted velocity by {_percent(velocity)} of its length, and by "
        f"{_percent(guided)} after guidance; mean over steps{'' if count == 1 else ' and clips'}.",
    ]


def plot_change(applied: Applied) -> Figure:
    """The change of the velocity by step: the mean as a line, clips as faint ones."""
    figure = Figure(figsize=(7, 2.8), layout="constrained")
    axes = figure.subplots()
    steps = np.arange(1, applied.velocity.shape[1] + 1)
    for name, change, colour in (
        ("as predicted", applied.velocity, _BLUE),
        ("after guidance", applied.guided, _ORANGE),
    ):
        values = change.numpy()
        if 1 < len(values) <= _CLIPS_ON_PAGE:
            axes.plot(steps, values.T, color=colour, alpha=0.25, linewidth=0.8)
        axes.plot(steps, values.mean(axis=0), color=colour, label=name, marker="o", markersize=3)
    axes.set(xlabel="step, noise first", ylabel="relative change", xlim=(0.5, len(steps) + 0.5))
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    axes.legend(frameon=False)
    return figure


def _report(clips: AppliedClips) -> Report:
    report = Report(_TITLE)
    report.paragraph("\n\n".join(verdict(clips)))
    report.heading("The plan")
    report.table(*plan_table(clips.plan))
    report.paragraph(
        "Block 0 is on the left; full blocks are changed. The window is a share of the sampling schedule, 0 is noise."
    )
    report.heading("Clips side by side")
    for index, prompt in enumerate(clips.prompts[:_CLIPS_ON_PAGE]):
        texts = [f"Prompt (seed {clips.seeds[index]}): {prompt}"]
        texts += [] if clips.injected is None else [f"Injected: {clips.injected[index]}"]
        report.paragraph("\n".join(texts))
        report.clips([(_caption(clips, run, index), frames[index], clips.fps) for run, frames in clips.frames.items()])
    if len(clips.prompts) > _CLIPS_ON_PAGE:
        report.paragraph(f"The first {_CLIPS_ON_PAGE} of {len(clips.prompts)}; all are in the folder of this page.")
    report.heading("What changed")
    if clips.flips() and len(clips.prompts) > 1:
        report.table(*flips_table(clips))
        report.paragraph("Whose value the steered clips show, over the clips whose plain and swapped run differ in it.")
    report.table(*effect_table(clips))
    report.paragraph(
        "Velocity: the mean over steps of its relative change, at the latents that the plain run passes. Equal means "
        "equal latents, bit for bit. All runs of a clip start from the same noise; the swapped one has the injected "
        "prompt in the place of the clip's own."
    )
    report.figure(plot_change(clips.applied), "Relative change of the velocity by step.")
    return report


def _write_sheet(path: Path, clips: AppliedClips) -> None:
    shown = [(run, index) for index in range(len(clips.prompts))[:_CLIPS_ON_SHEET] for run in clips.frames]
    num_frames = clips.frames["plain"].shape[1]
    moments = np.unique(np.linspace(0, num_frames - 1, _FRAMES_PER_STRIP).round().astype(int)).tolist()
    captions = []
    for run, index in shown:
        text = (clips.injected or clips.prompts)[index] if run == "swapped" else clips.prompts[index]
        captions.append(f"{_caption(clips, run, index)}. {text}")
    write_contact_sheet(path, [clips.frames[run][index][moments] for run, index in shown], captions)


def _caption(clips: AppliedClips, run: str, index: int) -> str:
    if clips.readings is None:
        return run
    return f"{run}: {', '.join(clips.readings[run][index].values()) or 'nothing stands out'}"


def _effect(applied: Applied, index: int) -> list[str]:
    swapped = applied.equals_swapped
    equal = [
        name
        for name, same in (("plain", applied.equals_plain[index]), ("swapped", swapped is not None and swapped[index]))
        if same
    ]
    changes = [f"{float(change[index].mean()):.3f}" for change in (applied.velocity, applied.guided)]
    return [*changes, " and ".join(equal) or "neither"]


def _strength(operation: Operation) -> str:
    values = [strength for strength in operation.strengths if strength]
    if not values:
        return "0"
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _share(part: int, total: int) -> str | None:
    return f"{part} ({100 * part / total:.0f} %)" if total else None


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
