"""What the trainings of a run are, for its record."""

from latentloom.drifting.config import DataConfig, DriftConfig, FieldConfig, MaeConfig
from latentloom.drifting.data import ImageData
from latentloom.drifting.frozen_encoder import MAE_BATCH, trains_encoder
from latentloom.runs import TrainingFacts
from latentloom.runs.experiment import DataFacts, EncoderFacts, SamplingPolicy


def drift_trainings(config: DriftConfig, data: ImageData, batch_size: int) -> dict[str, TrainingFacts]:
    """The facts of every refiner of a run, and of the autoencoder where the run trains one.

    Args:
        config: the settings.
        data: the images.
        batch_size: images per optimizer step, over all processes.
    """
    trainings = {}
    if trains_encoder(config):
        settings = MaeConfig(
            **{name: getattr(config, name) for name in DataConfig.model_fields}, steps=config.feature_mae_steps
        )
        trainings |= mae_trainings(settings, data, MAE_BATCH)
    refiner = TrainingFacts(
        data=_data(config, data),
        trained="refiner of images, all weights: a transformer over patches, from random weights",
        encoders=_latent_vae(config) or None,
        quantizer=None,
        sampling=None,
        features=None,
        temperatures=None,
        normalization=_input_scale(config),
        loss="mean squared error of the refined image",
        batch_size=batch_size,
        steps=config.steps,
    )
    if config.mse_baseline or config.objective == "mse":
        trainings["MSE refiner"] = refiner
    if config.objective == "drift":
        trainings["drifting refiner"] = refiner.model_copy(
            update={
                "encoders": _encoders(config) or None,
                "sampling": sampling_policy(config),
                "features": feature_sets(config),
                "temperatures": config.temperatures,
                "normalization": f"{_input_scale(config)}; {FIELD_SCALE}",
                "loss": drifting_loss_in_words(config),
            }
        )
    return trainings


def mae_trainings(config: MaeConfig, data: ImageData, batch_size: int) -> dict[str, TrainingFacts]:
    """The facts of the training of a masked autoencoder.

    Args:
        config: the settings.
        data: the images.
        batch_size: images per optimizer step, over all processes.
    """
    classifies = config.classify_share > 0 and config.classify_weight > 0
    tail = f" + {config.classify_weight:g} cross-entropy of the labels in the last {config.classify_share:.0%} of steps"
    facts = TrainingFacts(
        data=_data(config, data),
        trained="masked autoencoder, all weights, from random ones",
        encoders=_latent_vae(config) or None,
        quantizer=None,
        sampling=None,
        features=None,
        temperatures=None,
        normalization=_input_scale(config),
        loss=f"mean squared error of the hidden {config.mask_ratio:.0%} of patches" + (tail if classifies else ""),
        batch_size=batch_size,
        steps=config.steps,
    )
    return {"autoencoder": facts}


#: What the field brings to one scale, whatever its features.
FIELD_SCALE = (
    "distances of each feature divided by their weighted mean, the field at each temperature by its root mean square"
)


def sampling_policy(config: FieldConfig) -> SamplingPolicy:
    """Which samples attract a refined one, and which repel it."""
    repelling = ["the other refined samples of its class"]
    if config.drift_n_neg:
        repelling.append(f"{config.drift_n_neg} earlier refined samples of its class")
    if config.drift_n_unc:
        repelling.append(f"{config.drift_n_unc} real samples of any class, weighted by the guidance strength alpha")
    if config.paired:
        repelling[0] = "the refined samples of its class, itself among them"
        return SamplingPolicy(positives="the batch's own real samples of its class", negatives="; ".join(repelling))
    return SamplingPolicy(
        positives=f"{config.drift_n_pos} real samples of its class, from a bank of {config.queue_pos} per class",
        negatives="; ".join(repelling),
    )


def feature_sets(config: FieldConfig) -> tuple[str, ...]:
    """The features that drifting compares, with their weights."""
    of_encoder = []
    for name, field in type(config).model_fields.items():
        if name.startswith("feature_include_") and config.feature_loss_weight and getattr(config, name):
            words = (field.description or name).rstrip(".")
            of_encoder.append(f"{words[0].lower()}{words[1:]}, weight {config.feature_loss_weight:g}")
    weight = config.vanilla_loss_weight
    return (*of_encoder, *([f"the samples themselves, weight {weight:g}"] if weight else []))


def drifting_loss_in_words(config: FieldConfig) -> str:
    """What drifting minimises."""
    alphas = ", ".join(f"{value:g}" for value in config.cfg_alpha_values)
    drawn = f"from {alphas}" if alphas else f"from 1 to {config.cfg_alpha_max:g}"
    return f"drifting loss: mean square of the field, summed over features and temperatures; alpha drawn {drawn}"


def _data(config: DataConfig, data: ImageData) -> DataFacts:
    return DataFacts(
        pattern=str(config.data_root or config.dataset),
        shards=None,
        num_samples=len(data.train),
        num_held_out=len(data.held_out),
    )


def _encoders(config: DriftConfig) -> tuple[EncoderFacts, ...]:
    """The VAE of the latents, and the encoder whose features are compared."""
    encoders = _latent_vae(config)
    if not config.feature_loss_weight:
        return encoders
    kind = config.encoder_kind
    without_file = f"random weights of seed {config.split_seed}" if kind == "resnet" else "trained by this run first"
    checkpoint = str(config.feature_checkpoint or without_file)
    return (*encoders, EncoderFacts(name=f"features: {kind}", checkpoint=checkpoint, frozen=True))


def _latent_vae(config: DataConfig) -> tuple[EncoderFacts, ...]:
    if config.input_space == "pixel":
        return ()
    return (EncoderFacts(name="VAE", checkpoint=str(config.vae_root or "MicroWan"), frozen=True),)


def _input_scale(config: DataConfig) -> str:
    return "pixels from -1 to 1" if config.input_space == "pixel" else "latents standardised per channel by the VAE"
