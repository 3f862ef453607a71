"""What a training is, as its record must state it before it starts."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from latentloom.errors import ConfigError

Stated = Annotated[str, Field(min_length=1, pattern=r"\S")]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A part of the record; nothing has a default, so that what does not apply is said to be None."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DataFacts(Section):
    """What is trained on.

    Args:
        pattern: path or pattern of the data; what draws it where it is not stored.
        shards: which shards of it, such as `00000 to 00009`.
        num_samples: samples that training sees, estimated where they are drawn as it goes.
        num_held_out: samples of the same data that are kept from training.
    """

    pattern: Stated
    shards: Stated | None
    num_samples: Count
    num_held_out: Annotated[int, Field(ge=0)] | None


class EncoderFacts(Section):
    """A network that takes part beside what is trained, or whose weights are.

    Args:
        name: what it encodes, or what it is called.
        checkpoint: path, name or fingerprint of its weights.
        frozen: false where this training moves weights of it.
    """

    name: Stated
    checkpoint: Stated
    frozen: bool


class QuantizerFacts(Section):
    """What turned samples into classes.

    Args:
        method: such as k-means.
        num_classes: K.
    """

    method: Stated
    num_classes: Annotated[int, Field(ge=2)]


class SamplingPolicy(Section):
    """Which samples attract and which repel, in words."""

    positives: Stated
    negatives: Stated


class TrainingFacts(Section):
    """One training: its data, its model, its loss and its size.

    Args:
        data: what is trained on.
        trained: whose weights move, in words.
        encoders: networks beside it, with their checkpoints.
        quantizer: where classes are made and not given.
        sampling: where samples are held against others.
        features: the sets of features that the loss compares, by name.
        temperatures: of a kernel or a softmax over samples.
        normalization: what is brought to which scale, in words.
        loss: what is minimised, in words or as a formula.
        batch_size: samples of an optimizer step, over all processes and accumulated batches.
        steps: optimizer steps, the most where the training itself decides when to stop.

    Source: the drifting document, "Experiment Logging Contract".
    """

    data: DataFacts
    trained: Stated
    encoders: Annotated[tuple[EncoderFacts, ...], Field(min_length=1)] | None
    quantizer: QuantizerFacts | None
    sampling: SamplingPolicy | None
    features: Annotated[tuple[Stated, ...], Field(min_length=1)] | None
    temperatures: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] | None
    normalization: Stated | None
    loss: Stated
    batch_size: Count
    steps: Count

    @model_validator(mode="after")
    def _agrees(self) -> "TrainingFacts":
        if self.temperatures is not None and self.sampling is None:
            raise ValueError("temperatures without sampling; say which samples attract and which repel")
        return self


Trainings = Mapping[str, TrainingFacts | Mapping[str, Any]]


def complete_trainings(trainings: Trainings) -> dict[str, TrainingFacts]:
    """The trainings of a run by name, each with all its sections.

    Args:
        trainings: facts, or their values by name.

    Raises:
        ConfigError: no training, or one with missing or wrong facts; all of them are named.
    """
    if not trainings:
        raise ConfigError("the run's record lacks its trainings; state the facts of each thing that is trained")
    problems: list[str] = []
    complete: dict[str, TrainingFacts] = {}
    for name, facts in trainings.items():
        # also facts that are complete already: they may have been built without being checked
        values = facts.model_dump() if isinstance(facts, TrainingFacts) else dict(facts)
        try:
            complete[name] = TrainingFacts.model_validate(values)
        except ValidationError as error:
            problems += [_problem(name, dict(found)) for found in error.errors(include_url=False)]
    if problems:
        raise ConfigError(
            f"the run's record lacks {'; '.join(dict.fromkeys(problems))}; a training does not start without them"
        )
    return complete


def _problem(name: str, found: dict[str, Any]) -> str:
    place = ".".join(str(part) for part in ("trainings", name, *found["loc"]))
    return place if found["type"] == "missing" else f"{place} ({found['msg'].removeprefix('Value error, ')})"
