"""What a fine-tuning is, for the run's record."""

from __future__ import annotations

from latentloom.finetune.config import FinetuneConfig
from latentloom.finetune.session import Session
from latentloom.runs import TrainingFacts
from latentloom.runs.experiment import DataFacts, EncoderFacts


def finetune_trainings(session: Session) -> dict[str, TrainingFacts]:
    """The facts of a session's training, whose batch is the largest that its sizes of clips give."""
    config, plan = session.config, session.plan
    facts = TrainingFacts(
        data=DataFacts(
            pattern=str(config.dataset),
            shards=None,
            num_samples=len(plan.items),
            num_held_out=len(session.held_out),
        ),
        trained="; ".join(_trained(config)),
        encoders=_encoders(session),
        quantizer=None,
        sampling=None,
        features=None,
        temperatures=None,
        normalization="latents standardised per channel by the VAE's mean and deviation",
        loss=_loss(session),
        batch_size=max(plan.global_batch(plan.sizes[item]) for item in plan.items),
        steps=session.num_steps,
    )
    return {"encoder" if config.model.train_text_encoder else "lora": facts}


def _trained(config: FinetuneConfig) -> list[str]:
    parts = []
    if config.model.train_text_encoder:
        count = config.model.text_train_blocks
        parts.append(f"text encoder, {f'the top {count} blocks' if count else 'all of it'}")
    if config.adapter is not None:
        adapter = config.adapter
        blocks = "all blocks" if adapter.train_blocks_range is None else f"blocks {list(adapter.train_blocks_range)}"
        parts.append(f"LoRA of rank {adapter.rank} on {', '.join(adapter.targets)} in {blocks} of the DiT")
    return parts


def _encoders(session: Session) -> tuple[EncoderFacts, ...]:
    model, checkpoint = session.config.model, f"{session.facts.title}, {session.root}"
    expert = f", {session.expert}-noise expert" if session.expert else ""
    return (
        EncoderFacts(
            name="text encoder",
            checkpoint=str(model.text_encoder_path or checkpoint),
            frozen=not model.train_text_encoder,
        ),
        EncoderFacts(name=f"DiT{expert}", checkpoint=checkpoint, frozen=model.freeze_transformer),
        EncoderFacts(name="VAE", checkpoint=checkpoint, frozen=True),
    )


def _loss(session: Session) -> str:
    model, levels = session.config.model, session.maker.levels
    drawn = "uniform" if levels.method == "uniform" else f"logit-normal of width {levels.scale:g}"
    text = (
        f"flow matching: mean squared error of the velocity; noise levels {drawn}, shift {levels.shift:g}, "
        f"from {levels.low:g} to {levels.high:g}"
    )
    weight = model.text_anchor_weight
    return f"{text} + {weight:g} anchor to the encoder before training" if weight else text
