"""The pipeline gives what diffusers' gives, clip by clip, and refuses what cannot work."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from diffusers.pipelines.wan.pipeline_wan import WanPipeline as ReferencePipeline
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from torch import Tensor
from transformers import UMT5Config, UMT5EncoderModel

from latentloom.errors import CheckpointError, ConfigError, PromptError
from latentloom.tensors import TextEmbeddings, VideoLatents
from latentloom.wan.clip_size import ClipSize
from latentloom.wan.pipeline import WanPipeline
from latentloom.wan.sampling import SamplingSettings, build_scheduler, draw_noise

SMALL: dict[str, Any] = {"num_frames": 5, "height": 16, "width": 32, "steps": 3, "guidance": 3.0, "shift": 3.0}
PROMPTS = ["a small red circle moves left", "blue"]


@pytest.fixture(scope="module")
def pipeline(tiny_checkpoint: Path) -> WanPipeline:
    return WanPipeline.load(tiny_checkpoint, dtype=torch.float32, device="cpu")


@pytest.fixture(scope="module")
def two_experts(pipeline: WanPipeline, tiny_low_expert: WanTransformer3DModel) -> WanPipeline:
    """The tiny model with a second expert below timestep 875."""
    return replace(pipeline, facts=replace(pipeline.facts, boundary=0.875), transformer_2=tiny_low_expert)


def reference_for(pipeline: WanPipeline, **options: Any) -> ReferencePipeline:
    assert pipeline.text_encoder is not None
    parts: dict[str, Any] = {
        "tokenizer": pipeline.text_encoder.tokenizer,
        "text_encoder": pipeline.text_encoder.model,
        "vae": pipeline.vae,
        "transformer": pipeline.transformer,
        "transformer_2": pipeline.transformer_2,
        "scheduler": UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    }
    reference = ReferencePipeline(**parts, **options)
    reference.set_progress_bar_config(disable=True)
    return reference


def run_reference(reference: ReferencePipeline, output_type: str, **options: Any) -> Tensor:
    seeds = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    size = {"num_frames": 5, "height": 16, "width": 32, "num_inference_steps": 6}
    arguments: dict[str, Any] = {"guidance_scale": 3.0, "negative_prompt": "white", **options}
    outcome = reference(
        prompt=PROMPTS, generator=seeds, output_type=output_type, return_dict=False, **size, **arguments
    )
    return outcome[0]


@pytest.mark.parametrize("batched_guidance", [True, False])
@pytest.mark.parametrize("expand_timesteps", [False, True])
def test_one_transformer_gives_the_latents_and_frames_of_diffusers(
    pipeline: WanPipeline, expand_timesteps: bool, batched_guidance: bool
):
    reference = reference_for(pipeline, expand_timesteps=expand_timesteps)
    options = {**SMALL, "steps": 6, "batched_guidance": batched_guidance}
    frames, latents = pipeline.generate(PROMPTS, "white", seeds=[5, 6], **options)
    torch.testing.assert_close(latents.values, run_reference(reference, "latent"), atol=1e-4, rtol=0)
    pixels = run_reference(reference, "pt") * 255
    assert (frames.permute(0, 1, 4, 2, 3) - pixels).abs().max() <= 0.51


def test_two_experts_give_the_latents_of_diffusers_each_with_its_guidance(two_experts: WanPipeline):
    reference = reference_for(two_experts, boundary_ratio=0.875)
    options = {**SMALL, "steps": 6, "guidance": (3.0, 2.0)}
    _, latents = two_experts.generate(PROMPTS, "white", seeds=[5, 6], **options)
    expected = run_reference(reference, "latent", guidance_scale_2=2.0)
    torch.testing.assert_close(latents.values, expected, atol=1e-4, rtol=0)
    _, swapped = two_experts.generate(PROMPTS, "white", seeds=[5, 6], **{**options, "guidance": (2.0, 3.0)})
    assert (swapped.values - expected).abs().max() > 1e-2


def test_no_guidance_gives_the_latents_of_diffusers_and_one_call_per_step(pipeline: WanPipeline):
    calls = []
    hook = pipeline.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(len(kwargs["hidden_states"])), with_kwargs=True
    )
    try:
        _, latents = pipeline.generate(PROMPTS, seeds=[5, 6], **{**SMALL, "steps": 6, "guidance": 1.0})
    finally:
        hook.remove()
    assert calls == [2] * 6
    expected = run_reference(reference_for(pipeline), "latent", guidance_scale=1.0)
    torch.testing.assert_close(latents.values, expected, atol=1e-4, rtol=0)


def test_a_velocity_is_what_sampling_follows_from_the_noise_on(pipeline: WanPipeline):
    size, text = ClipSize.for_model(pipeline.facts, 5, 16, 32), pipeline.encode(PROMPTS)
    settings = SamplingSettings.for_model(pipeline.facts, 1, 1.0, 3.0, "euler")
    noise = draw_noise(pipeline.grid.shape(size), [5, 6], pipeline.device)
    scheduler = build_scheduler(settings)
    with torch.no_grad():
        velocity = pipeline.velocity(noise, scheduler.timesteps[0], text)
    stepped = scheduler.step(velocity, scheduler.timesteps[0], noise, return_dict=False)[0]
    sampled = pipeline.sample(text, size=size, settings=settings, seeds=[5, 6]).values
    torch.testing.assert_close(stepped, sampled)
    assert (velocity.shape, velocity.dtype) == (noise.shape, torch.float32)


def test_a_velocity_depends_on_text_and_timestep_and_comes_from_the_expert_in_charge(two_experts: WanPipeline):
    noise = torch.randn(1, 4, 2, 2, 4, generator=torch.Generator().manual_seed(0))
    text = two_experts.encode(PROMPTS)
    single = replace(two_experts, transformer_2=None)
    low_only = replace(two_experts, transformer=two_experts.transformer_2, transformer_2=None)

    def answer(pipeline: WanPipeline, timestep: float, row: int = 0) -> Tensor:
        with torch.no_grad():
            return pipeline.velocity(noise, torch.tensor(timestep), text[[row]])

    assert torch.equal(answer(two_experts, 900.0), answer(single, 900.0))
    assert torch.equal(answer(two_experts, 800.0), answer(low_only, 800.0))
    assert not torch.allclose(answer(two_experts, 800.0), answer(single, 800.0))
    assert not torch.allclose(answer(single, 900.0), answer(single, 900.0, row=1))
    assert not torch.allclose(answer(single, 900.0), answer(single, 300.0))


def test_a_guidance_of_one_on_one_side_of_the_boundary_skips_the_unconditional_call_there(two_experts: WanPipeline):
    sizes: dict[str, list[int]] = {"high": [], "low": []}
    assert two_experts.transformer_2 is not None
    experts = {"high": two_experts.transformer, "low": two_experts.transformer_2}
    hooks = [
        model.register_forward_pre_hook(
            lambda module, args, kwargs, name=name: sizes[name].append(len(kwargs["hidden_states"])), with_kwargs=True
        )
        for name, model in experts.items()
    ]
    try:
        options = {**SMALL, "steps": 4, "guidance": (1.0, 2.0), "batched_guidance": True}
        two_experts.generate(["red"], seeds=[0], **options)
    finally:
        for hook in hooks:
            hook.remove()
    assert sizes == {"high": [1, 1], "low": [2, 2]}, "shifted by 3, timesteps 999 and 900 are above 875"


@pytest.mark.parametrize("sampler", ["unipc", "euler"])
def test_a_clip_depends_on_its_seed_and_not_on_the_clips_beside_it(pipeline: WanPipeline, sampler: str):
    options = {**SMALL, "sampler": sampler}
    _, both = pipeline.generate(PROMPTS, seeds=[1, 2], **options)
    _, alone = pipeline.generate(PROMPTS[1:], seeds=[2], **options)
    _, split = pipeline.generate(PROMPTS, seeds=[1, 2], batch_size=1, **options)
    _, other = pipeline.generate(PROMPTS[1:], seeds=[3], **options)
    torch.testing.assert_close(both[1].values, alone.values, atol=1e-5, rtol=0)
    torch.testing.assert_close(both.values, split.values, atol=1e-5, rtol=0)
    assert (alone.values - other.values).abs().max() > 0.1


def test_embeddings_in_place_of_prompts_give_the_same_clip(pipeline: WanPipeline):
    embeddings = pipeline.encode(PROMPTS)
    frames, latents = pipeline.generate(PROMPTS, "white", seeds=[1, 2], **SMALL)
    same_frames, same = pipeline.generate(embeddings, pipeline.encode(["white"]), seeds=[1, 2], **SMALL)
    assert torch.equal(latents.values, same.values)
    assert torch.equal(frames, same_frames)


def test_the_adjustment_changes_the_prompts_and_not_the_negative_prompt(pipeline: WanPipeline):
    seen = []

    def to_blue(embeddings: TextEmbeddings) -> TextEmbeddings:
        seen.append(len(embeddings))
        return pipeline.encode(["blue"] * len(embeddings))

    _, adjusted = pipeline.generate(["red"], "white", seeds=[1], adjust=to_blue, **SMALL)
    _, blue = pipeline.generate(["blue"], "white", seeds=[1], **SMALL)
    assert seen == [1]
    assert torch.equal(adjusted.values, blue.values)


def test_defaults_are_the_models_own(pipeline: WanPipeline):
    steps = []
    frames, latents = pipeline.generate(["red"], seeds=[0], callback=lambda step, *_: steps.append(step))
    facts = pipeline.facts
    assert steps == list(range(facts.steps))
    assert frames.shape == (1, facts.num_frames, facts.height, facts.width, 3)
    assert latents.values.shape == (1, 4, 3, 6, 6)


def test_group_offloading_changes_nothing(tiny_checkpoint: Path, pipeline: WanPipeline):
    offloaded = WanPipeline.load(tiny_checkpoint, dtype=torch.float32, device="cpu", offload="group")
    frames, latents = offloaded.generate(PROMPTS, seeds=[1, 2], **SMALL)
    expected_frames, expected = pipeline.generate(PROMPTS, seeds=[1, 2], **SMALL)
    assert torch.equal(latents.values, expected.values)
    assert torch.equal(frames, expected_frames)


def test_a_folder_with_two_experts_is_loaded_whole(
    tmp_path: Path, tiny_checkpoint: Path, tiny_low_expert: WanTransformer3DModel, two_experts: WanPipeline
):
    root = tmp_path / "two"
    shutil.copytree(tiny_checkpoint, root)
    tiny_low_expert.save_pretrained(root / "transformer_2")
    index = json.loads((root / "model_index.json").read_text())
    del index["latentloom"]
    index.update(transformer_2=["diffusers", "WanTransformer3DModel"], boundary_ratio=0.875)
    (root / "model_index.json").write_text(json.dumps(index))
    loaded = WanPipeline.load(root, dtype=torch.float32, device="cpu")
    assert loaded.facts.boundary == 0.875
    assert loaded.facts.guidance == (4.0, 3.0)
    _, latents = loaded.generate(PROMPTS, seeds=[1, 2], **SMALL)
    _, expected = two_experts.generate(PROMPTS, seeds=[1, 2], **SMALL)
    assert torch.equal(latents.values, expected.values)


@pytest.mark.parametrize("offload", ["none", "group"])
def test_fp8_stores_blocks_in_eight_bits_and_stays_close(tiny_checkpoint: Path, pipeline: WanPipeline, offload: Any):
    light = WanPipeline.load(tiny_checkpoint, dtype=torch.float32, device="cpu", offload=offload, fp8=True)
    dtypes = {name: weight.dtype for name, weight in light.transformer.named_parameters()}
    assert dtypes["blocks.0.attn2.to_k.weight"] == torch.float8_e4m3fn
    assert dtypes["condition_embedder.text_embedder.linear_1.weight"] == torch.float32
    _, latents = light.generate(PROMPTS, seeds=[1, 2], **SMALL)
    _, exact = pipeline.generate(PROMPTS, seeds=[1, 2], **SMALL)
    error = (latents.values - exact.values).square().mean().sqrt() / exact.values.square().mean().sqrt()
    assert 1e-5 < error < 0.1


def test_bfloat16_gives_nearly_the_same_clip(tiny_checkpoint: Path, pipeline: WanPipeline):
    half = WanPipeline.load(tiny_checkpoint, dtype=torch.bfloat16, device="cpu")
    _, latents = half.generate(PROMPTS, seeds=[1, 2], **SMALL)
    assert latents.dtype == torch.float32
    _, exact = pipeline.generate(PROMPTS, seeds=[1, 2], **SMALL)
    torch.testing.assert_close(latents.values, exact.values, atol=0.15, rtol=0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_frames": 6}, "num_frames=6 .* 5 or 9"),
        ({"height": 20}, "height=20 .* 16 or 32"),
        ({"width": 7}, "width=7"),
        ({"steps": 0}, "steps=0"),
        ({"shift": -1.0}, "shift=-1"),
        ({"guidance": -2.0}, "guidance"),
        ({"sampler": "ddim"}, "unipc or euler"),
        ({"seeds": [1, 2]}, "2 seeds were given for 1 prompts"),
        ({"seeds": [-1]}, "seed=-1"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_settings_that_cannot_work_say_what_can(pipeline: WanPipeline, wrong: dict[str, Any], message: str):
    arguments = {"seeds": [0], **SMALL, **wrong}
    with pytest.raises(ConfigError, match=message):
        pipeline.generate(["red"], **arguments)


def test_prompts_that_cannot_be_encoded_are_refused(pipeline: WanPipeline):
    with pytest.raises(PromptError):
        pipeline.generate([], seeds=[])
    with pytest.raises(PromptError, match="hold no prompt"):
        pipeline.generate(pipeline.encode(["red"])[:0], seeds=[])
    with pytest.raises(ConfigError, match="5 channels and MicroWan takes 16"):
        pipeline.generate(TextEmbeddings.from_list([torch.zeros(3, 5)]), seeds=[0])
    with pytest.raises(ConfigError, match="no text encoder"):
        replace(pipeline, text_encoder=None).generate(["red"], seeds=[0])
    with pytest.raises(ConfigError, match="2 negative prompts"):
        pipeline.generate(["red"], pipeline.encode(PROMPTS), seeds=[0], **SMALL)


def test_an_unknown_offload_mode_is_refused(tiny_checkpoint: Path):
    with pytest.raises(ConfigError, match="none or group"):
        WanPipeline.load(tiny_checkpoint, offload="disk")


def test_decoding_in_batches_gives_the_same_frames(pipeline: WanPipeline):
    latents = VideoLatents(torch.randn(3, 4, 2, 2, 2, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(pipeline.decode(latents), pipeline.decode(latents, batch_size=2))


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("vae", "latents of 4 channels, its text encoder and vae give 16 and 8"),
        ("text_encoder", "takes text of 16 .* give 32 and 4"),
        ("tokenizer", "words and its text encoder 5"),
    ],
)
def test_parts_of_several_models_are_refused_before_anything_is_sampled(
    tiny_checkpoint: Path, tmp_path: Path, part: str, message: str
):
    root = Path(shutil.copytree(tiny_checkpoint, tmp_path / "mixed"))
    encoder: dict[str, Any] = {"vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    if part == "vae":
        config = AutoencoderKLWan.from_pretrained(root / "vae").config
        wider = {"z_dim": 8, "latents_mean": [0.0] * 8, "latents_std": [1.0] * 8}
        AutoencoderKLWan(**{**config, **wider}).save_pretrained(root / "vae")
    else:
        other = {"d_model": 32} if part == "text_encoder" else {"vocab_size": 5}
        UMT5EncoderModel(UMT5Config(**{**encoder, **other})).save_pretrained(root / "text_encoder")
    with pytest.raises(CheckpointError, match=message):
        WanPipeline.load(root, device="cpu")
