"""MicroWan's training stages: what each leaves behind, and that an interruption leaves no trace."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from latentloom.errors import CheckpointError
from latentloom.micro import train_text, train_transformer, train_vae
from latentloom.micro.attributes import split
from latentloom.micro.config import BuildConfig
from latentloom.micro.latents import encode_world, load_latents, load_trained_vae
from latentloom.micro.train_transformer import with_noise
from latentloom.micro.train_vae import encode_mean, make_vae
from latentloom.micro.world import draw_clips
from latentloom.tensors import TextEmbeddings
from latentloom.training import read_curve


class InterruptionError(Exception):
    pass


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Runs a training until the optimizer would take the given step, as a killed process would end there."""

    def until(module, step: int, train: Callable[[], None]) -> None:
        take_step, taken = module.take_step, []

        def take_or_stop(*arguments) -> None:
            if len(taken) == step:
                raise InterruptionError
            taken.append(step)
            take_step(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(module, "take_step", take_or_stop)
            with pytest.raises(InterruptionError):
                train()

    return until


@pytest.fixture
def before_transformer(tiny_recipe: BuildConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the last stage starts from."""
    monkeypatch.setattr(torch.distributed, "barrier", lambda: None)
    folder = new_folder(tmp_path, "before")
    train_vae.train_vae(0, tiny_recipe.vae, tiny_recipe.seed, folder)
    train_text.train_text(0, tiny_recipe.text, tiny_recipe.seed, folder)
    for rank in range(2):
        encode_world(rank, 64, tiny_recipe.vae, tiny_recipe.seed, folder)
    return folder


def new_folder(tmp_path: Path, name: str) -> Path:
    (tmp_path / name).mkdir()
    return tmp_path / name


def copy_of(folder: Path, name: str) -> Path:
    target = new_folder(folder.parent, name)
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def assert_same_tensors(first: Path, second: Path) -> None:
    a, b = load_file(first), load_file(second)
    assert a.keys() == b.keys()
    assert [key for key in a if not torch.equal(a[key], b[key])] == []


def without_seconds(path: Path) -> list[dict[str, float]]:
    return [{key: value for key, value in line.items() if key != "seconds"} for line in read_curve(path)]


@pytest.mark.parametrize("step", [0, 1, 2, 3])  # two steps on crops, two on full clips
def test_an_interrupted_vae_training_ends_as_an_uninterrupted_one(tiny_recipe, tmp_path, interrupt, step: int):
    whole, parts = new_folder(tmp_path, "whole"), new_folder(tmp_path, "parts")
    train_vae.train_vae(0, tiny_recipe.vae, 0, whole)
    interrupt(train_vae, step, lambda: train_vae.train_vae(0, tiny_recipe.vae, 0, parts))
    assert not (parts / "vae.safetensors").exists()
    assert len(read_curve(parts / "vae.jsonl")) == step
    train_vae.train_vae(0, tiny_recipe.vae, 0, parts)
    assert_same_tensors(whole / "vae.safetensors", parts / "vae.safetensors")
    assert_same_tensors(whole / "vae_state.safetensors", parts / "vae_state.safetensors")
    assert without_seconds(whole / "vae.jsonl") == without_seconds(parts / "vae.jsonl")


@pytest.mark.parametrize("step", [0, 1, 3])
def test_an_interrupted_dit_training_ends_as_an_uninterrupted_one(
    tiny_recipe, before_transformer: Path, interrupt, step: int
):
    whole, parts = copy_of(before_transformer, "whole"), copy_of(before_transformer, "parts")
    train_transformer.train_transformer(0, tiny_recipe, whole)
    interrupt(train_transformer, step, lambda: train_transformer.train_transformer(0, tiny_recipe, parts))
    assert not (parts / "transformer.safetensors").exists()
    train_transformer.train_transformer(0, tiny_recipe, parts)
    assert_same_tensors(whole / "transformer.safetensors", parts / "transformer.safetensors")
    assert without_seconds(whole / "transformer.jsonl") == without_seconds(parts / "transformer.jsonl")


def test_a_run_between_two_checkpoints_repeats_the_steps_that_were_lost(tiny_recipe, tmp_path, interrupt):
    seldom = tiny_recipe.vae.model_copy(update={"save_every": 2})
    whole, parts = new_folder(tmp_path, "whole"), new_folder(tmp_path, "parts")
    train_vae.train_vae(0, seldom, 0, whole)
    interrupt(train_vae, 3, lambda: train_vae.train_vae(0, seldom, 0, parts))
    assert [line["step"] for line in read_curve(parts / "vae.jsonl")] == [0, 1, 2]
    train_vae.train_vae(0, seldom, 0, parts)
    assert_same_tensors(whole / "vae.safetensors", parts / "vae.safetensors")
    assert [line["step"] for line in read_curve(parts / "vae.jsonl")] == [0, 1, 2, 3]


def test_a_training_follows_from_its_seed(tiny_recipe, tmp_path):
    folders = [new_folder(tmp_path, name) for name in ("first", "again", "other")]
    for folder, seed in zip(folders, (0, 0, 1), strict=True):
        train_text.train_text(0, tiny_recipe.text, seed, folder)
    first, again, other = (load_file(folder / "text.safetensors") for folder in folders)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_the_encoder_rests_while_full_clips_are_trained_on(tiny_recipe, tmp_path, interrupt):
    folder = new_folder(tmp_path, "vae")
    interrupt(train_vae, 2, lambda: train_vae.train_vae(0, tiny_recipe.vae, 0, folder))
    after_crops = load_file(folder / "vae_state.safetensors")
    train_vae.train_vae(0, tiny_recipe.vae, 0, folder)
    after_clips = load_file(folder / "vae_state.safetensors")
    weights = [key for key in after_crops if key.startswith("vae/")]
    moved = [key for key in weights if not torch.equal(after_crops[key], after_clips[key])]
    assert moved
    assert all(key.startswith(("vae/decoder.", "vae/post_quant_conv.")) for key in moved)


def test_the_state_of_another_model_is_refused(tiny_recipe, tmp_path):
    folder = new_folder(tmp_path, "narrow")
    train_vae.train_vae(0, tiny_recipe.vae, 0, folder)
    wider = tiny_recipe.vae.model_copy(update={"base_dim": 8})
    with pytest.raises(CheckpointError, match="another run"):
        train_vae.train_vae(0, wider, 0, folder)


def test_the_dit_is_trained_and_the_encoder_stays_as_it_was(tiny_recipe, before_transformer: Path):
    before = (before_transformer / "text.safetensors").read_bytes()
    train_transformer.train_transformer(0, tiny_recipe, before_transformer)
    assert (before_transformer / "text.safetensors").read_bytes() == before
    after = load_file(before_transformer / "transformer.safetensors")
    assert {name.partition("/")[0] for name in after} == {"transformer", "step"}
    assert after["transformer/proj_out.weight"].abs().max() > 0  # it started at zero


def test_the_dit_is_trained_on_what_the_encoder_learned_and_on_noisy_words(tiny_recipe, before_transformer: Path):
    other_words, exact_words = copy_of(before_transformer, "other"), copy_of(before_transformer, "exact")
    train_text.train_text(0, tiny_recipe.text, tiny_recipe.seed + 1, other_words)
    exact = tiny_recipe.model_copy(
        update={"transformer": tiny_recipe.transformer.model_copy(update={"text_noise": 0.0})}
    )
    recipes = {before_transformer: tiny_recipe, other_words: tiny_recipe, exact_words: exact}
    trained = []
    for folder, recipe in recipes.items():
        train_transformer.train_transformer(0, recipe, folder)
        trained.append(load_file(folder / "transformer.safetensors")["transformer/proj_out.weight"])
    assert not torch.equal(trained[0], trained[1])
    assert not torch.equal(trained[0], trained[2])


def words_of_all_lengths() -> TextEmbeddings:
    """300 tokens each of length 0.1, 8 and 300, and one of length 0; the second prompt is empty."""
    source = torch.Generator().manual_seed(0)
    tokens = torch.nn.functional.normalize(torch.randn(900, 64, generator=source), dim=-1)
    lengths = torch.tensor([0.1, 8.0, 300.0]).repeat_interleave(300)[:, None]
    return TextEmbeddings(torch.cat([tokens * lengths, torch.zeros(1, 64)]), torch.tensor([400, 0, 501]))


@pytest.mark.parametrize("level", [0.05, 0.15, 1.0])
def test_noise_is_as_long_as_its_share_of_each_token_and_lies_in_no_direction(level: float):
    text = words_of_all_lengths()
    noisy = with_noise(text, level, torch.Generator().manual_seed(1))
    assert torch.equal(noisy.lengths, text.lengths)
    added = (noisy.tokens - text.tokens)[:-1]
    relative = added / text.tokens[:-1].norm(dim=-1, keepdim=True)
    for part in relative.split(300):
        assert part.square().sum(dim=-1).mean().sqrt() == pytest.approx(level, rel=0.03)
    assert relative.mean(dim=0).norm() < 3 * level / math.sqrt(len(relative))
    assert torch.equal(noisy.tokens[-1], torch.zeros(64))


def test_noise_of_level_zero_changes_nothing_and_noise_follows_from_its_generator():
    text = words_of_all_lengths()
    assert torch.equal(with_noise(text, 0.0, torch.Generator()).tokens, text.tokens)
    first, again, other = (with_noise(text, 0.15, torch.Generator().manual_seed(seed)).tokens for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_encoded_world_is_that_of_the_training_split(tiny_recipe, before_transformer: Path):
    latents, shown = load_latents(before_transformer)
    assert latents.shape == (64, 4, 3, 6, 6)
    assert set(shown) <= set(split("train"))
    halves = latents.split(32)
    assert not torch.equal(*halves)  # each process draws its own
    vae = load_trained_vae(tiny_recipe.vae, before_transformer)
    assert not vae.training
    assert not any(parameter.requires_grad for parameter in vae.parameters())


def test_an_untrained_vae_compresses_a_clip_by_four_eight_and_eight(tiny_recipe):
    vae = make_vae(tiny_recipe.vae)
    clips = draw_clips(split("train")[:2], torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        posterior = vae.encode(clips, return_dict=False)[0]
        mean = encode_mean(vae, clips)
        assert vae.decode(mean, return_dict=False)[0].shape == clips.shape
    assert mean.shape == (2, 4, 3, 6, 6)
    assert torch.equal(mean, posterior.mean)
    assert posterior.std.mean() == pytest.approx(0.1, rel=0.5)
