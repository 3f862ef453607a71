"""How good refined clips are: PSNR of what was missing, distances from real clips, and what beats what."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from latentloom.drifting.clips.random_features import RandomFeatures
from latentloom.drifting.distances import Estimate, frechet_estimate, kernel_difference, kernel_estimate, resample
from latentloom.drifting.estimates import NUM_RESAMPLES, over_seeds, ratio_estimate
from latentloom.errors import ShapeError
from latentloom.keyframes.frame_noise import frame_distance

PIXEL_PEAK = 2.0  # pixels go from -1 to 1
BEST_PSNR = 100.0  # dB, of missing frames that came back exactly
_CLIPS_AT_ONCE = 64


@dataclass(frozen=True)
class ClipScores:
    """What the refined clips of one method reached, each figure with its 95 % interval; see `aggregate_clips`.

    Attributes:
        psnr: of the missing frames in dB, per clip, then the mean over clips; None where nothing was missing.
        psnr_by_distance: the same for the frames that are so many frames away from the nearest given one.
        mse_missing: mean squared error of the missing frames, in the data's units.
        fd: Fréchet distance from the clean clips in the fixed features; biased upwards for few clips.
        kid: kernel distance from them; 0 is as good as real, and chance makes it negative.
        peak: range of values that `psnr` refers to; gains over another method do not depend on it.
        num_clips: refined clips.
        num_seeds: trainings; above 1, values are means, and intervals go from the smallest to the largest of them.
        clip_psnr: of each clip, nan where nothing was missing; the mean over seeds.
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
    clip_psnr: Float[Tensor, "N"] = field(kw_only=True, repr=False, compare=False)
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
    clip_psnr = _psnr(errors, ~given, peak)
    seen, truth = features.features(refined).cpu(), features.features(clean).cpu()
    by_distance = {
        number: _mean(_psnr(errors, distance == number, peak), times) for number in range(1, int(distance.max()) + 1)
    }
    num_missing = (~given).sum(dim=1)
    missed = (errors * ~given).sum(dim=1)
    return ClipScores(
        psnr=_mean(clip_psnr, times),
        psnr_by_distance={number: one for number, one in by_distance.items() if one is not None},
        mse_missing=ratio_estimate(missed, num_missing, times) if num_missing.sum() else None,
        fd=frechet_estimate(seen, truth, paired=True, seed=seed),
        kid=kernel_estimate(seen, truth, paired=True, seed=seed),
        peak=peak,
        num_clips=len(clean),
        clip_psnr=clip_psnr,
        features=(seen,),
        truth=truth,
    )


def compare_psnr(a: ClipScores, b: ClipScores, seed: int = 0) -> Estimate:
    """How many dB `a` is better than `b`, clip by clip, with the interval of the mean; wholly above 0, `a` beats `b`.

    Args:
        a, b: of the same clips with the same missing frames. Several seeds are averaged for each clip, so that the
            interval is that of the choice of clips.
        seed: of the resamples.

    Raises:
        ShapeError: other clips, other missing frames, another peak, or nothing was missing.
    """
    _require_same_clips(a, b)
    is_scored = ~a.clip_psnr.isnan()
    if a.peak != b.peak or not torch.equal(is_scored, ~b.clip_psnr.isnan()) or not is_scored.any():
        raise ShapeError("the PSNR of other frames or of another range; compare methods on the same missing frames")
    times = resample(len(is_scored), NUM_RESAMPLES, seed)
    return ratio_estimate((a.clip_psnr - b.clip_psnr).nan_to_num(), is_scored, times)


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
        clip_psnr=torch.stack([one.clip_psnr for one in scores]).mean(dim=0),
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


def _psnr(errors: Float[Tensor, "N T"], counts: Bool[Tensor, "N T"], peak: float) -> Float[Tensor, "N"]:
    """Of each clip's frames that count, in dB; nan where none does."""
    error = (errors * counts).sum(dim=1) / counts.sum(dim=1)
    return (10 * torch.log10(peak**2 / error)).clamp_max(BEST_PSNR)


def _mean(values: Float[Tensor, "N"], times: Float[Tensor, "R N"]) -> Estimate | None:
    is_scored = ~values.isnan()
    return ratio_estimate(values.nan_to_num(), is_scored, times) if is_scored.any() else None


def _require_same_clips(a: ClipScores, b: ClipScores) -> None:
    if a.truth.shape != b.truth.shape or not torch.equal(a.truth, b.truth):
        raise ShapeError(f"scores of {a.num_clips} and {b.num_clips} clips that are not the same; score the same ones")
