"""Activations of blocks: what was there during the call, and nothing left behind afterwards."""

from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch

from latentloom.errors import ConfigError, CorruptFileError, FileError, ShapeError
from latentloom.steering.capture import (
    SITES,
    BlockActivations,
    capture_activations,
    load_activations,
    noised,
    save_activations,
)
from latentloom.steering.plan import Site
from latentloom.steering.projection import text_rows
from latentloom.storage import save_module, save_object
from latentloom.tensors import TextEmbeddings, VideoLatents
from latentloom.wan.pipeline import WanPipeline

PROMPTS = ["a red circle moves left", "blue"]
DIM, NUM_BLOCKS = 24, 2  # of the tiny checkpoint


@pytest.fixture(scope="module")
def pipeline(tiny_checkpoint: Path) -> WanPipeline:
    return WanPipeline.load(tiny_checkpoint, device="cpu")


@pytest.fixture(scope="module")
def latents() -> VideoLatents:
    return VideoLatents(torch.randn(2, 4, 2, 4, 4, generator=torch.Generator().manual_seed(0)))


def num_hooks(pipeline: WanPipeline) -> int:
    modules = pipeline.transformer.modules()
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules)


def test_block_zero_holds_the_patch_embedding(pipeline, latents):
    held = capture_activations(pipeline, latents, 500, PROMPTS, [0])
    patches = pipeline.transformer.patch_embedding(latents.values).flatten(2).transpose(1, 2)
    assert torch.equal(held.after_blocks(0), patches)
    assert held.after_blocks(0).shape == (2, 2 * 2 * 2, DIM)
    assert held.site == "hidden_states"
    assert held.timestep == 500


def test_after_n_blocks_is_what_block_n_gets_and_what_the_block_before_it_gave(pipeline, latents):
    given, returned = {}, {}
    hooks = []
    for number, block in enumerate(pipeline.transformer.blocks):
        hooks.append(block.register_forward_pre_hook(lambda _, args, n=number: given.update({n: args[0].clone()})))
        hooks.append(block.register_forward_hook(lambda _, args, output, n=number: returned.update({n: output})))
    held = capture_activations(pipeline, latents, 300, PROMPTS, range(NUM_BLOCKS + 1))
    for hook in hooks:
        hook.remove()
    assert list(held.values) == [0, 1, 2]
    assert torch.equal(held.after_blocks(1), given[1])
    assert torch.equal(held.after_blocks(1), returned[0])
    assert torch.equal(held.after_blocks(2), returned[1])


def test_context_and_attention_output_are_the_layers_input_and_output(pipeline, latents):
    text = pipeline.encode(PROMPTS)
    context = capture_activations(pipeline, latents, 300, text, [0, 1], "context").values
    rows = text_rows(pipeline.transformer, text, pipeline.folds_padding).rows
    assert torch.equal(context[0], rows)
    assert torch.equal(context[1], rows)
    answers = capture_activations(pipeline, latents, 300, text, [1], "attention_output").values
    seen = []
    layer = pipeline.transformer.blocks[1].get_submodule("attn2")
    hook = layer.register_forward_hook(lambda _, args, output: seen.append(output))
    with torch.no_grad():
        pipeline.predict(pipeline.transformer, latents.values, torch.tensor(300.0), text)
    hook.remove()
    assert torch.equal(answers[1], seen[0])


def test_it_depends_on_latents_timestep_and_prompt_and_on_nothing_else(pipeline, latents):
    def after_two(values: VideoLatents, timestep: float, prompts: list[str]) -> torch.Tensor:
        return capture_activations(pipeline, values, timestep, prompts, [2]).after_blocks(2)

    plain = after_two(latents, 500, PROMPTS)
    assert torch.equal(after_two(latents, 500, PROMPTS), plain)
    others = [
        after_two(VideoLatents(latents.values + 0.1), 500, PROMPTS),
        after_two(latents, 600, PROMPTS),
        after_two(latents, 500, PROMPTS[::-1]),
    ]
    assert all((other - plain).norm() > 1e-3 * plain.norm() for other in others)


def test_hooks_are_gone_afterwards_and_after_an_exception(pipeline, latents, monkeypatch):
    before = num_hooks(pipeline)
    for site in SITES:
        capture_activations(pipeline, latents, 500, PROMPTS, [0, 1], site)
        assert num_hooks(pipeline) == before

    def fail(*arguments: object) -> None:
        assert num_hooks(pipeline) == before + 2
        raise KeyError("stop")

    monkeypatch.setattr(pipeline, "predict", fail)
    for site in SITES:
        with pytest.raises(KeyError):
            capture_activations(pipeline, latents, 500, PROMPTS, [0, 1], site)
        assert num_hooks(pipeline) == before


def test_a_compiled_model_is_watched_too(tiny_checkpoint, latents):
    pipeline = WanPipeline.load(tiny_checkpoint, device="cpu")
    plain = [capture_activations(pipeline, latents, 500, PROMPTS, [1], site).values[1] for site in SITES]
    pipeline.transformer.compile(backend="eager")
    with torch.no_grad():
        pipeline.predict(pipeline.transformer, latents.values, torch.tensor(500.0), pipeline.encode(PROMPTS))
    for site, expected in zip(SITES, plain, strict=True):
        assert torch.equal(capture_activations(pipeline, latents, 500, PROMPTS, [1], site).values[1], expected)


