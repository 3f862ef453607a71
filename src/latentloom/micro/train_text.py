"""Stage 2 of MicroWan: a small `UMT5EncoderModel` that learns words from text alone, before there are any clips.

Wan's encoder has read far more than captions, and is frozen when the DiT is trained. MicroWan's reads texts in all
three lexicons; the DiT then meets the seen one only. So the encoder knows every word, and the DiT a third of them.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers import UMT5Config, UMT5EncoderModel

from latentloom.micro.attributes import split
from latentloom.micro.captions import reading_text
from latentloom.micro.config import NUM_PROCESSES, TextConfig
from latentloom.micro.loop import step_generator, take_step
from latentloom.micro.tokenizer import EOS_ID, PAD_ID, UNK_ID, make_tokenizer
from latentloom.runs import track
from latentloom.training import Curve, load_state, make_optimizers, save_state, set_learning_rate, trapezoid
from latentloom.wan.text_encoder import WanTextEncoder

_WARMUP = 20


def make_text_encoder(config: TextConfig) -> UMT5EncoderModel:
    """An untrained UMT5 encoder for MicroWan's tokenizer."""
    return UMT5EncoderModel(
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


def train_text(rank: int, config: TextConfig, seed: int, folder: Path) -> None:
    """Train the encoder to name masked words, and the others too; leave `text.safetensors` in the folder.

    The head that names them is thrown away. The final norm keeps its gains of 1, so that all tokens are equally long.

    Source: Devlin et al. 2019, arXiv:1810.04805, section 3.1 (masked language modelling), with a linear head instead
    of the decoder that UMT5 was trained with.
    """
    torch.manual_seed(seed + 1)
    encoder = make_text_encoder(config)
    encoder.encoder.final_layer_norm.weight.requires_grad_(False)
    reader = WanTextEncoder(encoder, make_tokenizer())
    head = nn.Linear(config.d_model, encoder.config.vocab_size)
    optimizers = make_optimizers([encoder, head], muon_lr=config.muon_lr, adam_lr=config.adam_lr)
    clips = split("train")
    curve = Curve(folder / "text.jsonl", 0) if rank == 0 else None
    for step in track(config.steps, "text encoder"):
        set_learning_rate(optimizers, trapezoid(step, config.steps, warmup=_WARMUP))
        generator = step_generator(seed + 1, step, rank)
        picks = torch.randint(len(clips), (config.batch // NUM_PROCESSES,), generator=generator).tolist()
        texts = [reading_text(clips[pick], generator) for pick in picks]
        masked, kept = _word_losses(reader, head, texts, config.mask_share, generator)
        take_step(masked + config.kept_weight * kept, [encoder, head], optimizers)
        if curve is not None:
            curve.append(step, masked=masked.item(), kept=kept.item())
    if rank == 0:
        save_state(folder / "text.safetensors", config.steps, {"text": encoder}, [])


def load_trained_encoder(config: TextConfig, folder: Path) -> UMT5EncoderModel:
    """The encoder that this stage left in the folder, frozen."""
    encoder = make_text_encoder(config)
    load_state(folder / "text.safetensors", {"text": encoder}, [])
    return encoder.eval().requires_grad_(False)


def _word_losses(
    reader: WanTextEncoder, head: nn.Linear, texts: list[str], mask_share: float, generator: torch.Generator
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Cross-entropy of naming the masked tokens, and of naming the tokens that stand there to be read."""
    ids, is_token = reader.tokenize(texts)
    is_masked = (torch.rand(ids.shape, generator=generator) < mask_share) & is_token & (ids != EOS_ID)
    hidden = reader.model(ids.masked_fill(is_masked, UNK_ID), attention_mask=is_token.long()).last_hidden_state
    # at length sqrt(D) a linear head could be sure of everything at once, and would stop teaching
    logits = head(F.normalize(hidden[is_token], dim=-1) * hidden.shape[-1] ** 0.5 / 2**0.5)
    losses = F.cross_entropy(logits, ids[is_token], reduction="none")
    chosen = is_masked[is_token]
    return losses[chosen].sum() / chosen.sum().clamp_min(1), losses[~chosen].mean()
