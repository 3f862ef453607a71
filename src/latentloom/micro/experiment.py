"""What the trainings of MicroWan's recipe are, for the record of a build."""

from latentloom.micro.attributes import split
from latentloom.micro.config import BuildConfig
from latentloom.runs import TrainingFacts
from latentloom.runs.experiment import DataFacts, EncoderFacts

_WORLD = "MicroWan's world, drawn as training goes"


def build_trainings(config: BuildConfig) -> dict[str, TrainingFacts]:
    """The facts of each stage that trains, by the names of their curves."""
    return {"vae": _vae(config), "text": _text(config), "transformer": _transformer(config)}


def samples_seen(config: BuildConfig) -> dict[str, int]:
    """Samples that each stage takes over all its steps."""
    vae, text, transformer = config.vae, config.text, config.transformer
    return {
        "vae": vae.crop_batch * vae.crop_steps + vae.clip_batch * vae.clip_steps,
        "text": text.batch * text.steps,
        "transformer": transformer.batch * transformer.steps,
    }


def _vae(config: BuildConfig) -> TrainingFacts:
    vae, num_samples = config.vae, samples_seen(config)["vae"]
    return TrainingFacts(
        data=DataFacts(pattern=_WORLD, shards=None, num_samples=num_samples, num_held_out=None),
        trained=f"VAE: all weights for {vae.crop_steps} steps on crops, then its decoder for {vae.clip_steps} on clips",
        encoders=None,
        quantizer=None,
        sampling=None,
        features=None,
        temperatures=None,
        normalization="pixels from -1 to 1; weights of pixels to a mean of 1",
        loss=f"L1 + 2 MSE, {1 + vae.object_weight:g} times on the object, + 0.001 mean square of the latents",
        batch_size=max(vae.crop_batch, vae.clip_batch),
        steps=vae.crop_steps + vae.clip_steps,
    )


def _text(config: BuildConfig) -> TrainingFacts:
    text = config.text
    return TrainingFacts(
        data=DataFacts(
            pattern="texts of MicroWan's lexicons, training split, drawn as training goes",
            shards=None,
            num_samples=samples_seen(config)["text"],
            num_held_out=None,
        ),
        trained="text encoder, all weights but the final norm; the head that names words is thrown away",
        encoders=None,
        quantizer=None,
        sampling=None,
        features=None,
        temperatures=None,
        normalization="tokens to a length of sqrt(D / 2) before the head",
        loss=f"cross-entropy of the {text.mask_share:.0%} masked words + {text.kept_weight:g} of the others",
        batch_size=text.batch,
        steps=text.steps,
    )


def _transformer(config: BuildConfig) -> TrainingFacts:
    settings = config.transformer
    return TrainingFacts(
        data=DataFacts(
            pattern=f"MicroWan's world, training split of {len(split('train'))} kinds of clip, encoded once",
            shards=None,
            num_samples=settings.num_clips,
            num_held_out=None,
        ),
        trained="DiT, all weights",
        encoders=(
            EncoderFacts(name="VAE", checkpoint="stage 1 of this build", frozen=True),
            EncoderFacts(name="text encoder", checkpoint="stage 2 of this build", frozen=True),
        ),
        quantizer=None,
        sampling=None,
        features=None,
        temperatures=None,
        normalization="latents standardised per channel by the mean and deviation of all of them",
        loss="flow matching: mean squared error of the velocity; noise levels logit-normal, shift "
        f"{settings.timestep_shift:g}",
        batch_size=settings.batch,
        steps=settings.steps,
    )
