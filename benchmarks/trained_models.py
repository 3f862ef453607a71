"""The models that the trainer's benchmark trains, and the clips that they are trained on."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import bench_cache
import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from diffusers.pipelines.wan.pipeline_wan import WanPipeline
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from transformers import UMT5Config, UMT5EncoderModel

from latentloom.finetune.cache import CacheModels, cache_dataset
from latentloom.micro import default_checkpoint
from latentloom.wan import facts
from latentloom.wan.checkpoints import build_empty, load_tokenizer, load_vae, recognise
from latentloom.wan.clip_size import ClipSize

NUM_ITEMS = 16
CAPTION = "a small {} circle moves left on a black background"


class Model(NamedTuple):
    """What is trained, and on what.

    Args:
        num_blocks: of the transformer.
        width: of it and of the encoder; None is MicroWan as it is.
        pixels: height and width of its clips of 9 frames.
        batch: clips of a step.
        num_steps: that are timed.
    """

    num_blocks: int
    width: int | None
    pixels: int
    batch: int
    num_steps: int


MODELS = {
    "MicroWan": Model(num_blocks=6, width=None, pixels=48, batch=8, num_steps=30),
    "random, 16 blocks of width 512": Model(num_blocks=16, width=512, pixels=96, batch=4, num_steps=4),
}


def prepare(model: Model, folder: Path) -> tuple[Path, int]:
    """The checkpoint, and how many weights its transformer has; beside it clips with captions, and their cache."""
    folder.mkdir(parents=True)
    root = default_checkpoint() if model.width is None else random_checkpoint(folder / "checkpoint", model)
    size = ClipSize(9, model.pixels, model.pixels)
    bench_cache.write_clips(bench_cache.Files(NUM_ITEMS, size, 1, size), folder / "clips")
    colours = ("red", "blue", "green", "white")
    for number, clip in enumerate(sorted((folder / "clips").glob("*.mp4"))):
        clip.with_suffix(".txt").write_text(CAPTION.format(colours[number % len(colours)]))
    bench_cache.write_dataset(folder, size)
    models = CacheModels.of(root, torch.device("cpu"), torch.float32)
    cache_dataset(folder / "dataset.toml", models, facts=facts.get("micro"), cache_text=True)
    transformer = build_empty(recognise(root).component("transformer"))
    return root, sum(weight.numel() for weight in transformer.parameters())


def random_checkpoint(root: Path, model: Model) -> Path:
    """MicroWan in its layout, with an encoder and a transformer of another size and random weights."""
    assert model.width is not None
    torch.manual_seed(0)
    micro = recognise(default_checkpoint())
    heads = model.width // 64
    video: dict[str, Any] = {**micro.component("transformer").derived_config}
    video |= {"num_attention_heads": heads, "attention_head_dim": 64, "ffn_dim": 4 * model.width}
    video |= {"text_dim": model.width, "num_layers": model.num_blocks, "freq_dim": 256}
    text: dict[str, Any] = {**micro.component("text_encoder").derived_config}
    text |= {"d_model": model.width, "num_heads": heads, "d_kv": 64, "d_ff": 2 * model.width, "num_layers": 8}
    parts: dict[str, Any] = {
        "tokenizer": load_tokenizer(micro.root),
        "text_encoder": UMT5EncoderModel(UMT5Config(**text)),
        "vae": load_vae(micro.root, torch.float32),
        "transformer": WanTransformer3DModel(**video),
        "scheduler": UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
    }
    WanPipeline(**parts).save_pretrained(root)
    index = json.loads((root / "model_index.json").read_text())
    (root / "model_index.json").write_text(json.dumps(index | {"latentloom": {"model": "micro"}}))
    return root
