"""A setting that was given and changes nothing is named once, with what takes its effect away; the others are not."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentloom.bridge.config import BridgeConfig
from latentloom.bridge.idle_settings import idle_settings
from latentloom.runs import load_config

Sections = Mapping[str, Any]
RECIPES = sorted((Path(__file__).resolve().parents[2] / "recipes").glob("*bridge*.toml"))

PREFIX = {"model.num_prefix_tokens": 2, "model.prefix_hidden": 8, "model.unconditional_share": 0.5}
HEAD = {"model.encoder_layers": (1,), "model.encoder_hidden": 8, "model.encoder_dropout": 0.0}
ADAPTER = {
    "model.lora.alpha": 4,
    "model.lora.dropout": 0.1,
    "model.lora.targets": ("q_proj",),
    "training.lora_lr": 0.1,
}
WEIGHTS = {"training.text_loss_weight": 2.0, "training.latent_loss_weight": 2.0}
DRAWS = {"evaluation.temperature": 0.5, "evaluation.top_p": 0.5}
DECODING = {"evaluation.best_of": 2, "evaluation.max_new_tokens": 8, **DRAWS}
T2L, L2T = {"training.task": "t2l"}, {"training.task": "l2t"}

#: What takes the effect of which settings away, and how it is said.
CASES: list[tuple[Sections, Sections, str]] = [
    (T2L, {**PREFIX, **WEIGHTS, **DECODING, "evaluation.encoder": "minilm"}, "training.task = 't2l'"),
    (T2L, {**ADAPTER, "model.lora.rank": 4}, "training.task = 't2l' and model.lora.encode = false"),
    (L2T, {**HEAD, **WEIGHTS, "model.lora.encode": True}, "training.task = 'l2t'"),
    (
        L2T,
        {"training.t2l_lr": 0.1, "training.t2l_batch_size": 8, "training.cache_features": True},
        "training.task = 'l2t'",
    ),
    ({"model.lora.rank": 0}, {**ADAPTER, "model.lora.encode": True}, "model.lora.rank = 0"),
    ({"training.cache_features": False}, {"training.t2l_batch_size": 8}, "training.cache_features = false"),
    (
        {},
        {"model.revision": "main", "model.pretrained_local_dir": Path("models"), "model.trust_remote_code": False},
        "model.pretrained_model_name_or_path = 'smollm2'",
    ),
    ({"data.train_json": "a.json", "data.val_json": "b.json"}, {"data.held_out": 9}, "data.val_json"),
    (
        {"data.train_json": "a.json"},
        {"data.encoder": "minilm", "data.text_field": "gloss", "data.num_texts": 9},
        "data.train_json",
    ),
    ({"data.texts": Path("a.txt")}, {"data.max_bad_share": 0.5}, "data.texts"),
    ({"evaluation.num_pairs": 0}, {**DECODING, "evaluation.encoder": "minilm"}, "evaluation.num_pairs = 0"),
    ({"evaluation.best_of": 1}, DRAWS, "evaluation.best_of = 1"),
]

#: Every setting that a case names, with a value for it.
SETTINGS = {name: value for _, idle, _ in CASES for name, value in idle.items()}


def config(*settings: Sections) -> BridgeConfig:
    """The configuration of dotted settings; later ones win."""
    sections: dict[str, Any] = {}
    for name, value in {key: value for some in settings for key, value in some.items()}.items():
        *path, last = name.split(".")
        place = sections
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return BridgeConfig.model_validate(sections)


def named(lines: list[str]) -> set[str]:
    """The settings that lines begin with."""
    return {line.split(" has no effect with ")[0] for line in lines}


@pytest.mark.parametrize("task", ["t2l", "l2t", "joint"])
def test_what_is_left_to_its_default_is_never_named(task: str):
    assert idle_settings(config({"training.task": task})) == []
    assert idle_settings(BridgeConfig()) == []


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_gives_nothing_that_is_idle(recipe: Path):
    assert idle_settings(load_config(BridgeConfig, recipe)) == []


@pytest.mark.parametrize(
    ("cause", "name", "value", "said"),
    [(cause, name, value, said) for cause, idle, said in CASES for name, value in idle.items()],
)
def test_each_idle_setting_is_named_in_one_line_with_its_cause(cause: Sections, name: str, value: Any, said: str):
    assert idle_settings(config(cause, {name: value})) == [f"{name} has no effect with {said}"]


@pytest.mark.parametrize(("cause", "idle", "said"), CASES)
def test_several_take_a_line_each(cause: Sections, idle: Sections, said: str):
    lines = idle_settings(config(cause, idle))
    assert lines == [f"{name} has no effect with {said}" for name in sorted(idle)]


@pytest.mark.parametrize(
    "effective",
    [
        {"training.task": "joint", **PREFIX, **HEAD, **ADAPTER, **WEIGHTS, **DECODING, "model.lora.encode": True},
        {"training.task": "joint", "training.t2l_lr": 0.1, "training.t2l_batch_size": 8},
        {**L2T, **PREFIX, **ADAPTER, **DECODING, "model.lora.rank": 4, "evaluation.encoder": "minilm"},
        {**T2L, **HEAD, **ADAPTER, "model.lora.encode": True, "model.lora.rank": 4, "training.t2l_lr": 0.1},
        {**T2L, "training.t2l_batch_size": 8, "training.cache_features": True},
        {"data.texts": Path("a.txt"), "data.text_field": "gloss", "data.num_texts": 9, "data.held_out": 9},
        {"data.texts": Path("a.txt"), "data.val_json": "b.json", "data.max_bad_share": 0.5},  # of the held-out ones
        {"data.train_json": "a.json", "data.max_bad_share": 0.5, "data.held_out": 9},
        {"model.pretrained_model_name_or_path": "owner/model", "model.revision": "main", "model.trust_remote_code": 0},
    ],
)
def test_what_has_an_effect_is_not_named(effective: Sections):
    assert idle_settings(config(effective)) == []


@given(causes=st.sets(st.integers(0, len(CASES) - 1), max_size=3), names=st.sets(st.sampled_from(sorted(SETTINGS))))
def test_only_settings_that_were_given_are_named_and_more_causes_never_hide_one(causes: set[int], names: set[str]):
    switches = [CASES[index][0] for index in sorted(causes)]
    taken = {name for some in switches for name in some} | {"data.train_json", "data.texts"}
    switches = [some for some in switches if "data.texts" not in some]  # beside pairs it is refused
    idle = {name: SETTINGS[name] for name in names - taken}
    lines = idle_settings(config(*switches, idle))
    assert named(lines) <= idle.keys() | taken
    for cause in switches:
        if not cause.keys() & {"training.task"}:  # of which the last one counts
            assert named(idle_settings(config(cause, idle))) & idle.keys() <= named(lines)
