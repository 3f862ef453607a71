"""A tiny bridge that has learned which words a vector stands for, with pairs of such texts, for tests of its scores."""

from itertools import product
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer

from latentloom.bridge.backbone import Backbone
from latentloom.bridge.config import LoraConfig, ModelConfig
from latentloom.bridge.model import LatentBridge
from latentloom.bridge.pairs import PairSet
from latentloom.bridge.sentence_encoders import SentenceEncoder

DIM = 24
COLOURS = ("red", "green", "blue", "black", "white", "brown")
THINGS = ("cat", "house", "tree", "boat", "stone", "bird")


def scene_encoder(backbone: Backbone, dim: int = DIM) -> SentenceEncoder:
    """An encoder whose vector of a text is the mean of random vectors of its tokens."""
    torch.manual_seed(dim)
    tokenizer = Tokenizer.from_file(str(Path(backbone.tokenizer.name_or_path) / "tokenizer.json"))
    module = StaticEmbedding(tokenizer, embedding_dim=dim)
    return SentenceEncoder(SentenceTransformer(modules=[module], device="cpu"), "static", {"query": "", "passage": ""})


def scene_pairs(encoder: SentenceEncoder) -> tuple[PairSet, PairSet]:
    """Pairs for training, and held-out ones whose words occur in training, though never together."""
    texts = [f"a {colour} {thing} in the sky" for colour, thing in product(COLOURS, THINGS)]
    vectors = encoder.encode(texts).values.numpy().astype(np.float32)
    pairs = PairSet(texts, vectors, "scenes")
    is_held_out = [(row // 6 + row) % 4 == 0 for row in range(len(texts))]
    train = [row for row, out in enumerate(is_held_out) if not out]
    return pairs.select(train), pairs.select([row for row, out in enumerate(is_held_out) if out])


LEARNS_ALL = ModelConfig(
    num_prefix_tokens=2,
    freeze_backbone=False,
    freeze_lm_head=False,
    encoder_dropout=0.0,
    encoder_hidden=64,
    lora=LoraConfig(rank=0),
)


def train_scene_bridge(
    backbone: Backbone, train: PairSet, num_steps: int = 50, settings: ModelConfig = LEARNS_ALL
) -> LatentBridge:
    """A bridge that learned to say a vector's text and to predict it, in seconds; by default with its backbone."""
    torch.manual_seed(0)
    bridge = LatentBridge(backbone, settings, train.dim)
    bridge.standardizer.fit(*train.moments())
    texts, vectors = train.load(range(len(train)))
    ids = bridge.tokenize(texts)
    with torch.no_grad():
        features = bridge.pool(ids)
    bridge.text_to_latent.features.fit(features.mean(0), features.std(0))
    optimizer = torch.optim.AdamW([weight for weight in bridge.parameters() if weight.requires_grad], lr=3e-3)
    wanted = bridge.standardizer(vectors)
    for step in range(num_steps):
        dropped = torch.arange(len(ids)) % 8 == step % 8
        loss = bridge.token_losses(vectors, ids, dropped)[0].mean()
        loss = loss + (bridge.text_to_latent(bridge.pool(ids)) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return bridge.eval()
