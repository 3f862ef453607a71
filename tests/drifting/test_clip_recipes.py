"""The recipes for the Wan-synth clips: they fit each other and the document's numbers, and train when shrunken."""

import math
import re
from pathlib import Path

import pytest
import torch

from latentloom.drifting.clips.classes import make_classes
from latentloom.drifting.clips.config import ClipConfig
from latentloom.drifting.clips.corruption import Keyframes
from latentloom.drifting.clips.data import load_clips
from latentloom.drifting.clips.fitted_warper import make_keyframes
from latentloom.drifting.clips.frame_encoder import make_frame_encoder
from latentloom.drifting.clips.shard_writer import ShardWriter
from latentloom.drifting.clips.train import train_clip_refiner
from latentloom.drifting.idle_settings import idle_settings
from latentloom.drifting.train import CURVE_NAME, effective_batch
from latentloom.runs import load_config
from latentloom.training import read_curve

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
TOKENS, WAN = RECIPES / "clips_drifting.toml", RECIPES / "clips_wan_blocks.toml"


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """Sixteen smooth clips of latents [16, 9, 4, 4] with prompts of MicroWan's text width."""
    folder = tmp_path_factory.mktemp("shards") / "all"
    generator = torch.Generator().manual_seed(0)
    with ShardWriter(folder, space="latent", frames="each", source="test") as writer:
        for number in range(16):
            ends = torch.randn(2, 16, 1, 4, 4, generator=generator)
            time = torch.linspace(0, 1, 9).view(1, 9, 1, 1)
            text = torch.randn(3, 128, generator=generator)
            writer.write(f"{number:03}", torch.lerp(ends[0], ends[1], time**2), text, "a clip")
    return folder


@pytest.mark.parametrize("path", [TOKENS, WAN], ids=["tokens", "wan"])
def test_a_recipe_states_the_line_that_launches_it(path):
    line = (
        f"torchrun --nproc_per_node 8 --no-python latentloom drift train --config recipes/{path.name} --out_dir runs/"
    )
    assert f"#   {line}" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", [TOKENS, WAN], ids=["tokens", "wan"])
def test_no_setting_of_a_recipe_is_without_effect(path):
    assert idle_settings(load_config(ClipConfig, path)) == []


@pytest.mark.parametrize("path", [TOKENS, WAN], ids=["tokens", "wan"])
def test_the_batch_and_the_given_frames_are_those_that_the_recipe_states(path):
    config, text = load_config(ClipConfig, path), path.read_text(encoding="utf-8")
    assert 8 * effective_batch(config) == int(re.findall(r"= (\d+) clips", text)[0])
    masks = Keyframes(config, 21).draw_holes(1, torch.Generator()).masks
    assert masks.sum(dim=2).flatten().tolist() == [9, 5, 3, 2]
    assert "9, 5, 3 and 2 given frames of 21" in text


def test_both_recipes_see_the_same_clips_classes_and_features():
    tokens, wan = load_config(ClipConfig, TOKENS), load_config(ClipConfig, WAN)
    for name in ("data_root", "held_out_share", "split_seed", "codebook", "feature_checkpoint", "num_levels"):
        assert getattr(tokens, name) == getattr(wan, name)


def test_the_classes_are_the_1024_of_the_document_with_512_to_fall_back_on():
    text = TOKENS.read_text(encoding="utf-8")
    config = load_config(ClipConfig, TOKENS)
    assert config.feature_checkpoint is not None
    assert f'--data-root "{config.data_root}" --num-classes 1024 --fallback 512 --out {config.codebook}\n' in text
    assert f"--held_out_share {config.held_out_share} --out_dir {config.feature_checkpoint.parent}\n" in text


@pytest.mark.parametrize("path", [TOKENS, WAN], ids=["tokens", "wan"])
def test_a_shrunken_recipe_trains(path, shards, tmp_path):
    small: dict[str, object] = {"data_root": shards, "held_out_share": 0.25, "codebook": None, "num_pseudo_classes": 2}
    small |= {"feature_checkpoint": None, "feature_mae_steps": 2, "num_levels": 3, "n_classes_step": 1, "grad_accum": 1}
    small |= {"steps": 2, "warmup": 1, "log_every": 1, "save_every": 2, "device": "cpu", "n_gen_per_class": 2}
    small |= {"width": 8, "depth": 1, "num_heads": 2} if path == TOKENS else {"ckpt_root": None, "lora_rank": 2}
    config = ClipConfig.model_validate(load_config(ClipConfig, path).model_dump(exclude_unset=True) | small)
    device = torch.device("cpu")
    classes, data = make_classes(config, load_clips(config, device), tmp_path / "classes")
    encoder = make_frame_encoder(config, data, tmp_path / "features", device)
    (tmp_path / "run").mkdir()
    keyframes = make_keyframes(config, data, tmp_path / "interpolation", device)
    train_clip_refiner(data, classes, keyframes, encoder, config, 0, tmp_path / "run", device)
    losses = [line["loss"] for line in read_curve(tmp_path / "run" / CURVE_NAME)]
    assert len(losses) == 2
    assert all(math.isfinite(loss) and loss > 0 for loss in losses)
