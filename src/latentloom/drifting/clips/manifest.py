"""What a folder of clip shards says about itself: the file shards.json beside the tars."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from latentloom.errors import ConfigError, CorruptFileError
from latentloom.storage import write_json

MANIFEST_NAME = "shards.json"

# what clips of one set have in common; counts, sources and the like may differ from folder to folder
_SHARED = ("space", "frames", "shape", "vae", "text_encoder", "text_width")


class ShardManifest(BaseModel):
    """What the clips of some shards are and where they come from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    space: Literal["latent", "pixel"] = Field(description="Normalised VAE latents, or RGB from -1 to 1.")
    frames: Literal["each", "clip"] | None = Field(
        default=None, description="Latents: every frame encoded on its own, or compressed in time by the VAE."
    )
    shape: tuple[int, int, int, int] = Field(description="Of every clip: channels, frames, rows, columns.")
    fps: float = Field(gt=0, description="Video frames per second.")
    num_clips: int = Field(ge=0, description="In all shards together; 0 while they are being written.")
    clips_per_shard: int = Field(ge=1, description="In every shard but the last.")
    dtype: Literal["float16", "bfloat16", "float32"] = Field(default="float16", description="That values are kept in.")
    vae: str | None = Field(default=None, description="Fingerprint of the VAE that made the latents.")
    text_encoder: str | None = Field(default=None, description="Fingerprint of the encoder of the prompts.")
    text_width: int | None = Field(default=None, ge=1, description="Channels of a text token; none without texts.")
    source: str = Field(default="", description="Where the clips come from, in words.")


def write_manifest(folder: Path, manifest: ShardManifest) -> None:
    """Write it into the folder of the tars."""
    write_json(folder / MANIFEST_NAME, manifest.model_dump(mode="json"))


def read_manifest(folder: Path) -> ShardManifest | None:
    """The manifest of a folder; None where it has none, as shards of other programs.

    Raises:
        CorruptFileError: it is there, but damaged or of another form, or the shards were never finished.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        return None
    try:
        manifest = ShardManifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise CorruptFileError(
            f"{path} is damaged: {where}: {first['msg']}; write the shards again, or delete it to read them without"
        ) from error
    if not manifest.num_clips:
        raise CorruptFileError(
            f"{folder} was never finished: what wrote its shards is still at work, or was stopped; wait for it, or "
            f"delete the folder and make the shards again (without {MANIFEST_NAME} those that are there are read)"
        )
    return manifest


def common_manifest(folders: list[Path]) -> ShardManifest | None:
    """The manifest that shards of several folders share; None if one of them has none.

    Raises:
        ConfigError: the folders hold clips of different kinds.
    """
    manifests = [read_manifest(folder) for folder in folders]
    first = manifests[0]
    for folder, other in zip(folders, manifests, strict=True):
        if first is None or other is None:
            return None
        different = [name for name in _SHARED if getattr(first, name) != getattr(other, name)]
        if different:
            name = different[0]
            raise ConfigError(
                f"{folders[0]} has {name} = {getattr(first, name)} and {folder} has {getattr(other, name)}; "
                "give shards of one kind"
            )
    return first
