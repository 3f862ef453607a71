"""How good refined images are: distances from real ones, classes that are still right, errors of what was missing."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from latentloom.drifting.distances import frechet_estimate, kernel_estimate
from latentloom.drifting.images import Images
from latentloom.drifting.judge import Judge
from latentloom.errors import ShapeError
from latentloom.runs.estimates import NUM_RESAMPLES, Estimate, over_seeds, ratio_estimate, resample

_IMAGES_AT_ONCE = 512


@dataclass(frozen=True)
class Scores:
    """What the refined images of one training reached, each with its 95 % interval; see `aggregate` for several.

    Attributes:
        fd: Fréchet distance from the real images, in the judge's features; lower is better.
        kid: kernel distance from them; 0 is as good as real, and chance makes it negative.
        accuracy: share of images that the judge reads as their class.
        mse_missing: mean squared error of the cells that were not given, in the data's units.
        mse_all: mean squared error of all cells.
        num_images: refined images.
        num_seeds: trainings; above 1, values are means, and intervals go from the smallest to the largest of them.
    """

    fd: Estimate
    kid: Estimate
    accuracy: Estimate
    mse_missing: Estimate | None
    mse_all: Estimate | None
    num_images: int
    num_seeds: int = 1

    def to_json(self) -> dict[str, object]:
        """Every figure with its interval; None where there is none."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value.to_json() if isinstance(value, Estimate) else value for name, value in values.items()}


def score(
    judge: Judge,
    refined: Float[Tensor, "N C H W"],
    real: Float[Tensor, "N C H W"],
    labels: Int64[Tensor, "N"],
    given: Bool[Tensor, "N P"],
    patch_size: int,
    seed: int = 0,
) -> Scores:
    """Scores of refined held-out images against the very images they were made from.

    Args:
        judge: trained on other images.
        refined, real: image i of one belongs to image i of the other; resamples keep them together.
        labels: the true classes.
        given: which of the P patches, row by row, the refiner was given.
        patch_size: side of a patch in cells.
        seed: of the resamples; methods that are scored with equal seeds are resampled alike.

    Raises:
        ShapeError: fewer than two images, or patches that are not those of the images.
    """
    features, truth = judge.features(refined), judge.features(real)
    is_right = judge.read_class(features).cpu() == labels.cpu()
    errors, is_missing = _patch_errors(refined, real, given, patch_size)
    times = resample(len(refined), NUM_RESAMPLES, seed)
    num_missing = is_missing.sum(dim=1)
    return Scores(
        fd=frechet_estimate(features, truth, paired=True, seed=seed),
        kid=kernel_estimate(features, truth, paired=True, seed=seed),
        accuracy=ratio_estimate(is_right, torch.ones(len(refined)), times),
        mse_missing=ratio_estimate((errors * is_missing).sum(dim=1), num_missing, times) if num_missing.sum() else None,
        mse_all=ratio_estimate(errors.mean(dim=1), torch.ones(len(refined)), times),
        num_images=len(refined),
    )


def score_real(
    judge: Judge, train: Images, held_out: Images, seed: int = 0, rows: Int64[Tensor, "N"] | None = None
) -> Scores:
    """Scores of other real images than the held-out ones: how far apart two sets of real images are.

    The distances are between held-out images and training images, as many of each class as are held out (or as there
    are); the accuracy is the judge's on the held-out images. No bound for `score`, which compares images with their own
    originals: exact copies have an FD of 0.

    Args:
        judge: trained on `train`.
        train, held_out: the two parts of the data.
        seed: decides which training images are taken.
        rows: of the held-out images that are scored, as many as of the methods beside; all when None.
    """
    rows = torch.arange(len(held_out)) if rows is None else rows
    labels = held_out.labels[rows]
    others = stratified_rows(train.labels, labels, torch.Generator().manual_seed(seed))
    truth = image_features(judge, held_out, rows)
    is_right = judge.read_class(truth).cpu() == labels.cpu()
    features = image_features(judge, train, others)
    times = resample(len(rows), NUM_RESAMPLES, seed)
    return Scores(
        fd=frechet_estimate(features, truth, seed=seed),
        kid=kernel_estimate(features, truth, seed=seed),
        accuracy=ratio_estimate(is_right, torch.ones(len(rows)), times),
        mse_missing=None,
        mse_all=None,
        num_images=len(others),
    )


def stratified_rows(
    labels: Int64[Tensor, "N"], wanted: Int64[Tensor, "M"], generator: torch.Generator
) -> Int64[Tensor, "_"]:
    """Rows of `labels`, drawn without replacement, that hold each class as often as `wanted`, or as often as there is.

    Args:
        labels: classes to draw from.
        wanted: classes whose counts are asked for.
        generator: draws.
    """
    shuffled = torch.randperm(len(labels), generator=generator)
    owners = labels.cpu()[shuffled]
    counts = torch.bincount(wanted.cpu(), minlength=int(labels.max()) + 1)
    parts = [shuffled[owners == number][:count] for number, count in enumerate(counts.tolist())]
    return torch.cat(parts).sort().values


def image_features(judge: Judge, images: Images, rows: Int64[Tensor, "N"] | None = None) -> Float[Tensor, "N 64"]:
    """The judge's features of a data set's images, of all or of some rows, loaded a part at a time."""
    rows = torch.arange(len(images)) if rows is None else rows
    return torch.cat([judge.features(images.load(part)) for part in rows.split(_IMAGES_AT_ONCE)])


def aggregate(scores: Sequence[Scores]) -> Scores:
    """The means over trainings with other seeds, with the smallest and the largest; a single one stays as it is.

    Args:
        scores: at least one, all of the same images.
    """
    if len(scores) == 1:
        return scores[0]
    return Scores(
        fd=over_seeds([one.fd for one in scores]),
        kid=over_seeds([one.kid for one in scores]),
        accuracy=over_seeds([one.accuracy for one in scores]),
        mse_missing=over_seeds(missing) if (missing := _known([one.mse_missing for one in scores])) else None,
        mse_all=over_seeds(everywhere) if (everywhere := _known([one.mse_all for one in scores])) else None,
        num_images=scores[0].num_images,
        num_seeds=len(scores),
    )


def _known(estimates: Sequence[Estimate | None]) -> list[Estimate]:
    return [estimate for estimate in estimates if estimate is not None]


def _patch_errors(
    refined: Tensor, real: Tensor, given: Tensor, patch_size: int
) -> tuple[Float[Tensor, "N P"], Bool[Tensor, "N P"]]:
    squared = (refined.float() - real.float()).square().mean(dim=1, keepdim=True)
    errors = F.avg_pool2d(squared, patch_size).flatten(1).double().cpu()
    height, width = refined.shape[2:]
    if errors.shape != given.shape or height % patch_size or width % patch_size:
        raise ShapeError(
            f"{given.shape[1]} patches with sides of {patch_size} are not those of an image of {height} x {width}"
        )
    return errors, ~given.cpu()
