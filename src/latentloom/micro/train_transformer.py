"""Stage 3 of MicroWan: a small `WanTransformer3DModel` by flow matching, on the frozen text encoder."""

from pathlib import Path

import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from jaxtyping import Float
from torch import Tensor, nn

from latentloom.micro.captions import training_caption
from latentloom.micro.config import NUM_PROCESSES, BuildConfig, TransformerConfig
from latentloom.micro.latents import latent_statistics, load_latents
from latentloom.micro.loop import step_generator, take_step
from latentloom.micro.tokenizer import make_tokenizer
from latentloom.micro.train_text import load_trained_encoder
from latentloom.runs import track
from latentloom.tensors import TextEmbeddings
from latentloom.training import (
    Curve,
    WeightAverage,
    load_state,
    make_optimizers,
    save_state,
    set_learning_rate,
    trapezoid,
)
from latentloom.wan.folded_padding import fold_padding
from latentloom.wan.text_encoder import WanTextEncoder

#: The model's ends, which Muon is not meant for.
_ENDS = ("condition_embedder", "proj_out", "patch_embedding", "scale_shift_table")


def make_transformer(config: TransformerConfig, latent_channels: int, text_dim: int) -> WanTransformer3DModel:
    """An untrained transformer of Wan's class: Xavier matrices, and an output that starts at zero."""
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=config.num_heads,
        attention_head_dim=config.head_dim,
        in_channels=latent_channels,
        out_channels=latent_channels,
        text_dim=text_dim,
        freq_dim=config.freq_dim,
        ffn_dim=config.ffn_dim,
        num_layers=config.num_layers,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=1024,
    )
    for module in transformer.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    nn.init.xavier_uniform_(transformer.patch_embedding.weight.flatten(1))
    nn.init.zeros_(transformer.proj_out.weight)
    return transformer


def train_transformer(rank: int, config: BuildConfig, folder: Path) -> None:
    """Train the transformer; leave `transformer.safetensors` with its averaged weights in the folder."""
    settings, seed = config.transformer, config.seed + 3
    torch.manual_seed(seed)
    reader = WanTextEncoder(load_trained_encoder(config.text, folder), make_tokenizer())
    transformer = make_transformer(settings, config.vae.latent_channels, config.text.d_model)
    average = WeightAverage(transformer, settings.ema_decay)
    parts = {"transformer": transformer, "average": average}
    optimizers = make_optimizers([transformer], muon_lr=settings.muon_lr, adam_lr=settings.adam_lr, adam_names=_ENDS)
    state_file = folder / "transformer_state.safetensors"
    first = load_state(state_file, parts, optimizers) if state_file.exists() else 0
    latents, shown = load_latents(folder)
    mean, deviation = (torch.tensor(values).view(-1, 1, 1, 1) for values in latent_statistics(latents))
    latents = (latents - mean) / deviation
    curve = Curve(folder / "transformer.jsonl", first) if rank == 0 else None
    for step in track(range(first, settings.steps), "DiT"):
        factor = trapezoid(step, settings.steps, warmup=settings.warmup, decay_share=settings.decay_share)
        set_learning_rate(optimizers, factor)
        generator = step_generator(seed, step, rank)
        picks = torch.randint(len(latents), (settings.batch // NUM_PROCESSES,), generator=generator)
        captions = [
            training_caption(
                shown[pick],
                generator,
                caption_dropout=settings.caption_dropout,
                attribute_dropout=settings.attribute_dropout,
            )
            for pick in picks.tolist()
        ]
        text = with_noise(reader.encode(captions), settings.text_noise, generator)
        loss = _flow_matching_loss(transformer, text, latents[picks], settings.timestep_shift, generator)
        take_step(loss, [transformer], optimizers)
        average.update(transformer)
        if curve is not None:
            curve.append(step, loss=loss.item(), learning_rate=factor)
            if (step + 1) % settings.save_every == 0:
                save_state(state_file, step + 1, parts, optimizers)
    average.copy_to(transformer)
    if rank == 0:
        save_state(folder / "transformer.safetensors", settings.steps, {"transformer": transformer}, [])


def with_noise(text: TextEmbeddings, level: float, generator: torch.Generator) -> TextEmbeddings:
    """The embeddings with Gaussian noise of `level` times each token's length added to the token.

    A DiT of a few hundred captions would otherwise hang on the last digit of its words; Wan has read millions.
    """
    noise = torch.randn(text.tokens.shape, generator=generator) / text.dim**0.5
    return TextEmbeddings(text.tokens + level * text.tokens.norm(dim=-1, keepdim=True) * noise, text.lengths)


def _flow_matching_loss(
    transformer: WanTransformer3DModel,
    text: TextEmbeddings,
    latents: Float[Tensor, "B C T H W"],
    shift: float,
    generator: torch.Generator,
) -> Tensor:
    """Mean squared error of the predicted velocity, noise levels logit-normal and shifted towards noise.

    Source: Esser et al. 2024, arXiv:2403.03206, sections 3.1 and 5.3.2.
    """
    level = torch.sigmoid(torch.randn(len(latents), generator=generator))
    level = shift * level / (1 + (shift - 1) * level)
    noise = torch.randn(latents.shape, generator=generator)
    mixed = torch.lerp(latents, noise, level.view(-1, 1, 1, 1, 1))
    with fold_padding(transformer) as fold:
        velocity = transformer(mixed, level * 1000, fold(text), return_dict=False)[0]
    return (velocity - (noise - latents)).square().mean()
