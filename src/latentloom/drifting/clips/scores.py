"""How good refined clips are: PSNR of what was missing, distances from real clips, and what beats what."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from latentloom.drifting.clips.random_features import RandomFeatures
from latentloom.drifting.distances import frechet_estimate, kernel_difference, kernel_estimate
from latentloom.errors import ShapeError
from latentloom.keyframes.frame_noise import frame_distance
from latentloom.runs.estimates import NUM_RESAMPLES, Estimate, over_seeds, ratio_estimate, resample

PIXEL_PEAK = 2.0  # pixels go from -1 to 1
BEST_PSNR = 100.0  # dB, of missing frames that came back exactly
_CLIPS_AT_ONCE = 64


@dataclass(frozen=True)
class ClipScores:
    """What the refined clips of one method reached, each figure with its 95 % interval; see `aggregate_clips`.

    Attributes:
        psnr: of the mean squared error of all missing frames, in dB; None where nothing was missing. A mean over the
            PSNRs of clips would be that of the clips which do not move, and which interpolation brings back exactly.
        psnr_by_distance: the same for the frames that are so many frames away from the nearest given one.
        mse_missing: mean squared error of the missing frames, in the data's units.
        fd: Fréchet distance from the clean clips in the fixed features; biased upwards for few clips.
        kid: kernel distance from them; 0 is as good as real, and chance makes it negative.
        peak: range of values that `psnr` refers to; gains over another method do not depend on it.
        num_clips: refined clips.
        num_seeds: trainings; above 1, values are means, and intervals go from the smallest to the largest of them.
        clip_errors: squared errors of each clip, a sum over its missing frames; the mean over seeds.
        num_missing: missing frames of each clip.
        features: of the refined clips, for each seed.
        truth: features of the clean clips.
    """

    psnr: Estimate | None
    psnr_by_distance: Mapping[int, Estimate]
    mse_missing: Estimate | None
    fd: Estimate
    kid: Estimate
    peak: float
    num_clips: int
    num_seeds: int = 1
    clip_errors: Float[Tensor, "N"] = field(kw_only=True, repr=False, compare=False)
    num_missing: Int64[Tensor, "N"] = field(kw_only=True, repr=False, compare=False)
    features: tuple[Float[Tensor, "N D"], ...] = field(kw_only=True, repr=False, compare=False)
    truth: Float[Tensor, "N D"] = field(kw_only=True, repr=False, compare=False)

    def to_json(self) -> dict[str, object]:
        """Every figure with its interval, None where there is none; distances are words."""
        return {
            "psnr": self.psnr.to_json() if self.psnr else None,
            "psnr_by_distance": {str(frames): one.to_json() for frames, one in self.psnr_by_distance.items()},
            "mse_missing": self.mse_missing.to_json() if self.mse_missing else None,
            "fd": self.fd.to_json(),
            "kid": self.kid.to_json(),
            "peak": self.peak,
            "num_clips": self.num_clips,
            "num_seeds": self.num_seeds,
        }


def score_clips(
    features: RandomFeatures,
    refined: Float[Tensor, "N C T H W"],
    clean: Float[Tensor, "N C T H W"],
    given: Bool[Tensor, "N T"],
    *,
    peak: float | None = None,
    seed: int = 0,
) -> ClipScores:
    """Scores of refined held-out clips against the very clips they were made from.

    Args:
        features: whose unit was taken from the training's clips, in the space of these.
        refined, clean: clip i of one belongs to clip i of the other; resamples keep them together.
        given: true where a frame was given; errors there do not count.
        peak: range of the values: 2 (PIXEL_PEAK) for pixels. None, for latents, which have no fixed range: the
            difference between the largest and smallest value of `clean`.
        seed: of the resamples; methods that are scored with equal seeds are resampled alike.

    Raises:
        ShapeError: fewer than two clips, clips and masks that do not fit together, or values that are not finite.
    """
    if refined.shape != clean.shape or given.shape != (clean.shape[0], clean.shape[2]) or len(clean) < 2:
        raise ShapeError(
            f"refined clips {tuple(refined.shape)}, clean ones {tuple(clean.shape)}, mask {tuple(given.shape)}; "
            "give two or more clips as [N, C, T, H, W] and the mask as [N, T]"
        )
    errors = _frame_errors(refined, clean)
    num_broken = int((~errors.isfinite()).any(dim=1).sum())
    if num_broken:
        raise ShapeError(f"{num_broken} of {len(clean)} refined clips have values that are not finite; train again")
    given = given.cpu()
    peak = float(clean.max().float() - clean.min().float()) if peak is None else peak
    times = resample(len(clean), NUM_RESAMPLES, seed)
    distance = frame_distance(given)
    seen, truth = features.features(refined).cpu(), features.features(clean).cpu()
    by_distance = {
        number: _mean_error(errors, distance == number, times) for number in range(1, int(distance.max()) + 1)
    }
    mse = _mean_error(errors, ~given, times)
    return ClipScores(
        psnr=None if mse is None else _as_psnr(mse, peak),
        psnr_by_distance={number: _as_psnr(one, peak) for number, one in by_distance.items() if one is not None},
        mse_missing=mse,
        fd=frechet_estimate(seen, truth, paired=True, seed=seed),
        kid=kernel_estimate(seen, truth, paired=True, seed=seed),
        peak=peak,
        num_clips=len(clean),
        clip_errors=(errors * ~given).sum(dim=1),
        num_missing=(~given).sum(dim=1),
        features=(seen,),
        truth=truth,
    )


def compare_psnr(a: ClipScores, b: ClipScores, seed: int = 0) -> Estimate:
    """How many dB `a` is better than `b`, with the interval over clips; wholly above 0, `a` beats `b`.

    It is the ratio of their mean squared errors. Both are resampled together.

    Args:
        a, b: of the same clips with the same missing frames. Several seeds are averaged for each clip, so that the
            interval is that of the choice of clips.
        seed: of the resamples.

    Raises:
        ShapeError: other clips, other missing frames, another peak, or nothing was missing.
    """
    _require_same_clips(a, b)
    if a.peak != b.peak or not torch.equal(a.num_missing, b.num_missing) or not a.num_missing.any():
        raise ShapeError("the PSNR of other frames or of another range; compare methods on the same missing frames")
    least = a.num_missing * a.peak**2 * 10 ** (-BEST_PSNR / 10)  # below which errors are of no matter
    times = resample(len(least), NUM_RESAMPLES, seed)
    ratio = ratio_estimate(b.clip_errors + least, a.clip_errors + least, times)
    return Estimate(*(10 * math.log10(number) for number in (ratio.value, ratio.low, ratio.high)))


def compare_kid(a: ClipScores, b: ClipScores, seed: int = 0) -> Estimate:
    """How much larger the KID of `a` is than that of `b`, with the interval; wholly below 0, `a` beats `b`.

    Both are resampled together.

    Args:
        a, b: of the same clips in the same features; several seeds are averaged.
        seed: of the resamples.

    Raises:
        ShapeError: other clips.
    """
    _require_same_clips(a, b)
    return kernel_difference(a.features, b.features, a.truth, seed=seed)


def aggregate_clips(scores: Sequence[ClipScores]) -> ClipScores:
    """The means over trainings with other seeds, with the smallest and the largest; a single one stays as it is.

    Args:
        scores: at least one, all of the same clips with the same missing frames.

    Raises:
        ShapeError: other clips.
    """
    first = scores[0]
    if len(scores) == 1:
        return first
    for other in scores[1:]:
        _require_same_clips(first, other)
    distances = set.intersection(*(set(one.psnr_by_distance) for one in scores))
    psnr, errors = ([getattr(one, name) for one in scores] for name in ("psnr", "mse_missing"))
    return ClipScores(
        psnr=None if None in psnr else over_seeds(psnr),
        psnr_by_distance={
            frames: over_seeds([one.psnr_by_distance[frames] for one in scores]) for frames in sorted(distances)
        },
        mse_missing=None if None in errors else over_seeds(errors),
        fd=over_seeds([one.fd for one in scores]),
        kid=over_seeds([one.kid for one in scores]),
        peak=first.peak,
        num_clips=first.num_clips,
        num_seeds=sum(one.num_seeds for one in scores),
        clip_errors=torch.stack([one.clip_errors for one in scores]).mean(dim=0),
        num_missing=first.num_missing,
        features=tuple(features for one in scores for features in one.features),
        truth=first.truth,
    )


def _frame_errors(refined: Tensor, clean: Tensor) -> Float[Tensor, "N T"]:
    """Mean squared error of each frame."""
    parts = [
        (one.float() - other.to(one.device, torch.float32)).square().mean(dim=(1, 3, 4)).double().cpu()
        for one, other in zip(refined.split(_CLIPS_AT_ONCE), clean.split(_CLIPS_AT_ONCE), strict=True)
    ]
    return torch.cat(parts)


def _mean_error(
    errors: Float[Tensor, "N T"], counts: Bool[Tensor, "N T"], times: Float[Tensor, "R N"]
) -> Estimate | None:
    """Of the frames that count; None where none does."""
    if not counts.any():
        return None
    return ratio_estimate((errors * counts).sum(dim=1), counts.sum(dim=1), times)


def _as_psnr(error: Estimate, peak: float) -> Estimate:
    """In dB, of a mean squared error; the smallest error is the largest PSNR."""
    least = peak**2 * 10 ** (-BEST_PSNR / 10)
    value, low, high = (
        10 * math.log10(peak**2 / max(number, least)) for number in (error.value, error.high, error.low)
    )
    return Estimate(value, low, high)


def _require_same_clips(a: ClipScores, b: ClipScores) -> None:
    if a.truth.shape != b.truth.shape or not torch.equal(a.truth, b.truth):
        raise ShapeError(f"scores of {a.num_clips} and {b.num_clips} clips that are not the same; score the same ones")
