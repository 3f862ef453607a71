"""The whole recipe of MicroWan: three trained stages, then half-precision weights in diffusers layout."""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

from latentloom.errors import ConfigError, FileError
from latentloom.micro.config import NUM_PROCESSES, BuildConfig
from latentloom.micro.experiment import build_trainings, samples_seen
from latentloom.micro.latents import encode_world, latent_statistics, load_latents, load_trained_vae
from latentloom.micro.model_card import model_card
from latentloom.micro.tokenizer import make_tokenizer
from latentloom.micro.train_text import load_trained_encoder, train_text
from latentloom.micro.train_transformer import make_transformer, train_transformer
from latentloom.micro.train_vae import train_vae
from latentloom.runs import RunFolder, launch_processes, to_toml
from latentloom.storage import replace_folder, write_json, write_text
from latentloom.training import load_state, read_curve
from latentloom.wan import facts

logger = logging.getLogger(__name__)

#: What the shipped weights may take, in bytes.
LARGEST_SIZE = 10_000_000
#: Names of the stages that leave a curve, `<name>.jsonl`.
CURVES = ("vae", "text", "transformer")


@dataclass(frozen=True)
class Stage:
    """One step of the recipe: run by every process, finished once all its files are there."""

    name: str
    files: tuple[str, ...]
    run: Callable[..., None]
    arguments: tuple


def build(config: BuildConfig, work: Path, out: Path) -> None:
    """Train MicroWan and write its weights; a build that was interrupted continues where it stopped.

    Args:
        config: the recipe.
        work: folder of checkpoints and curves, kept afterwards.
        out: folder of the weights, in diffusers layout; replaced as a whole at the end.

    Raises:
        ConfigError: `work` holds a build with other settings, or lies in `out`.
        FileError: `out` is a folder of something else.
    """
    _check_out(out, work)
    work.mkdir(parents=True, exist_ok=True)
    settings = work / "config.toml"
    if settings.exists() and settings.read_text() != to_toml(config):
        raise ConfigError(f"{work} holds a build with other settings: give another --work folder, or delete it")
    write_text(settings, to_toml(config))
    data = f"MicroWan's world, training split, {config.transformer.num_clips} clips"
    facts = build_trainings(config)
    with RunFolder.create(work / "runs", "micro-build", config, data=data, trainings=facts) as run:
        for stage in stages(config, work):
            if all((work / file).exists() for file in stage.files):
                logger.info("%s: finished before", stage.name)
                continue
            launch_processes(stage.run, NUM_PROCESSES, *stage.arguments)
        export(config, work, out)
        _show_curves(run, work)
        seconds = _stage_seconds(work)
        for stage, count in samples_seen(config).items():
            run.state_throughput(count / max(seconds[stage], 1e-9), f"{stage} samples")
        run.finish(build_summary(work, out))


def stages(config: BuildConfig, work: Path) -> list[Stage]:
    """The stages in their order."""
    encoding = (config.transformer.num_clips, config.vae, config.seed, work)
    shares = tuple(f"latents_{rank}.safetensors" for rank in range(NUM_PROCESSES))
    return [
        Stage("VAE", ("vae.safetensors",), train_vae, (config.vae, config.seed, work)),
        Stage("text encoder", ("text.safetensors",), train_text, (config.text, config.seed, work)),
        Stage("latents", shares, encode_world, encoding),
        Stage("DiT", ("transformer.safetensors",), train_transformer, (config, work)),
    ]


def build_summary(work: Path, out: Path) -> dict[str, Any]:
    """Seconds and last measures of each stage, and the bytes of the weights."""
    curves = {stage: read_curve(work / f"{stage}.jsonl") for stage in CURVES}
    return {
        "num_bytes": _folder_size(out),
        "seconds": sum(curve[-1]["seconds"] for curve in curves.values()),
        "stages": {stage: curve[-1] for stage, curve in curves.items()},
    }


def _stage_seconds(work: Path) -> dict[str, float]:
    """What each stage took, over all its sittings."""
    return {stage: read_curve(work / f"{stage}.jsonl")[-1]["seconds"] for stage in CURVES}


def export(config: BuildConfig, work: Path, out: Path) -> None:
    """Write the trained parts as half-precision safetensors in diffusers layout, with a model card."""
    text = load_trained_encoder(config.text, work)
    transformer = make_transformer(config.transformer, config.vae.latent_channels, config.text.d_model)
    load_state(work / "transformer.safetensors", {"transformer": transformer}, [])
    vae = load_trained_vae(config.vae, work)
    mean, deviation = latent_statistics(load_latents(work)[0])
    vae.register_to_config(latents_mean=mean, latents_std=deviation)
    defaults = facts.get("micro")
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=defaults.shift
    )
    with replace_folder(out) as new:
        parts = {"text_encoder": text, "transformer": transformer, "vae": vae}
        for name, module in parts.items():
            module.to(torch.float16).save_pretrained(new / name)
        make_tokenizer().save_pretrained(new / "tokenizer")
        scheduler.save_pretrained(new / "scheduler")
        write_json(new / "model_index.json", _model_index())
        write_text(new / "README.md", model_card(config, {name: _num_parameters(part) for name, part in parts.items()}))
        size = _folder_size(new)
        if size > LARGEST_SIZE:
            raise ConfigError(
                f"these settings give {size / 1e6:.1f} MB of weights, more than {LARGEST_SIZE / 1e6:.0f}: shrink them"
            )
    logger.info("wrote %s, %.1f MB", out, size / 1e6)


def _show_curves(run: RunFolder, work: Path) -> None:
    """Copy the curves of all sittings into this run's TensorBoard log."""
    writer = run.tensorboard()
    for stage in CURVES:
        for line in read_curve(work / f"{stage}.jsonl"):
            for measure in line.keys() - {"step", "seconds"}:
                writer.add_scalar(f"{stage}/{measure}", line[measure], int(line["step"]))


def _model_index() -> dict:
    return {
        "_class_name": "WanPipeline",
        "_diffusers_version": diffusers.__version__,
        "latentloom": {"model": "micro"},
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "transformer_2": [None, None],
        "vae": ["diffusers", "AutoencoderKLWan"],
    }


def _check_out(out: Path, work: Path) -> None:
    """What is there will be replaced, so it must be nothing, or MicroWan and not another model in the same layout."""
    if work.resolve().is_relative_to(out.resolve()):
        raise ConfigError(f"{work} lies in {out}, which will be replaced as a whole: give --work a folder outside")
    index = out / "model_index.json"
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not _is_micro(index))):
        raise FileError(f"{out} holds something other than MicroWan's weights: give a new folder to --out")


def _is_micro(index: Path) -> bool:
    try:
        found = json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.get("latentloom") == _model_index()["latentloom"]


def _folder_size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _num_parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
