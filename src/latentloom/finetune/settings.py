"""Settings that only make sense for a certain model, held against the model they are for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from latentloom.errors import ConfigError
from latentloom.finetune.config import FinetuneConfig
from latentloom.wan.facts import KNOWN, ModelFacts


@dataclass(frozen=True)
class FittedSettings:
    """Settings that fit a model.

    Attributes:
        config: as they are used.
        changes: what was changed to fit, in words.
    """

    config: FinetuneConfig
    changes: tuple[str, ...]


def fit_to_model(config: FinetuneConfig, facts: ModelFacts, num_text_blocks: int, num_blocks: int) -> FittedSettings:
    """The settings for this model; what it cannot do is refused.

    The recipes are written for Wan2.2-TI2V-5B. MicroWan stands for it with fewer blocks: numbers of blocks that
    MicroWan does not have become the same share of its own, and the change is named.

    Raises:
        ConfigError: a setting that this model cannot take.
    """
    changes: list[str] = []
    if facts.key == "micro":
        config = _shrunk(config, num_text_blocks, num_blocks, changes)
    _check_model(config, facts)
    if config.blocks_to_swap > num_blocks - 2:
        raise ConfigError(
            f"blocks_to_swap = {config.blocks_to_swap} is more than {facts.title} allows with its {num_blocks} blocks; "
            f"use at most {num_blocks - 2}"
        )
    if config.model.text_train_blocks > num_text_blocks:
        raise ConfigError(
            f"model.text_train_blocks = {config.model.text_train_blocks}, and the text encoder has {num_text_blocks} "
            "blocks; use at most that, or 0 for all of it"
        )
    return FittedSettings(config, tuple(changes))


def idle_settings(config: FinetuneConfig, facts: ModelFacts) -> list[str]:
    """Settings that do nothing beside the others, each in one line."""
    model, aug = config.model, config.model.caption_aug
    by_default = 1 if facts.key == "micro" and config.pipeline_stages == 1 else 0
    num_samples = by_default if config.sample_every_n_epochs is None else config.sample_every_n_epochs
    idle = {
        "disable_block_swap_for_eval = true has no effect with blocks_to_swap = 0": (
            config.disable_block_swap_for_eval and config.blocks_to_swap == 0
        ),
        "sample_prompts has no effect without samples; set sample_every_n_epochs": (
            bool(config.sample_prompts) and num_samples == 0
        ),
        "eval_every_n_epochs has no effect with eval_share = 0": config.eval_every_n_epochs > 1
        and not config.eval_share,
        "model.sigmoid_scale has no effect on uniform noise levels": (
            model.sigmoid_scale != 1 and model.timestep_sample_method == "uniform"
        ),
        "model.caption_aug.enable = true has no effect with trim_prob = 0": aug.enable and aug.trim_prob == 0,
    }
    return [line for line, is_idle in idle.items() if is_idle]


def experts_to_train(config: FinetuneConfig, facts: ModelFacts) -> list[str | None]:
    """The experts that the settings name, one after the other; [None] for a model that is one transformer.

    Raises:
        ConfigError: an expert of a model that has none, or none of a model that has two.
    """
    chosen = config.model.experts
    if not facts.experts:
        if chosen is not None:
            raise ConfigError(f"model.experts = {chosen!r} is for a model of two experts, and {facts.title} is one")
        return [None]
    if chosen is None:
        raise ConfigError(f'{facts.title} is two experts; set model.experts to "high", "low" or "both"')
    return list(facts.experts) if chosen == "both" else [chosen]


def experts_from(experts: Sequence[str | None], run: str | None) -> Sequence[str | None]:
    """The experts that are left to train when a run is resumed by name: its own and those that come after."""
    places = [place for place, expert in enumerate(experts) if run and expert and f"-{expert}_noise" in run]
    return experts[places[0] :] if places else experts


def noise_range(facts: ModelFacts, expert: str | None) -> tuple[float, float]:
    """The noise levels that an expert is in charge of."""
    if expert is None or facts.boundary is None:
        return 0.0, 1.0
    return (facts.boundary, 1.0) if expert == "high" else (0.0, facts.boundary)


def _check_model(config: FinetuneConfig, facts: ModelFacts) -> None:
    if config.model.first_frame_prob > 0 and facts.key not in ("ti2v-5b", "micro"):
        raise ConfigError(
            f"model.first_frame_prob is for Wan2.2-TI2V-5B, which takes a timestep per token; {facts.title} does not: "
            "set it to 0"
        )
    if facts.experts and config.sample_every_n_epochs:
        raise ConfigError(
            f"sample_every_n_epochs needs both experts of {facts.title} at once; set it to 0, and use "
            "`latentloom generate --lora` afterwards"
        )


def _shrunk(config: FinetuneConfig, num_text_blocks: int, num_blocks: int, changes: list[str]) -> FinetuneConfig:
    source = KNOWN["ti2v-5b"]
    assert source.transformer is not None
    assert source.text_encoder is not None
    its_blocks, its_text_blocks = source.transformer.num_layers, source.text_encoder.num_layers

    def note(key: str, before: object, after: object) -> None:
        changes.append(f"{key} = {before} of {source.title}'s blocks is {after} of MicroWan's")

    if num_blocks - 2 < config.blocks_to_swap <= its_blocks - 2:
        fewer = min(num_blocks - 2, max(1, config.blocks_to_swap * num_blocks // its_blocks))
        note("blocks_to_swap", config.blocks_to_swap, fewer)
        config = config.model_copy(update={"blocks_to_swap": fewer})
    blocks = config.adapter.train_blocks_range if config.adapter is not None else None
    if config.adapter is not None and blocks is not None and num_blocks <= blocks[1] < its_blocks:
        scaled = (blocks[0] * num_blocks // its_blocks, blocks[1] * num_blocks // its_blocks)
        note("adapter.train_blocks_range", list(blocks), list(scaled))
        adapter = config.adapter.model_copy(update={"train_blocks_range": scaled})
        config = config.model_copy(update={"adapter": adapter})
    count = config.model.text_train_blocks
    if num_text_blocks < count <= its_text_blocks:
        fewer = max(1, count * num_text_blocks // its_text_blocks)
        note("model.text_train_blocks", count, fewer)
        config = config.model_copy(update={"model": config.model.model_copy(update={"text_train_blocks": fewer})})
    return config
