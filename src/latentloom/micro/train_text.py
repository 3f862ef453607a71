"""Stage 2 of MicroWan: a small `UMT5EncoderModel`, warmed up so that the DiT meets words that already differ."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import UMT5Config, UMT5EncoderModel

from latentloom.micro.attributes import VALUES, Attributes, split
from latentloom.micro.captions import training_caption
from latentloom.micro.config import NUM_PROCESSES, TextConfig
from latentloom.micro.lexicon import parse
from latentloom.micro.loop import Curve, step_generator, take_step
from latentloom.micro.tokenizer import EOS_ID, PAD_ID, make_tokenizer
from latentloom.runs import track
from latentloom.tensors import TextEmbeddings
from latentloom.training import make_optimizers, save_state, set_learning_rate, trapezoid
from latentloom.wan.text_encoder import WanTextEncoder


def make_text_encoder(config: TextConfig) -> UMT5EncoderModel:
    """An untrained UMT5 encoder for MicroWan's tokenizer."""
    encoder = UMT5EncoderModel(
        UMT5Config(
            vocab_size=len(make_tokenizer()),
            d_model=config.d_model,
            d_kv=config.d_kv,
            d_ff=config.d_ff,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            pad_token_id=PAD_ID,
            eos_token_id=EOS_ID,
        )
    )
    # UMT5 starts its embeddings at unit size, which suits widths of thousands; here words would hardly move.
    nn.init.normal_(encoder.shared.weight, std=0.3)
    return encoder


def train_text(rank: int, config: TextConfig, seed: int, folder: Path) -> None:
    """Train encoder and one linear head per attribute on training captions; leave `text.safetensors` in the folder.

    A caption that leaves an attribute open has its own class, so the encoder also learns what is not said.
    """
    torch.manual_seed(seed + 1)
    encoder = make_text_encoder(config)
    reader = WanTextEncoder(encoder, make_tokenizer())
    heads = nn.ModuleDict({name: nn.Linear(config.d_model, len(values) + 1) for name, values in VALUES.items()})
    optimizers = make_optimizers([encoder, heads], muon_lr=config.muon_lr, adam_lr=config.adam_lr)
    clips = split("train")
    curve = Curve(folder / "text.jsonl", 0) if rank == 0 else None
    for step in track(config.steps, "text encoder"):
        set_learning_rate(optimizers, trapezoid(step, config.steps, warmup=20))
        generator = step_generator(seed + 1, step, rank)
        picks = torch.randint(len(clips), (config.batch // NUM_PROCESSES,), generator=generator).tolist()
        captions = [training_caption(clips[pick], generator, attribute_dropout=0.3) for pick in picks]
        pooled = torch.stack([tokens.mean(dim=0) for tokens in encode_with_gradient(reader, captions).to_list()])
        said = [parse(text) for text in captions]
        losses = {name: F.cross_entropy(head(pooled), _classes(said, name)) for name, head in heads.items()}
        take_step(torch.stack(list(losses.values())).mean(), [encoder, heads], optimizers)
        if curve is not None:
            curve.append(step, **{name: loss.item() for name, loss in losses.items()})
    if rank == 0:
        save_state(folder / "text.safetensors", config.steps, {"text": encoder}, [])


def encode_with_gradient(encoder: WanTextEncoder, captions: list[str]) -> TextEmbeddings:
    """The embeddings that `WanTextEncoder.encode` gives, as part of the graph."""
    ids, mask = encoder.tokenize(captions)
    hidden = encoder.model(ids, attention_mask=mask.long()).last_hidden_state
    return TextEmbeddings.from_padded(hidden, mask=mask)


def _classes(said: list[Attributes], attribute: str) -> Tensor:
    values = [item.mentioned().get(attribute) for item in said]
    return torch.tensor([VALUES[attribute].index(value) + 1 if value else 0 for value in values])
