"""What files of a bridge say about themselves: an export, and a set of vectors that an encoder made."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from latentloom.bridge.config import MINILM, Count, ModelConfig, Task
from latentloom.errors import CheckpointError

KIND = "latentloom.bridge"
#: Beside a set of pairs: which encoder made the vectors.
ENCODER_FILE = "encoder.json"

Dtype = Literal["bf16", "fp16", "fp32"]


class _Stated(BaseModel):
    """Facts of the types that they are written with; facts of later versions are passed over."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


class EncoderRecord(_Stated):
    """The sentence encoder that made vectors.

    Attributes:
        name: what it is called in reports.
        fingerprint: its own; None where it was not at hand.
        source: what `load_sentence_encoder` finds it by on the machine where the vectors were made; None where that is
            not known.
    """

    name: str
    fingerprint: str | None = None
    source: str | None = None


class BackboneRecord(_Stated):
    """The language model that a bridge was trained on."""

    name: str
    fingerprint: str


class TrainingRecord(_Stated):
    """How a bridge was trained; settings beside these are kept as they are."""

    model_config = ConfigDict(extra="allow")

    task: Task = "joint"
    dtype: Dtype = "bf16"


class ExportRecord(_Stated):
    """Everything that an export says beside its tensors.

    Attributes:
        kind: KIND.
        step: completed steps.
        latent_dim: channels of a vector.
        layers: of the backbone, counted from 1, whose states are pooled.
        backbone: below the tensors.
        model: settings that give modules with exactly these tensors.
        training: how they came about.
        encoder: that made the vectors; None where that is not known.
        versions: of the packages that wrote it.
    """

    kind: Literal["latentloom.bridge"]
    step: int
    latent_dim: Count
    layers: Annotated[tuple[Count, ...], Field(min_length=1)]
    backbone: BackboneRecord
    model: ModelConfig
    training: TrainingRecord = TrainingRecord()
    encoder: EncoderRecord | None = None
    versions: dict[str, str] = {}


def parse_export_record(text: str, path: Path) -> ExportRecord:
    """The record in an export's JSON text.

    Args:
        text: as `ExportRecord.model_dump_json` gives it.
        path: the export, for the message.

    Raises:
        CheckpointError: it is of another kind, or this version cannot read it.
    """
    try:
        return ExportRecord.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        if place in ("", "kind"):
            raise CheckpointError(f"{path} is no export of a bridge; give a checkpoint_step_<N>.safetensors") from error
        raise CheckpointError(
            f"{path} says about itself what this version cannot read ({place}: {first['msg']}); export it again"
        ) from error


def read_encoder_record(pairs: Path) -> EncoderRecord | None:
    """The encoder that made the vectors of a set of pairs, where a file beside them says so.

    Args:
        pairs: the set's folder or a file in it, there or not.
    """
    path = (pairs if pairs.is_dir() else pairs.parent) / ENCODER_FILE
    if not path.is_file():
        return None
    try:
        about = _SetRecord.model_validate_json(path.read_bytes())
    except ValidationError:  # a file of that name that means something else
        return None
    source = about.source or (MINILM if about.encoder == MINILM else None)
    return EncoderRecord(name=about.encoder, fingerprint=about.fingerprint, source=source)


class _SetRecord(_Stated):
    """What `latentloom bridge embed` writes beside a set, as far as it matters here."""

    encoder: str
    fingerprint: str
    source: str | None = None
