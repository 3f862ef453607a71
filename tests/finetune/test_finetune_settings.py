"""Settings that cannot train are one line that names the keys; recipes are the document's; MicroWan gets its share."""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from latentloom.errors import ConfigError, FileError
from latentloom.finetune.config import FinetuneConfig
from latentloom.finetune.settings import experts_from, experts_to_train, fit_to_model, noise_range
from latentloom.runs import load_config, to_toml
from latentloom.wan import facts

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
NAMES = ("wan22_dit_lora_translator", "wan22_te_ft")
ENCODER = ("model.cache_text_embeddings=false", "model.train_text_encoder=true")
LORA = ("adapter.rank=4",)


def load(*overrides: str) -> FinetuneConfig:
    return load_config(FinetuneConfig, None, ("output_dir=runs", "dataset=clips", *overrides))


def fit(config: FinetuneConfig, model: str = "micro") -> tuple[FinetuneConfig, tuple[str, ...]]:
    """Fitted to a model with as many blocks as it has; MicroWan has 4 in its encoder and 6 in its transformer."""
    known = facts.get(model)
    blocks = (
        (known.text_encoder.num_layers, known.transformer.num_layers)
        if known.text_encoder is not None and known.transformer is not None
        else (4, 6)
    )
    fitted = fit_to_model(config, known, *blocks)
    return fitted.config, fitted.changes


@pytest.mark.parametrize(
    ("overrides", "keys"),
    [
        (("model.train_text_encoder=true",), ("model.train_text_encoder", "model.cache_text_embeddings")),
        ((), ("[adapter]", "model.train_text_encoder")),
        ((*LORA, "model.freeze_transformer=false"), ("model.freeze_transformer", "[adapter]")),
        ((*LORA, "model.text_train_blocks=2"), ("model.text_train_blocks", "model.train_text_encoder")),
        ((*LORA, "model.text_anchor_weight=0.1"), ("model.text_anchor_weight", "model.train_text_encoder")),
        ((*LORA, "model.text_dropout=0.1"), ("model.text_dropout", "model.train_text_encoder")),
        ((*LORA, "model.save_text_encoder_full=true"), ("model.save_text_encoder_full", "model.train_text_encoder")),
        ((*LORA, "optimizer.lr_te=1e-5"), ("optimizer.lr_te", "model.train_text_encoder")),
        ((*ENCODER, "model.save_diffusion_model=true"), ("model.save_diffusion_model", "[adapter]")),
        ((*ENCODER, "blocks_to_swap=2"), ("blocks_to_swap", "[adapter]")),
        ((*ENCODER, "optimizer.lr_dit=1e-5"), ("optimizer.lr_dit", "[adapter]")),
        ((*ENCODER, *LORA, "blocks_to_swap=2"), ("blocks_to_swap", "model.train_text_encoder")),
        (
            (*LORA, "model.caption_aug.enable=true", 'model.caption_aug.keywords=["red"]'),
            ("model.caption_aug.enable", "model.cache_text_embeddings"),
        ),
        ((*LORA, "pipeline_stages=2", "sample_every_n_epochs=1"), ("sample_every_n_epochs", "pipeline_stages")),
        ((*ENCODER, "model.caption_aug.enable=true"), ("enable", "keywords")),
    ],
)
def test_settings_that_contradict_each_other_are_one_line_with_both_keys(
    overrides: tuple[str, ...], keys: tuple[str, str]
) -> None:
    with pytest.raises(ConfigError) as refusal:
        load(*overrides)
    message = str(refusal.value)
    assert "\n" not in message
    assert all(key in message for key in keys), message


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("epoch=3", "unknown setting 'epoch'; the nearest is 'epochs'"),
        ("adapter.ranks=3", "unknown setting 'adapter.ranks'; the nearest is 'adapter.rank'"),
        ("model.caption_aug.trim=1", "the nearest is 'model.caption_aug.trim_prob'"),
        ("epochs=many", "epochs = 'many'"),
        ("epochs=0", "epochs = 0"),
        ("optimizer.type=sgd", "optimizer.type = 'sgd'"),
        ("adapter.dropout=1.0", "adapter.dropout = 1.0"),
        ("model.min_t=2", "model.min_t = 2"),
        ("adapter=lora", "adapter = 'lora'"),
    ],
)
def test_unknown_keys_and_wrong_values_are_one_line(override: str, told: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(told)) as refusal:
        load(*LORA, override)
    assert "\n" not in str(refusal.value)


def test_a_file_that_is_missing_or_not_toml_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="give a TOML file"):
        load_config(FinetuneConfig, tmp_path / "none.toml")
    (tmp_path / "broken.toml").write_text("epochs = = 3")
    with pytest.raises(ConfigError, match=r"broken\.toml is not TOML"):
        load_config(FinetuneConfig, tmp_path / "broken.toml")


