"""Activations of a transformer's blocks for given noised latents, a given timestep and given prompts."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from jaxtyping import Float
from torch import Tensor, nn

from latentloom.errors import ConfigError, CorruptFileError, FileError, ShapeError
from latentloom.steering.plan import Site
from latentloom.steering.projection import require_weights
from latentloom.storage import read_module, save_module
from latentloom.tensors import TextEmbeddings, VideoLatents
from latentloom.wan.pipeline import WanPipeline
from latentloom.wan.sampling import NUM_TRAIN_TIMESTEPS, SamplingSettings

SITES: tuple[Site, ...] = get_args(Site)


@dataclass(frozen=True, eq=False)
class BlockActivations:
    """What some blocks held during one call of the transformer.

    The document calls the hidden states after N blocks "latent embeddings"; they are `after_blocks(N)`. A constant that
    is added to every channel of a hidden state is gone after the next LayerNorm, so differences between two of these
    in that one direction mean nothing.

    Args:
        values: by block, B clips of S rows of D channels, on the CPU. At "context" these are text rows, in float32 with
            one row for all padding; at "hidden_states" the number of blocks stands for the output of the last one.
        site: where they were taken.
        timestep: 0 to 1,000.
        record: how they came about, JSON values.

    Raises:
        ShapeError: no block, or blocks that differ in shape.
        ConfigError: an unknown site.
    """

    values: dict[int, Float[Tensor, "B S D"]]
    site: Site
    timestep: float
    record: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.site not in SITES:
            raise ConfigError(f"site={self.site!r} is unknown; use {', '.join(SITES)}")
        shapes = {tuple(rows.shape) for rows in self.values.values()}
        if len(shapes) != 1 or len(next(iter(shapes))) != 3:
            raise ShapeError(f"activations of shapes {sorted(shapes)}; give at least one block, all of one [B, S, D]")

    def after_blocks(self, num_blocks: int) -> Float[Tensor, "B S D"]:
        """The hidden states that have passed this many blocks: the input of the block of that number.

        Raises:
            ConfigError: they were not captured.
        """
        if self.site != "hidden_states":
            raise ConfigError(
                f"these activations are of site {self.site}; capture hidden_states for what blocks return"
            )
        if num_blocks not in self.values:
            held = ", ".join(map(str, sorted(self.values)))
            raise ConfigError(f"activations after {num_blocks} blocks were not captured; these are after {held}")
        return self.values[num_blocks]


@torch.no_grad()
def capture_activations(
    pipeline: WanPipeline,
    latents: VideoLatents,
    timestep: float,
    text: list[str] | TextEmbeddings,
    blocks: Sequence[int],
    site: Site = "hidden_states",
) -> BlockActivations:
    """Activations of one call of the transformer, without guidance and without steering.

    Args:
        pipeline: the model; of two experts the one in charge of the timestep is called.
        latents: B clips as noisy as the timestep says, see `noised`. There is no default: what a block holds depends
            on them, and on noise that nobody chose it would mean nothing.
        timestep: 0 to 1,000.
        text: one prompt per clip.
        blocks: which ones, counted from 0. At "hidden_states" this is the input of each block, and the number of blocks
            is allowed too: the output of the last one.
        site: where in the blocks.

    Raises:
        ConfigError: an unknown block or site, a timestep out of range, or weights that are not loaded.
        ShapeError: another number of prompts than of clips, or latents of another model.
    """
    expert, _ = pipeline.expert(timestep, SamplingSettings.for_model(pipeline.facts))
    require_weights(expert)
    _check_timestep(timestep)
    _check_blocks(blocks, site, len(expert.blocks))
    encoded = pipeline.encode(text)
    if len(encoded) != len(latents):
        raise ShapeError(f"{len(encoded)} prompts for {len(latents)} clips; give one prompt per clip")
    channels, wanted = latents.values.shape[1], expert.config["in_channels"]
    if channels != wanted:
        raise ShapeError(f"latents of {channels} channels; this model's have {wanted}")
    values: dict[int, Tensor] = {}
    with watched(expert, blocks, site, values):
        time = torch.tensor(timestep, device=pipeline.device)
        pipeline.predict(expert, latents.values.to(pipeline.device), time, encoded)
    record = {
        "model": pipeline.facts.key,
        "prompts": list(text) if isinstance(text, list) else None,
        "lengths": encoded.lengths.tolist(),
        "latents_shape": list(latents.values.shape),
        "num_blocks": len(expert.blocks),
        "is_low_noise_expert": expert is pipeline.transformer_2,
    }
    return BlockActivations({block: values[block] for block in sorted(values)}, site, float(timestep), record)


def noised(latents: VideoLatents, timestep: float, generator: torch.Generator) -> VideoLatents:
    """Clean latents as they stand at a timestep: (1 - sigma) x + sigma noise, with sigma = timestep / 1000.

    Args:
        latents: clean, as the VAE of the pipeline encodes them.
        timestep: 0 (clean) to 1,000 (noise alone).
        generator: draws the noise, on its own device.

    Raises:
        ConfigError: a timestep out of range.
    """
    _check_timestep(timestep)
    sigma = timestep / NUM_TRAIN_TIMESTEPS
    noise = torch.randn(latents.values.shape, generator=generator, device=generator.device).to(latents.device)
    mixed = (1 - sigma) * latents.values.float() + sigma * noise
    return VideoLatents(mixed.to(latents.dtype))


def save_activations(path: Path | str, activations: BlockActivations) -> None:
    """Write activations as safetensors, exactly, in their own dtype."""
    tensors = {f"block_{block}": rows for block, rows in activations.values.items()}
    config = {"site": activations.site, "timestep": activations.timestep}
    save_module(path, tensors, BlockActivations.__name__, config, activations.record)


def load_activations(path: Path | str) -> BlockActivations:
    """What `save_activations` wrote, on the CPU.

    Raises:
        FileError: no such file, or it holds something else.
        CorruptFileError: damaged.
    """
    stored = read_module(path)
    if stored.kind != BlockActivations.__name__:
        raise FileError(f"{path} holds {stored.kind}; give a file of block activations")
    names = {name: name.removeprefix("block_") for name in stored.tensors}
    site, timestep = stored.config.get("site"), stored.config.get("timestep")
    shapes = {tuple(rows.shape) for rows in stored.tensors.values()}
    floats = all(rows.is_floating_point() for rows in stored.tensors.values())
    if not names or not floats or not all(number.isdecimal() for number in names.values()):
        raise CorruptFileError(f"{path} is damaged: it holds {sorted(names)[:3]} in the place of blocks; make it anew")
    if site not in SITES or not isinstance(timestep, int | float):
        raise CorruptFileError(f"{path} is damaged: site {site!r} or timestep {timestep!r} is none; make it anew")
    if len(shapes) != 1 or len(next(iter(shapes))) != 3:
        raise CorruptFileError(f"{path} is damaged: its blocks have the shapes {sorted(shapes)}; make it anew")
    values = {int(names[name]): stored.tensors[name] for name in sorted(names, key=lambda name: int(names[name]))}
    return BlockActivations(values, site, float(timestep), stored.record or {})


Keep = Callable[[Float[Tensor, "B S D"]], Tensor]
"""What is kept of a block's rows."""


