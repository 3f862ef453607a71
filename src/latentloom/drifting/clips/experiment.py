"""What the trainings of a run on clips are, for its record."""

from latentloom.drifting.clips.config import ClipConfig
from latentloom.drifting.clips.data import ClipData, frame_data
from latentloom.drifting.clips.frame_encoder import compares_frames, frame_mae_config
from latentloom.drifting.clips.pixels import vae_root
from latentloom.drifting.clips.shards import find_shards
from latentloom.drifting.experiment import (
    FIELD_SCALE,
    drifting_loss_in_words,
    feature_sets,
    mae_trainings,
    sampling_policy,
)
from latentloom.drifting.frozen_encoder import MAE_BATCH
from latentloom.drifting.representation.codebook import load_codebook
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
        found = mae_trainings(frame_mae_config(config, data), frame_data(data, vae_root(config)), MAE_BATCH)
        for name, facts in found.items():
            about = facts.data.model_copy(update={"shards": _shards(config)})
            trainings[name] = facts.model_copy(update={"data": about, "encoders": _vae(config, data) or None})
    encoders = (*_vae(config, data), *_text_encoder(data))
    scale = "pixels from -1 to 1" if data.space == "pixel" else "latents standardised per channel by the VAE"
    target = "the clip" if config.target == "clean" else "the level with more keyframes"
    refiner = TrainingFacts(
        data=DataFacts(
            pattern=str(config.data_root),
            shards=_shards(config),
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


def _shards(config: ClipConfig) -> str:
    names = [path.name for path in find_shards(config.data_root).paths]
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}, {len(names)} in all"


def _quantizer(config: ClipConfig) -> QuantizerFacts | None:
    """What makes the pseudo-classes; nothing does where all clips are of one."""
    method, number = "k-means of prompts with keyframes", config.num_pseudo_classes
    if config.codebook is not None:
        method, number = str(config.codebook), load_codebook(config.codebook).num_classes
    return QuantizerFacts(method=method, num_classes=number) if number > 1 else None


def _vae(config: ClipConfig, data: ClipData) -> tuple[EncoderFacts, ...]:
    """What made the latents, where the clips are some."""
    if data.space == "pixel":
        return ()
    stated, root = data.manifest.vae if data.manifest is not None else None, vae_root(config)
    checkpoint = f"fingerprint {stated}" if stated is not None else str(root or "not stated by the shards")
    return (EncoderFacts(name="VAE", checkpoint=checkpoint, frozen=True),)


def _text_encoder(data: ClipData) -> tuple[EncoderFacts, ...]:
    """What made the texts, where there are some."""
    if data.text_width is None:
        return ()
    stated = data.manifest.text_encoder if data.manifest is not None else None
    checkpoint = f"fingerprint {stated}" if stated is not None else "not stated by the shards"
    return (EncoderFacts(name="text encoder", checkpoint=checkpoint, frozen=True),)


def _frame_encoder(config: ClipConfig) -> tuple[EncoderFacts, ...]:
    if not compares_frames(config):
        return ()
    checkpoint = str(config.feature_checkpoint or "trained by this run first")
    return (EncoderFacts(name="features: autoencoder of frames", checkpoint=checkpoint, frozen=True),)
