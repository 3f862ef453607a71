"""What the trainings of a run on clips are, for its record."""

from latentloom.drifting.clips.config import ClipConfig
from latentloom.drifting.clips.data import ClipData, frame_data
from latentloom.drifting.clips.frame_encoder import compares_frames, frame_mae_config
from latentloom.drifting.experiment import (
    FIELD_SCALE,
    drifting_loss_in_words,
    feature_sets,
    mae_trainings,
    sampling_policy,
)
from latentloom.drifting.frozen_encoder import MAE_BATCH
from latentloom.runs import TrainingFacts
from latentloom.runs.experiment import DataFacts, EncoderFacts, QuantizerFacts


def clip_trainings(config: ClipConfig, data: ClipData, batch_size: int) -> dict[str, TrainingFacts]:
    """The facts of every refiner of a run, and of the autoencoder of frames where the run trains one.

    Args:
        config: the settings.
        data: the clips.
        batch_size: clips per optimizer step, over all processes.
    """
    trainings = {}
    if compares_frames(config) and config.feature_checkpoint is None:
        trainings |= mae_trainings(frame_mae_config(config, data), frame_data(data), MAE_BATCH)
    encoders = _encoders_of_data(data)
    scale = "pixels from -1 to 1" if data.space == "pixel" else "latents standardised per channel by the VAE"
    target = "the clip" if config.target == "clean" else "the level with more keyframes"
    refiner = TrainingFacts(
        data=DataFacts(
            pattern=str(config.data_root),
            shards=None,
            num_samples=len(data.train),
            num_held_out=len(data.held_out),
        ),
        trained=_trained(config),
        encoders=encoders or None,
        quantizer=_quantizer(config),
        sampling=None,
        features=None,
        temperatures=None,
        normalization=scale,
        loss=f"mean squared error from {target}",
        batch_size=batch_size,
        steps=config.steps,
    )
    if config.mse_baseline or config.objective == "mse":
        trainings["MSE refiner"] = refiner
    if config.objective == "drift":
        trainings["drifting refiner"] = refiner.model_copy(
            update={
                "encoders": (*encoders, *_frame_encoder(config)) or None,
                "sampling": sampling_policy(config),
                "features": feature_sets(config),
                "temperatures": config.temperatures,
                "normalization": f"{scale}; {FIELD_SCALE}",
                "loss": drifting_loss_in_words(config),
            }
        )
    return trainings


def _trained(config: ClipConfig) -> str:
    if config.backbone == "tokens":
        return "refiner of clips, all weights: a transformer over the tokens of all frames, from random weights"
    blocks = "all weights" if config.train_blocks == "full" else f"a LoRA of rank {config.lora_rank} on its blocks"
    return f"refiner of clips: the Wan DiT of {config.ckpt_root or 'MicroWan'}, {blocks}"


def _quantizer(config: ClipConfig) -> QuantizerFacts:
    method = str(config.codebook) if config.codebook is not None else "k-means of prompts with keyframes"
    return QuantizerFacts(method=method, num_classes=config.num_pseudo_classes)


def _encoders_of_data(data: ClipData) -> tuple[EncoderFacts, ...]:
    """What made the numbers in the shards."""
    manifest = data.manifest
    if manifest is None:
        return (EncoderFacts(name="VAE", checkpoint="not stated by the shards", frozen=True),)
    made = {"VAE": manifest.vae, "text encoder": manifest.text_encoder if data.text_width is not None else None}
    return tuple(
        EncoderFacts(name=name, checkpoint=f"fingerprint {fingerprint}", frozen=True)
        for name, fingerprint in made.items()
        if fingerprint is not None
    )


def _frame_encoder(config: ClipConfig) -> tuple[EncoderFacts, ...]:
    if not compares_frames(config):
        return ()
    checkpoint = str(config.feature_checkpoint or "trained by this run first")
    return (EncoderFacts(name="features: autoencoder of frames", checkpoint=checkpoint, frozen=True),)
