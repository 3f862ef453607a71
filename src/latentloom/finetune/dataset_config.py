"""What a training set consists of: folders of media, and the sizes that clips are brought to.

The TOML file is that of diffusion-pipe:

    resolutions = [512]                # or [[832, 480]]
    enable_ar_bucket = true
    frame_buckets = [1, 33, 81]

    [[directory]]
    path = "clips"
    num_repeats = 2
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from latentloom.errors import ConfigError, FileError
from latentloom.finetune.buckets import Buckets, aspect_ratios
from latentloom.runs import Config, load_config
from latentloom.wan.clip_size import ClipSize
from latentloom.wan.facts import ModelFacts

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
TEMPORAL_STRIDE = 4  # of every VAE in the Wan family
RANGE_KEYS = ("min_ar", "max_ar", "num_ar_buckets")
DEFAULT_MIN_AR, DEFAULT_MAX_AR, DEFAULT_NUM_AR_BUCKETS = 0.5, 2.0, 7


class BucketSettings(Config):
    """The sizes that clips are brought to; None takes the data set's setting, and there the model's default.

    Args:
        resolutions: sides of the square of equal area, or [width, height]; with several, every item is trained on in
            each of them.
        enable_ar_bucket: keep clips near their own aspect ratio, at the area of the resolution; otherwise a number is
            a square, and [width, height] is that size.
        min_ar, max_ar, num_ar_buckets: width / height of the buckets, in steps of equal factor.
        ar_buckets: width / height of each bucket, or [width, height] with that ratio, in place of these three.
        frame_buckets: numbers of frames, each 4n+1; 1 is for images, and for videos too short for another.
    """

    resolutions: Annotated[tuple[Count | tuple[Count, Count], ...], Field(min_length=1)] | None = None
    enable_ar_bucket: bool | None = None
    min_ar: Positive | None = None
    max_ar: Positive | None = None
    num_ar_buckets: Count | None = None
    ar_buckets: Annotated[tuple[Positive | tuple[Count, Count], ...], Field(min_length=1)] | None = None
    frame_buckets: Annotated[tuple[Count, ...], Field(min_length=1)] | None = None

    @field_validator("frame_buckets")
    @classmethod
    def _are_4n_plus_1(cls, frame_buckets: tuple[int, ...] | None) -> tuple[int, ...] | None:
        for num_frames in frame_buckets or ():
            if num_frames % TEMPORAL_STRIDE != 1:
                below = max(1, (num_frames - 1) // TEMPORAL_STRIDE * TEMPORAL_STRIDE + 1)
                raise ValueError(f"{num_frames} frames are not 4n+1; use {below} or {below + TEMPORAL_STRIDE}")
        return frame_buckets

    @model_validator(mode="after")
    def _describe_ratios_in_one_way(self) -> "BucketSettings":
        given = [name for name in RANGE_KEYS if getattr(self, name) is not None]
        if given and self.ar_buckets is not None:
            raise ValueError(f"ar_buckets and {given[0]} exclude each other; remove one of them")
        if self.min_ar is not None and self.max_ar is not None and self.min_ar > self.max_ar:
            raise ValueError(f"min_ar = {self.min_ar:g} is above max_ar = {self.max_ar:g}; swap them")
        return self


class DirectoryConfig(BucketSettings):
    """One folder of media; what it does not set is as for the whole data set.

    Args:
        path: holds images and videos, each with its caption in a text file of the same name; sub-folders are not
            searched.
        num_repeats: how often an epoch goes over it.
    """

    path: Path
    num_repeats: Count = 1


class DatasetConfig(BucketSettings):
    """A data set: its folders, and the settings that they share."""

    directory: Annotated[tuple[DirectoryConfig, ...], Field(min_length=1)]


@dataclass(frozen=True)
class MediaFolder:
    """One folder with everything that its items need.

    Args:
        path: absolute.
        name: what items' names start with: the folder's own name, numbered where two are called the same.
    """

    path: Path
    name: str
    num_repeats: int
    buckets: Buckets


def load_folders(dataset: Path, facts: ModelFacts) -> list[MediaFolder]:
    """The folders of a data set with the sizes that their items are brought to.

    Args:
        dataset: a TOML file, or a folder of media for the model's default size and numbers of frames.
        facts: of the model that is trained.

    Raises:
        FileError: the file or a folder is not there.
        ConfigError: a setting is unknown or has a wrong value; the message names the file.
    """
    config = _load(dataset)
    names = _distinct_names([directory.path for directory in config.directory])
    folders = []
    for directory, name in zip(config.directory, names, strict=True):
        try:
            buckets = _buckets(_merged(config, directory), facts)
        except ConfigError as error:
            raise ConfigError(f"{dataset}: {error}") from error
        folders.append(MediaFolder(directory.path.resolve(), name, directory.num_repeats, buckets))
    return folders


def _load(dataset: Path) -> DatasetConfig:
    if dataset.is_dir():
        return DatasetConfig(directory=(DirectoryConfig(path=dataset),))
    if not dataset.exists():
        raise FileError(f"the data set {dataset} does not exist; give a folder of media, or a data set's TOML file")
    try:
        config = load_config(DatasetConfig, dataset)
    except ConfigError as error:
        raise ConfigError(f"{dataset}: {error}") from error
    placed = tuple(item.model_copy(update={"path": dataset.parent / item.path}) for item in config.directory)
    for item in placed:
        if not item.path.is_dir():
            what = "is a file" if item.path.exists() else "does not exist"
            raise FileError(f"{dataset}: {item.path} {what}; give a folder of media as a [[directory]]'s path")
    return config.model_copy(update={"directory": placed})


def _merged(config: DatasetConfig, directory: DirectoryConfig) -> BucketSettings:
    values: dict[str, Any] = {name: getattr(config, name) for name in BucketSettings.model_fields}
    own = {name: value for name in values if (value := getattr(directory, name)) is not None}
    if "ar_buckets" in own:  # a folder's own way to describe ratios takes the place of the other way
        values.update(dict.fromkeys(RANGE_KEYS))
    if not own.keys().isdisjoint(RANGE_KEYS):
        values["ar_buckets"] = None
    return BucketSettings.model_construct(**(values | own))  # every value has been checked where it was given


def _buckets(settings: BucketSettings, facts: ModelFacts) -> Buckets:
    default = ClipSize.for_model(facts)
    resolutions = settings.resolutions or ((default.width, default.height),)
    frames = settings.frame_buckets or (1, default.num_frames)
    return Buckets.of(resolutions, _ratios(settings), frames, facts)


def _ratios(settings: BucketSettings) -> Sequence[float] | None:
    """Width / height of the buckets; None without aspect-ratio buckets."""
    if settings.enable_ar_bucket is None:
        for name in (*RANGE_KEYS, "ar_buckets"):
            if getattr(settings, name) is not None:
                raise ConfigError(f"{name} has no effect without enable_ar_bucket; add enable_ar_bucket = true")
    if not settings.enable_ar_bucket:
        return None
    if settings.ar_buckets is not None:
        return [item[0] / item[1] if isinstance(item, tuple) else item for item in settings.ar_buckets]
    low = DEFAULT_MIN_AR if settings.min_ar is None else settings.min_ar
    high = DEFAULT_MAX_AR if settings.max_ar is None else settings.max_ar
    if low > high:
        raise ConfigError(f"min_ar = {low:g} is above max_ar = {high:g}; set both")
    return aspect_ratios(low, high, settings.num_ar_buckets or DEFAULT_NUM_AR_BUCKETS)


def _distinct_names(paths: Sequence[Path]) -> list[str]:
    seen: Counter[str] = Counter()
    names = []
    for path in paths:
        name = path.resolve().name
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return names
