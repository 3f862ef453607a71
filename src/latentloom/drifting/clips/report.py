"""A run on clips as a page: what refiners reached beside interpolation at every level, pictures, curves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxtyping import UInt8
from numpy import ndarray

from latentloom.drifting.clips.scores import ClipScores, aggregate_clips, compare_kid, compare_psnr
from latentloom.drifting.report_curves import CURVE_PANELS, plot_curves
from latentloom.drifting.report_tables import add_table
from latentloom.runs import Report
from latentloom.runs.estimates import Estimate

#: What every method is compared with.
BASELINE = "linear interpolation"


@dataclass(frozen=True, eq=False)
class LevelScores:
    """What every method reached at one level.

    Attributes:
        num_given: keyframes of a clip.
        stride: frames from one keyframe to the next; the mean where they are drawn.
        scores: by method, one for each seed; linear interpolation among them.
        pixels: by method, of the decoded frames of some clips, the first seed's; empty where clips are pixels.
        pictures: prompts and contact sheets.
        is_drawn: whether keyframes are drawn for each clip.
    """

    num_given: int
    stride: float
    scores: Mapping[str, Sequence[ClipScores]]
    pixels: Mapping[str, ClipScores] = field(default_factory=dict)
    pictures: Sequence[tuple[str, UInt8[ndarray, "_ _ 3"]]] = ()
    is_drawn: bool = False

    @property
    def spacing(self) -> str:
        """How far keyframes are apart, in words."""
        return f"{self.stride:.3g} frames{' on average' if self.is_drawn else ''}"

    def to_json(self) -> dict[str, Any]:
        """Every figure, and what each method gains over linear interpolation."""
        return {
            "stride": self.stride,
            "stride_is_mean": self.is_drawn,
            "methods": {name: aggregate_clips(found).to_json() for name, found in self.scores.items()},
            "decoded": {name: found.to_json() for name, found in self.pixels.items()},
            "gains": {name: gain.to_json() for name, gain in self.gains().items()},
        }

    def gains(self) -> "dict[str, Gain]":
        """By method, what it gains over linear interpolation; in pixels where there are any."""
        linear = aggregate_clips(self.scores[BASELINE])
        found = {}
        for name, scores in self.scores.items():
            if name == BASELINE:
                continue
            own = aggregate_clips(scores)
            decoded = None if not self.pixels else compare_psnr(self.pixels[name], self.pixels[BASELINE])
            found[name] = Gain(compare_psnr(own, linear), decoded, compare_kid(own, linear))
        return found


@dataclass(frozen=True)
class Gain:
    """What a method gains over linear interpolation, on the same clips.

    Attributes:
        psnr: in dB, above 0 where it is better.
        pixel_psnr: the same for decoded frames; None where clips are pixels.
        kid: below 0 where it is better.
    """

    psnr: Estimate
    pixel_psnr: Estimate | None
    kid: Estimate

    @property
    def wins(self) -> bool:
        """True if it is better in every way, each with its whole interval."""
        is_closer = self.psnr.low > 0 and (self.pixel_psnr is None or self.pixel_psnr.low > 0)
        return is_closer and self.kid.high < 0

    def to_json(self) -> dict[str, Any]:
        """Every figure with its interval."""
        pixel = None if self.pixel_psnr is None else self.pixel_psnr.to_json()
        return {"psnr": self.psnr.to_json(), "pixel_psnr": pixel, "kid": self.kid.to_json(), "wins": self.wins}


@dataclass
class ClipReport:
    """What the page shows.

    Attributes:
        introduction: what was trained on what, in a sentence or two.
        settings: by name.
        facts: what the run came to, by name.
        levels: scores of every level.
        subject: the method that the decision is about.
        curves: by name the lines that `training.read_curve` gives.
        diagnostics: figures of the last logged step, by name.
    """

    introduction: str
    settings: Mapping[str, Any]
    facts: Mapping[str, Any]
    levels: Sequence[LevelScores]
    subject: str
    curves: Mapping[str, Sequence[Mapping[str, float]]]
    diagnostics: Mapping[str, float]


def write_clip_report(path: Path | str, content: ClipReport) -> Path:
    """Write the page as one HTML file and return its path.

    Raises:
        FileError: the place cannot be written to.
    """
    report = Report("Drifting: clips completed from keyframes")
    report.paragraph(content.introduction)
    report.paragraph(compare_levels(content.levels, content.subject))
    for level in content.levels:
        _add_level(report, level)
    report.paragraph(
        "PSNR is of missing frames, in dB, higher is better; decoded: of frames that can be seen. KID and FD are "
        "distances from the true clips in features of a fixed random network, lower is better. In brackets: the "
        "smallest and largest of the seeds, or with one seed the 95 % interval over clips. The gain in PSNR and the "
        "change of KID are over linear interpolation on the same clips, with the 95 % interval over clips; where both "
        "whole intervals are on the better side, the method wins."
    )
    add_table(report, "What was run", "fact", content.facts)
    for prefix, (heading, caption) in CURVE_PANELS.items():
        figure = plot_curves(content.curves, prefix)
        if figure is not None:
            report.heading(heading)
            report.figure(figure, caption)
    add_table(report, "Diagnostics of the last step", "figure", content.diagnostics)
    add_table(report, "Settings", "setting", content.settings)
    report.write(path)
    return Path(path)


def compare_levels(levels: Sequence[LevelScores], subject: str) -> str:
    """Where a method beats linear interpolation and where it does not, in a sentence or two."""
    wins, others = [], []
    for level in levels:
        gain = level.gains()[subject]
        stated = f"{level.spacing} ({_signed(_closeness(gain))} dB, KID {_signed(gain.kid)})"
        (wins if gain.wins else others).append(stated)
    parts = []
    if wins:
        parts.append(
            f"The {subject} beats linear interpolation in PSNR and KID with a keyframe every {', '.join(wins)}."
        )
    if others:
        who = "It does" if wins else f"The {subject} does"
        parts.append(
            f"{who} not beat linear interpolation in both PSNR and KID with a keyframe every {', '.join(others)}."
        )
    return " ".join(parts)


def _closeness(gain: Gain) -> Estimate:
    return gain.pixel_psnr or gain.psnr


def _add_level(report: Report, level: LevelScores) -> None:
    report.heading(f"A keyframe every {level.spacing}: {level.num_given} given")
    has_pixels = bool(level.pixels)
    columns = ["method", "PSNR", "decoded", "gain, dB", "KID", "change", "FD", "wins"]
    gains = level.gains()
    rows = []
    for name, scores in level.scores.items():
        found, gain = aggregate_clips(scores), gains.get(name)
        rows.append(
            [
                f"{name}, {found.num_seeds} seeds" if found.num_seeds > 1 else name,
                _stated(found.psnr),
                _stated(level.pixels[name].psnr) if has_pixels else None,
                _signed(_closeness(gain)) if gain else None,
                _stated(found.kid),
                _signed(gain.kid) if gain else None,
                f"{found.fd.value:.3g}",
                None if gain is None else "yes" if gain.wins else "no",
            ]
        )
    keeps = [place for place, name in enumerate(columns) if has_pixels or name != "decoded"]
    report.table([columns[place] for place in keeps], [[row[place] for place in keeps] for row in rows])
    for prompt, picture in level.pictures:
        report.image(picture, prompt or "a held-out clip")


def _stated(estimate: Estimate | None) -> str | None:
    return None if estimate is None else f"{estimate.value:.3g} [{estimate.low:.3g}, {estimate.high:.3g}]"


def _signed(estimate: Estimate) -> str:
    return f"{estimate.value:+.3g} [{estimate.low:+.3g}, {estimate.high:+.3g}]"
