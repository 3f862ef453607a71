"""A recipe of a few steps, and a pipeline that draws what it is asked for."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from latentloom.micro import build
from latentloom.micro.attributes import Attributes
from latentloom.micro.config import BuildConfig, TextConfig, TransformerConfig, VaeConfig
from latentloom.micro.lexicon import parse
from latentloom.micro.world import draw_clips
from latentloom.tensors import TextEmbeddings, VideoLatents
from latentloom.wan import facts
from latentloom.wan.pipeline import WanPipeline

FULL = Attributes("red", "circle", "small", "still", "black")


@pytest.fixture(scope="session")
def tiny_recipe() -> BuildConfig:
    """The whole recipe in a second: four steps a stage, a few thousand weights, 64 clips."""
    return BuildConfig(
        vae=VaeConfig(
            base_dim=4,
            decoder_base_dim=4,
            latent_channels=4,
            crop_size=16,
            crop_batch=4,
            clip_batch=4,
            crop_steps=2,
            clip_steps=2,
            warmup=1,
            save_every=1,
        ),
        text=TextConfig(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, batch=4, steps=4),
        transformer=TransformerConfig(
            num_heads=2,
            head_dim=12,
            ffn_dim=16,
            num_layers=1,
            freq_dim=16,
            num_clips=64,
            batch=4,
            steps=4,
            warmup=1,
            save_every=1,
        ),
    )


@pytest.fixture
def one_after_another(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces the processes of a build by turns in this one; the names of the stages that ran."""
    return take_turns(monkeypatch)


@pytest.fixture(scope="session")
def built_once(tiny_recipe: BuildConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders `work` and `weights` of a whole tiny build; not to be changed."""
    root = tmp_path_factory.mktemp("build")
    with pytest.MonkeyPatch.context() as monkeypatch:
        ran = take_turns(monkeypatch)
        build.build(tiny_recipe, root / "work", root / "weights")
    assert ran == ["train_vae", "train_text", "encode_world", "train_transformer"]
    return root


@pytest.fixture
def finished_build(built_once: Path, one_after_another: list[str], tmp_path: Path) -> tuple[Path, Path]:
    """Work folder and weights of a whole tiny build, a copy for each test."""
    shutil.copytree(built_once, tmp_path, dirs_exist_ok=True)
    return tmp_path / "work", tmp_path / "weights"


def take_turns(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Encoding needs every process's turn; each other stage runs as rank 0 alone, whose means are its own."""
    ran: list[str] = []

    def launch(run: Callable[..., None], num_processes: int, *arguments: object) -> None:
        ran.append(run.__name__)
        for rank in range(num_processes if run is build.encode_world else 1):
            run(rank, *arguments)

    monkeypatch.setattr(build, "launch_processes", launch)
    monkeypatch.setattr(torch.distributed, "barrier", lambda: None)
    return ran


class Listener(WanPipeline):
    """Stands for a model that follows every prompt, but for the attributes it is told to ignore."""

    def __init__(self, ignored: tuple[str, ...] = ()) -> None:
        self.ignored = ignored
        self.facts = facts.get("micro")
        self.calls: list[tuple[list[str], list[int]]] = []

    def generate(
        self, prompts: list[str] | TextEmbeddings, negative_prompt: str | TextEmbeddings = "", *, seeds, **settings
    ):
        assert isinstance(prompts, list)
        self.calls.append((prompts, seeds))
        clips = []
        for prompt, seed in zip(prompts, seeds, strict=True):
            shown = parse(prompt).without(*self.ignored).mentioned()
            item = Attributes(**{**FULL.mentioned(), **shown})
            clips.append(draw_clips([item], torch.Generator().manual_seed(seed))[0])
        frames = torch.stack(clips).permute(0, 2, 3, 4, 1).mul(255).round().byte().contiguous()
        return frames, VideoLatents(torch.zeros(len(prompts), 1, 1, 1, 1))


@pytest.fixture
def listener() -> type[Listener]:
    return Listener