@pytest.mark.parametrize("overrides", [LORA, ENCODER, (*LORA, *ENCODER, "adapter.train_blocks_range=[2, 3]")])
def test_settings_survive_their_file(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    config = load(*overrides)
    (tmp_path / "config.toml").write_text(to_toml(config))
    assert load_config(FinetuneConfig, tmp_path / "config.toml") == config


def test_micro_wan_gets_its_share_of_the_recipes_blocks() -> None:
    config, changes = fit(load_config(FinetuneConfig, RECIPES / f"{NAMES[0]}.toml"))
    assert config.adapter is not None
    assert config.adapter.train_blocks_range == (4, 5)
    assert config.blocks_to_swap == 4
    assert len(changes) == 2
    assert all("of MicroWan's" in change for change in changes)
    assert {change.split()[0] for change in changes} == {"blocks_to_swap", "adapter.train_blocks_range"}
    top, changes = fit(load(*ENCODER, "model.text_train_blocks=12"))
    assert top.model.text_train_blocks == 2
    assert changes[0].startswith("model.text_train_blocks = 12")


@pytest.mark.parametrize("overrides", [(*LORA, "blocks_to_swap=3", "adapter.train_blocks_range=[0, 5]"), ENCODER])
def test_what_fits_micro_wan_stays(overrides: tuple[str, ...]) -> None:
    config = load(*overrides)
    assert fit(config) == (config, ())


@pytest.mark.parametrize(
    ("overrides", "model", "told"),
    [
        ((*LORA, "blocks_to_swap=29"), "micro", "blocks_to_swap = 29 .* at most 4"),
        ((*LORA, "blocks_to_swap=29"), "ti2v-5b", "blocks_to_swap = 29 .* at most 28"),
        ((*ENCODER, "model.text_train_blocks=25"), "micro", r"model\.text_train_blocks = 25"),
        ((*ENCODER, "model.text_train_blocks=25"), "ti2v-5b", r"model\.text_train_blocks = 25"),
        ((*LORA, "model.first_frame_prob=0.5"), "t2v-a14b", r"model\.first_frame_prob"),
        ((*LORA, "sample_every_n_epochs=1"), "t2v-a14b", "sample_every_n_epochs"),
    ],
)
def test_what_a_model_cannot_do_is_refused(overrides: tuple[str, ...], model: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told) as refusal:
        fit(load(*overrides), model)
    assert "\n" not in str(refusal.value)


def test_larger_models_take_the_recipes_as_they_are() -> None:
    for name in NAMES:
        config = load_config(FinetuneConfig, RECIPES / f"{name}.toml")
        assert fit(config, "ti2v-5b") == (config, ())


def test_experts_are_named_where_there_are_two_and_only_there() -> None:
    two, one = facts.get("t2v-a14b"), facts.get("ti2v-5b")
    assert experts_to_train(load(*LORA, "model.experts=both"), two) == ["high", "low"]
    assert experts_to_train(load(*LORA, "model.experts=low"), two) == ["low"]
    assert experts_to_train(load(*LORA), one) == [None]
    with pytest.raises(ConfigError, match=r'set model\.experts to "high", "low" or "both"'):
        experts_to_train(load(*LORA), two)
    with pytest.raises(ConfigError, match=r"model\.experts = 'high'"):
        experts_to_train(load(*LORA, "model.experts=high"), one)
    assert [noise_range(two, expert) for expert in ("high", "low")] == [(0.875, 1.0), (0.0, 0.875)]
    assert noise_range(one, None) == (0.0, 1.0)


def test_a_resumed_run_leaves_out_the_experts_before_it() -> None:
    both = ["high", "low"]
    assert experts_from(both, None) == both
    assert experts_from(both, "20260101-000000-lora-high_noise") == both
    assert experts_from(both, "20260101-000000-lora-low_noise/global_step5") == ["low"]
    assert experts_from([None], "20260101-000000-lora") == [None]


def leaves(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return found


@pytest.mark.parametrize("name", NAMES)
def test_the_recipes_are_the_documents_but_for_paths(shared: Path, name: str) -> None:
    (document,) = (shared / "specs").glob("001_*.txt")
    blocks = re.findall(r"```toml\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL)
    (block,) = [block for block in blocks if f"configs/{name}.toml" in block]
    expected, recipe = leaves(tomllib.loads(block)), leaves(tomllib.loads((RECIPES / f"{name}.toml").read_text()))
    paths = {"output_dir", "dataset", "model.ckpt_path"}
    assert {key: value for key, value in recipe.items() if key not in paths} == {
        key: value for key, value in expected.items() if key not in paths
    }
    as_it_stands = FinetuneConfig.model_validate(tomllib.loads(block))
    assert as_it_stands.model.ckpt_path == Path("/workspace/ckpts/Wan2.2-TI2V-5B")
