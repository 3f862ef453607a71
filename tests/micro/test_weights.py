"""The shipped weights: small, whole, and able to do what the package says of them."""

import json
from pathlib import Path

import pytest
import torch

from latentloom.cli.main import run
from latentloom.micro import default_checkpoint
from latentloom.micro.attributes import VALUES, Attributes
from latentloom.micro.build import LARGEST_SIZE
from latentloom.micro.evaluate import Evaluation, evaluate
from latentloom.micro.score import prompt_set
from latentloom.micro.tokenizer import make_tokenizer
from latentloom.storage import read_header
from latentloom.wan import checkpoints
from latentloom.wan.pipeline import WanPipeline

NUM_PROMPTS = 12
PROMPT = "A small red circle moves to the left on a black background."


@pytest.fixture(scope="module")
def weights() -> Path:
    root = default_checkpoint()
    assert (root / "model_index.json").is_file(), f"{root} has no weights: run `latentloom micro build --out {root}`"
    return root


@pytest.fixture(scope="module")
def pipeline(weights: Path) -> WanPipeline:
    return WanPipeline.load(weights, device="cpu")


@pytest.fixture(scope="module")
def verbose(pipeline: WanPipeline) -> Evaluation:
    return evaluate(pipeline, "verbose", prompt_set("verbose", NUM_PROMPTS))


def mean_share(evaluation: Evaluation) -> float:
    return sum(evaluation.accuracy[attribute].share for attribute in VALUES) / len(VALUES)


def test_the_weights_are_half_precision_and_small_enough_to_ship(weights: Path):
    assert sum(file.stat().st_size for file in weights.rglob("*") if file.is_file()) <= LARGEST_SIZE == 10_000_000
    parts = {file.parent.name: read_header(file) for file in weights.rglob("*.safetensors")}
    assert set(parts) == {"text_encoder", "transformer", "vae"}
    for header in parts.values():
        assert {entry["dtype"] for name, entry in header.items() if name != "__metadata__"} == {"F16"}


def test_the_folder_holds_weights_and_text_but_no_pickle(weights: Path):
    assert {file.suffix for file in weights.rglob("*") if file.is_file()} <= {".json", ".md", ".safetensors"}
    assert [file for file in weights.rglob("*") if file.is_symlink()] == []
    assert "# MicroWan" in (weights / "README.md").read_text("utf-8")


def test_the_weights_are_known_as_microwan(weights: Path, pipeline: WanPipeline):
    assert json.loads((weights / "model_index.json").read_text())["latentloom"] == {"model": "micro"}
    checkpoint = checkpoints.recognise(weights)
    assert checkpoint.layout == "diffusers"
    assert checkpoint.facts is not None
    assert checkpoint.facts.key == pipeline.facts.key == "micro"


def test_every_weight_is_finite(pipeline: WanPipeline):
    assert pipeline.text_encoder is not None
    for module in (pipeline.text_encoder.model, pipeline.transformer, pipeline.vae):
        assert [name for name, value in module.state_dict().items() if not torch.isfinite(value).all()] == []


def test_the_shipped_tokenizer_is_the_one_the_code_makes(weights: Path):
    shipped, made = checkpoints.load_tokenizer(weights), make_tokenizer()
    assert shipped.get_vocab() == made.get_vocab()
    for name in ("verbose", "unseen synonyms", "telegraphic"):
        prompts = [question.prompt for question in prompt_set(name, 20)]
        assert shipped(prompts).input_ids == made(prompts).input_ids


def test_held_out_prompts_are_followed(verbose: Evaluation):
    assert mean_share(verbose) >= 0.9, {name: item.share for name, item in verbose.accuracy.items()}


def test_unseen_synonyms_are_followed_clearly_less(pipeline: WanPipeline, verbose: Evaluation):
    synonyms = evaluate(pipeline, "unseen synonyms", prompt_set("unseen synonyms", NUM_PROMPTS))
    assert synonyms.accuracy["colour"].share <= verbose.accuracy["colour"].share - 0.4
    assert mean_share(synonyms) <= mean_share(verbose) - 0.2


def test_the_prompt_of_the_readme_makes_the_clip_it_describes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(["generate", PROMPT, "--seed", "0", "--out", "clip.mp4"]) == 0
    assert run(["micro", "read", "clip.mp4", "--json", "read.json"]) == 0
    found = json.loads((tmp_path / "read.json").read_text())["attributes"]
    assert found == Attributes("red", "circle", "small", "left", "black").mentioned()