def test_of_two_experts_the_one_in_charge_is_watched(tiny_checkpoint, tiny_low_expert, latents):
    pipeline = WanPipeline.load(tiny_checkpoint, device="cpu")
    both = replace(pipeline, transformer_2=tiny_low_expert, facts=replace(pipeline.facts, boundary=0.5))
    patches = tiny_low_expert.patch_embedding(latents.values).flatten(2).transpose(1, 2)
    low = capture_activations(both, latents, 400, PROMPTS, [0])
    assert torch.equal(low.after_blocks(0), patches)
    assert low.record["is_low_noise_expert"]
    high = capture_activations(both, latents, 600, PROMPTS, [0])
    assert torch.equal(high.after_blocks(0), capture_activations(pipeline, latents, 600, PROMPTS, [0]).after_blocks(0))


@pytest.mark.parametrize("timestep", [0, 250, 1000])
def test_noised_latents_stand_at_their_timestep(timestep):
    clean = VideoLatents(torch.randn(1, 4, 2, 8, 8, generator=torch.Generator().manual_seed(0)))
    noise = torch.randn(clean.values.shape, generator=torch.Generator().manual_seed(7))
    sigma = timestep / 1000
    noisy = noised(clean, timestep, torch.Generator().manual_seed(7))
    assert torch.allclose(noisy.values, (1 - sigma) * clean.values + sigma * noise, atol=1e-6)
    half = noised(clean.to(dtype=torch.float16), timestep, torch.Generator().manual_seed(7))
    assert half.dtype == torch.float16


def test_a_file_gives_back_everything_bit_by_bit(pipeline, latents, tmp_path):
    held = capture_activations(pipeline, latents, 300.5, PROMPTS, [2, 0])
    half = BlockActivations({n: rows.bfloat16() for n, rows in held.values.items()}, held.site, held.timestep)
    for activations in (held, half):
        save_activations(tmp_path / "a.safetensors", activations)
        read = load_activations(tmp_path / "a.safetensors")
        assert list(read.values) == [0, 2]
        assert all(torch.equal(read.values[n], activations.values[n]) for n in (0, 2))
        assert (read.site, read.timestep, read.record) == ("hidden_states", 300.5, activations.record)
    assert held.record["prompts"] == PROMPTS
    assert held.record["lengths"] == pipeline.encode(PROMPTS).lengths.tolist()


def test_other_and_damaged_files_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    save_object(path, VideoLatents(torch.zeros(1, 4, 1, 2, 2)))
    with pytest.raises(FileError, match="holds VideoLatents; give a file of block activations"):
        load_activations(path)
    rows, good = torch.zeros(1, 2, 3), {"site": "context", "timestep": 5.0}
    for tensors, config in (
        ({"block_x": rows}, good),
        ({"block_0": rows[0]}, good),
        ({"block_0": rows.int()}, good),
        ({"block_0": rows, "block_1": rows[:, :1]}, good),
        ({"block_0": rows}, {**good, "site": "elsewhere"}),
        ({"block_0": rows}, {"site": "context"}),
    ):
        save_module(path, tensors, "BlockActivations", config)
        with pytest.raises(CorruptFileError, match="is damaged"):
            load_activations(path)


@pytest.mark.parametrize(
    ("blocks", "site", "message"),
    [
        ([], "hidden_states", "no block was asked for; give numbers from 0 to 2"),
        ([3], "hidden_states", "block 3 does not exist at hidden_states; this model has 0 to 2"),
        ([2], "context", "block 2 does not exist at context; this model has 0 to 1"),
        ([-1], "attention_output", "block -1 does not exist"),
    ],
)
def test_unknown_blocks_are_refused(pipeline, latents, blocks, site, message):
    with pytest.raises(ConfigError, match=message):
        capture_activations(pipeline, latents, 500, PROMPTS, blocks, site)


def test_what_does_not_fit_the_model_is_refused(pipeline, latents, tiny_checkpoint):
    with pytest.raises(ShapeError, match="1 prompts for 2 clips; give one prompt per clip"):
        capture_activations(pipeline, latents, 500, ["red"], [0])
    with pytest.raises(ShapeError, match="latents of 3 channels; this model's have 4"):
        capture_activations(pipeline, VideoLatents(latents.values[:, :3]), 500, PROMPTS, [0])
    with pytest.raises(ConfigError, match="timestep=1001 is out of range"):
        capture_activations(pipeline, latents, 1001, PROMPTS, [0])
    with pytest.raises(ConfigError, match="16"):
        capture_activations(pipeline, latents, 500, TextEmbeddings(torch.zeros(2, 5), torch.tensor([1, 1])), [0])
    bare = WanPipeline.load(tiny_checkpoint, device="cpu")
    bare.transformer.to(torch.device("meta"))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="weights are not loaded"):
        capture_activations(bare, latents, 500, PROMPTS, [0])


def test_activations_that_were_not_captured_are_refused(pipeline, latents):
    with pytest.raises(ConfigError, match="after 2 blocks were not captured; these are after 0, 1"):
        capture_activations(pipeline, latents, 500, PROMPTS, [0, 1]).after_blocks(2)
    with pytest.raises(ConfigError, match="site context"):
        capture_activations(pipeline, latents, 500, PROMPTS, [0], "context").after_blocks(0)
    with pytest.raises(ShapeError, match="at least one block"):
        BlockActivations({}, "context", 0.0)
    assert get_args(Site) == SITES