def kept_whole(rows: Float[Tensor, "B S D"]) -> Float[Tensor, "B S D"]:
    """All rows, on the CPU, so that the blocks of a large model do not fill the device."""
    return rows.detach().to("cpu", copy=True)  # a copy, since callers may write in place


@contextmanager
def watched(
    model: WanTransformer3DModel,
    blocks: Sequence[int],
    site: Site,
    values: dict[int, Tensor],
    keep: Keep = kept_whole,
) -> Iterator[None]:
    """Within this context, a call of the model fills `values`; the hooks are gone afterwards, come what may.

    Args:
        model: the transformer.
        blocks, site: see `capture_activations`.
        values: by block, filled anew by every call.
        keep: what to keep of the rows.
    """
    with ExitStack() as stack:
        # a compiled model would not look at hooks that come after its compilation
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        for block in blocks:
            module, takes_output = _place(model, block, site)
            if takes_output:
                handle = module.register_forward_hook(_keep_output(values, block, keep), with_kwargs=True)
            else:
                handle = module.register_forward_pre_hook(_keep_input(values, block, site, keep), with_kwargs=True)
            stack.callback(handle.remove)
        yield


def _place(model: WanTransformer3DModel, block: int, site: Site) -> tuple[nn.Module, bool]:
    """The module to watch, and whether its output is wanted."""
    layers = list(model.blocks)
    if site == "hidden_states":
        return (layers[block], False) if block < len(layers) else (layers[-1], True)
    return layers[block].get_submodule("attn2"), site == "attention_output"


def _keep_output(values: dict[int, Tensor], block: int, keep: Keep) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor) -> None:
        values[block] = keep(output)

    return hook


def _keep_input(values: dict[int, Tensor], block: int, site: Site, keep: Keep) -> Callable[..., None]:
    position, name = (1, "encoder_hidden_states") if site == "context" else (0, "hidden_states")

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        values[block] = keep(args[position] if len(args) > position else kwargs[name])

    return hook


def _check_timestep(timestep: float) -> None:
    if not 0 <= timestep <= NUM_TRAIN_TIMESTEPS:
        raise ConfigError(f"timestep={timestep} is out of range; use 0 (clean) to {NUM_TRAIN_TIMESTEPS} (noise)")


def _check_blocks(blocks: Sequence[int], site: Site, num_blocks: int) -> None:
    if site not in SITES:
        raise ConfigError(f"site={site!r} is unknown; use {', '.join(SITES)}")
    last = num_blocks if site == "hidden_states" else num_blocks - 1
    if not blocks:
        raise ConfigError(f"no block was asked for; give numbers from 0 to {last}")
    for block in blocks:
        if not 0 <= block <= last:
            raise ConfigError(f"block {block} does not exist at {site}; this model has 0 to {last}")
