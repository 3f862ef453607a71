"""What learning a control vector is, for the run's record."""

from latentloom.runs import TrainingFacts
from latentloom.runs.experiment import DataFacts, EncoderFacts
from latentloom.steering.control.learned import BATCH_SIZE, NUM_STEPS


def control_training(pattern: str, num_pairs: int, model: str, text_encoder: str | None) -> TrainingFacts:
    """The facts of learning one vector with the defaults of `learn_control`.

    Args:
        pattern: where the pairs of prompts come from.
        num_pairs: of prompts.
        model: the checkpoint whose blocks are steered.
        text_encoder: fingerprint of the encoder; None where prompts are encoded elsewhere.
    """
    return TrainingFacts(
        data=DataFacts(pattern=pattern, shards=None, num_samples=num_pairs, num_held_out=None),
        trained="control vector at the context: one direction per block, from zero",
        encoders=(
            EncoderFacts(name="text encoder", checkpoint=text_encoder or "not part of the checkpoint", frozen=True),
            EncoderFacts(name="DiT", checkpoint=model, frozen=True),
        ),
        quantizer=None,
        sampling=None,
        features=None,
        temperatures=None,
        normalization="the rate in units of a text row's root mean square",
        loss="squared error of the velocity towards the target prompt's, relative to the target's squared length",
        batch_size=min(BATCH_SIZE, num_pairs),
        steps=NUM_STEPS,
    )
