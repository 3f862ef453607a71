"""The recipe as a whole: it ends in loadable weights, resumes stage by stage and overwrites nothing of others."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from latentloom.errors import CheckpointError, ConfigError, FileError
from latentloom.micro import build as recipe
from latentloom.micro.build import build, build_summary, export, stages
from latentloom.micro.config import BuildConfig
from latentloom.micro.latents import latent_statistics, load_latents
from latentloom.micro.model_card import model_card
from latentloom.runs import list_runs, load_config
from latentloom.storage import read_header
from latentloom.wan import checkpoints
from latentloom.wan.pipeline import WanPipeline

STAGES = ["train_vae", "train_text", "encode_world", "train_transformer"]
PROMPT = "A small red circle moves to the left on a black background."


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_build_writes_half_precision_weights_in_diffusers_layout(finished_build):
    _, out = finished_build
    assert {str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()} >= {
        "README.md",
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    }
    weights = list(out.rglob("*.safetensors"))
    assert len(weights) == 3
    for file in weights:
        assert {entry["dtype"] for name, entry in read_header(file).items() if name != "__metadata__"} == {"F16"}
    assert json.loads((out / "model_index.json").read_text())["latentloom"] == {"model": "micro"}
    assert checkpoints.recognise(out).layout == "diffusers"


def test_the_weights_generate_as_microwan(finished_build):
    _, out = finished_build
    pipeline = WanPipeline.load(out, device="cpu")
    assert pipeline.facts.key == "micro"
    frames, latents = pipeline.generate([PROMPT], seeds=[0], steps=2)
    assert frames.shape == (1, 9, 48, 48, 3)
    assert latents.values.shape == (1, 4, 3, 6, 6)


def test_diffusers_opens_the_weights_on_its_own(finished_build):
    from diffusers.pipelines.wan.pipeline_wan import WanPipeline as DiffusersPipeline

    _, out = finished_build
    pipeline = DiffusersPipeline.from_pretrained(out)
    assert type(pipeline.scheduler).__name__ == "UniPCMultistepScheduler"
    assert pipeline.scheduler.config.flow_shift == 3.0
    assert pipeline.tokenizer(PROMPT).input_ids[-1] == 1


def test_the_weights_hold_the_encoder_as_the_text_stage_left_it(finished_build):
    work, out = finished_build
    trained = {name.removeprefix("text/"): weight for name, weight in load_file(work / "text.safetensors").items()}
    written = load_file(out / "text_encoder/model.safetensors")
    assert "shared.weight" in written
    assert [name for name in written if not torch.equal(written[name], trained[name].half())] == []


def test_the_vae_carries_the_statistics_of_the_latents_it_was_trained_beside(finished_build):
    work, out = finished_build
    mean, deviation = latent_statistics(load_latents(work)[0])
    config = json.loads((out / "vae/config.json").read_text())
    assert config["latents_mean"] == pytest.approx(mean)
    assert config["latents_std"] == pytest.approx(deviation)


def test_a_build_leaves_a_record_with_its_measures(finished_build, tiny_recipe: BuildConfig):
    work, out = finished_build
    (record,) = list_runs(work / "runs")
    assert record.status == "finished"
    assert record.data == "MicroWan's world, training split, 64 clips"
    summary = build_summary(work, out)
    assert record.results == summary
    assert summary["num_bytes"] == sum(len(content) for content in contents(out).values())
    assert summary["seconds"] == pytest.approx(sum(stage["seconds"] for stage in summary["stages"].values()))
    assert {name: stage["step"] for name, stage in summary["stages"].items()} == {"vae": 3, "text": 3, "transformer": 3}
    assert load_config(BuildConfig, work / "config.toml") == tiny_recipe


def test_a_finished_build_repeats_no_stage_and_gives_the_same_weights(finished_build, tiny_recipe, one_after_another):
    work, out = finished_build
    before = contents(out)
    build(tiny_recipe, work, out)
    assert one_after_another == []
    assert contents(out) == before


@pytest.mark.parametrize(
    ("lost", "repeated"),
    [
        (["transformer.safetensors"], ["train_transformer"]),
        (["latents_0.safetensors"], ["encode_world"]),
        (["latents_1.safetensors"], ["encode_world"]),
        (["text.safetensors", "transformer.safetensors", "transformer_state.safetensors"], [STAGES[1], STAGES[3]]),
    ],
)
def test_only_the_stages_whose_files_are_missing_run_again(
    finished_build, tiny_recipe, one_after_another, lost: list[str], repeated: list[str]
):
    work, out = finished_build
    before = contents(out)
    for name in lost:
        (work / name).unlink()
    build(tiny_recipe, work, out)
    assert one_after_another == repeated
    assert contents(out) == before


def test_a_build_that_failed_keeps_the_weights_of_the_last_one(finished_build, tiny_recipe, monkeypatch):
    work, out = finished_build
    before = contents(out)

    def fail(*arguments: object) -> None:
        raise RuntimeError("no space left")

    monkeypatch.setattr(recipe, "write_text", fail)
    with pytest.raises(RuntimeError, match="no space"):
        export(tiny_recipe, work, out)
    assert contents(out) == before
    assert sorted(path.name for path in out.parent.iterdir()) == ["weights", "work"]


def test_weights_over_the_limit_are_refused_and_replace_nothing(finished_build, tiny_recipe, monkeypatch):
    work, out = finished_build
    before = contents(out)
    monkeypatch.setattr(recipe, "LARGEST_SIZE", 50_000)
    with pytest.raises(ConfigError, match="MB of weights, more than 0"):
        export(tiny_recipe, work, out)
    assert contents(out) == before


def test_other_settings_do_not_continue_a_build(finished_build, tiny_recipe, one_after_another):
    work, out = finished_build
    before = contents(work)
    with pytest.raises(ConfigError, match="other settings") as refusal:
        build(tiny_recipe.model_copy(update={"seed": 1}), work, out)
    assert str(work) in str(refusal.value)
    assert contents(work) == before
    assert one_after_another == []


@pytest.mark.parametrize("holds", ["notes", "another model", "no json"])
def test_a_folder_of_something_else_is_not_replaced(tiny_recipe, tmp_path, one_after_another, holds: str):
    out = tmp_path / "out"
    out.mkdir()
    index = {"_class_name": "WanPipeline", "transformer": ["diffusers", "WanTransformer3DModel"]}
    if holds == "notes":
        (out / "notes.txt").write_text("mine")
    else:
        (out / "model_index.json").write_text(json.dumps(index) if holds == "another model" else "[")
    before = contents(out)
    with pytest.raises(FileError, match="something other than MicroWan's weights"):
        build(tiny_recipe, tmp_path / "work", out)
    assert contents(out) == before
    assert one_after_another == []
    assert not (tmp_path / "work").exists()


def test_a_file_is_no_folder_for_weights(tiny_recipe, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(FileError, match="something other"):
        build(tiny_recipe, tmp_path / "work", tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("inside", [".", "build", "a/b"])
def test_the_work_cannot_lie_where_the_weights_replace_it(tiny_recipe, tmp_path, one_after_another, inside: str):
    with pytest.raises(ConfigError, match="replaced as a whole"):
        build(tiny_recipe, tmp_path / "out" / inside, tmp_path / "out")
    assert one_after_another == []


def test_an_empty_folder_takes_the_weights(finished_build, tiny_recipe):
    work, _ = finished_build
    empty = work.parent / "deep" / "empty"
    empty.mkdir(parents=True)
    build(tiny_recipe, work, empty)
    assert (empty / "model_index.json").exists()


def test_a_work_folder_without_a_trained_part_cannot_be_exported(finished_build, tiny_recipe, tmp_path):
    work, _ = finished_build
    (work / "transformer.safetensors").write_bytes((work / "vae.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="another run"):
        export(tiny_recipe, work, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_stages_stand_in_the_order_they_need_each_other(tiny_recipe, tmp_path):
    assert [stage.run.__name__ for stage in stages(tiny_recipe, tmp_path)] == STAGES


def test_the_model_card_names_the_seed_the_parts_and_what_was_left_out(finished_build):
    _, out = finished_build
    card = model_card(BuildConfig(seed=7), {"vae": 1234567})
    assert "(seed 7)" in card
    assert "| vae | 1,234,567 |" in card
    assert "red triangle and blue cross" in card
    written = (out / "README.md").read_text()
    transformer = checkpoints.load_transformer(out)
    num_parameters = sum(parameter.numel() for parameter in transformer.parameters())
    assert f"| transformer | {num_parameters:,} |" in written


@pytest.mark.slow  # eight processes start, each importing torch and diffusers
def test_two_processes_build_the_same_weights_twice(tiny_recipe, tmp_path):
    for name in ("first", "second"):
        build(tiny_recipe, tmp_path / f"work-{name}", tmp_path / name)
    assert contents(tmp_path / "first") == contents(tmp_path / "second")
    frames, _ = WanPipeline.load(tmp_path / "first", device="cpu").generate([PROMPT], seeds=[0], steps=2)
    assert frames.shape == (1, 9, 48, 48, 3)
    shutil.rmtree(tmp_path / "work-first" / "runs")
    (tmp_path / "work-first" / "transformer.safetensors").unlink()
    build(tiny_recipe, tmp_path / "work-first", tmp_path / "first")
    assert contents(tmp_path / "first") == contents(tmp_path / "second")
    latents, _ = load_latents(tmp_path / "work-second")
    assert torch.isfinite(latents).all()
