"""A language model with a way in from sentence vectors and a way out to them."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from latentloom.bridge.backbone import Backbone
from latentloom.bridge.config import ModelConfig, Task
from latentloom.bridge.loss import linear_cross_entropy
from latentloom.bridge.parts import LatentPrefix, Standardizer, TextToLatent, default_layers
from latentloom.bridge.records import EncoderRecord
from latentloom.bridge.trainable import adapter_disabled, prepare_backbone
from latentloom.errors import CheckpointError, ConfigError, PromptError, ShapeError
from latentloom.tensors import SentenceVector

#: Tokens of texts that are read at a time where no gradient is needed.
BATCH_TOKENS = 4096

#: Positions up to which attention is computed by plain matrix products on a CPU.
SHORT = 64


@dataclass(frozen=True, eq=False)
class TextLosses:
    """How well a text is predicted, its end included.

    Attributes:
        loss: mean cross-entropy of each text, in nats.
        num_tokens: targets of each text: its tokens and the end.
        num_correct: of them, how many the model thought most likely.
    """

    loss: Float[Tensor, "B"]
    num_tokens: Int64[Tensor, "B"]
    num_correct: Int64[Tensor, "B"]


class LatentBridge(nn.Module):
    """Text -> sentence vector and back on a backbone.

    vector -> text: the vector becomes a few embeddings after the sink token, and the backbone predicts the text and its
    end token from there. text -> vector: states of some layers, averaged over the text's tokens, go through a head.

    Args:
        backbone: the language model, which becomes part of the module.
        config: the model's settings.
        latent_dim: channels of a vector.

    Attributes:
        dtype: of the frozen weights, and of what is computed with them.
        task: the directions that it is trained in, "joint" until told otherwise.
        vector_encoder: made the vectors that it is trained on; None where that is not known.

    Raises:
        ConfigError: layers that the backbone does not have, or an adapter that fits none of its layers.
    """

    def __init__(self, backbone: Backbone, config: ModelConfig, latent_dim: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.config = config
        self.latent_dim = latent_dim
        self.task: Task = "joint"
        self.vector_encoder: EncoderRecord | None = None
        self.layers = tuple(config.encoder_layers or default_layers(backbone.num_layers))
        if max(self.layers) > backbone.num_layers:
            raise ConfigError(
                f"encoder_layers = {list(self.layers)}; {backbone.name} has layers 1 to {backbone.num_layers}"
            )
        self.network = backbone.model
        self.dtype = backbone.embedding.weight.dtype
        prepare_backbone(backbone, config)
        width = backbone.hidden_size
        rms = float(backbone.embedding.weight.detach().float().square().mean().sqrt())
        self.standardizer = Standardizer(latent_dim)
        hidden = config.prefix_hidden or 3 * latent_dim
        self.latent_prefix = LatentPrefix(latent_dim, hidden, config.num_prefix_tokens, width, rms)
        features = len(self.layers) * width
        self.text_to_latent = TextToLatent(features, config.encoder_hidden, latent_dim, config.encoder_dropout)
        for part in (self.standardizer, self.latent_prefix, self.text_to_latent):
            part.to(backbone.embedding.weight.device)

    @property
    def device(self) -> torch.device:
        """Where the trained parts are."""
        return self.standardizer.mean.device

    @property
    def num_before_text(self) -> int:
        """Embeddings before the first token of a text that is predicted: the sink, and the prefix."""
        return int(self.config.attention_sink) + self.config.num_prefix_tokens

    def computing(self) -> AbstractContextManager:
        """Frozen and trained weights compute in the frozen ones' dtype for as long, as in training."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def prefix(
        self, vectors: Float[Tensor, "B D"] | None, num: int | None = None, dropped: Bool[Tensor, "B"] | None = None
    ) -> Float[Tensor, "B L H"]:
        """The embeddings that stand before a text: the sink token's, where it is used, and the vector's.

        Args:
            vectors: to say; None says nothing, which is the mean vector of the training set.
            num: rows when there are no vectors.
            dropped: rows that say nothing either.

        Raises:
            ShapeError: vectors of another width.
        """
        if vectors is not None and vectors.shape[-1] != self.latent_dim:
            raise ShapeError(f"vectors of {vectors.shape[-1]} channels; this bridge was made for {self.latent_dim}")
        with _full_precision(self.device):
            if vectors is None:
                standardized = torch.zeros(num or 1, self.latent_dim, device=self.device)
            else:
                standardized = self.standardizer(vectors.to(self.device))
            if dropped is not None:
                standardized = standardized.masked_fill(dropped[:, None], 0.0)
            embeddings = self.latent_prefix(standardized)
        embeddings = embeddings.to(self.dtype)
        if not self.config.attention_sink:
            return embeddings
        sink = torch.full((len(embeddings), 1), self.backbone.sink_id, device=self.device)
        return torch.cat([self.backbone.embedding(sink).to(embeddings.dtype), embeddings], dim=1)

    def token_losses(
        self,
        vectors: Float[Tensor, "B D"] | None,
        ids: Sequence[Sequence[int]],
        dropped: Bool[Tensor, "B"] | None = None,
    ) -> tuple[Float[Tensor, "N"], Bool[Tensor, "N"], Int64[Tensor, "N"]]:
        """Cross-entropy in nats of every target, whether it was the most likely, and the text it belongs to.

        Args:
            vectors: one for each text; None predicts the texts without.
            ids: each text's tokens, without special ones; the end token is added as the last target, unless the text
                was cut.
            dropped: rows whose vector is left out.
        """
        before = self.prefix(vectors, len(ids), dropped)
        targets, given = self._right_padded([[*row, self.backbone.end_id][: self.num_targets(row)] for row in ids])
        embeddings = torch.cat([before, self.backbone.embedding(targets[:, :-1]).to(before.dtype)], dim=1)
        seen = torch.cat([given.new_ones(len(ids), before.shape[1]), given[:, 1:]], dim=1)
        with _attention(self.device, embeddings.shape[1]):
            states = self.backbone.decoder(
                inputs_embeds=embeddings,
                attention_mask=None if bool(given.all()) else seen.long(),
                position_ids=torch.arange(embeddings.shape[1], device=self.device)[None],
                use_cache=False,
            ).last_hidden_state
        predicting = states[:, before.shape[1] - 1 :][given]
        loss, correct = linear_cross_entropy(predicting, self.backbone.output_weight, targets[given])
        rows = torch.arange(len(ids), device=self.device)[:, None].expand_as(given)[given]
        return loss, correct, rows

    def num_targets(self, row: Sequence[int]) -> int:
        """Targets of a text: its tokens and its end, which one that fills `max_seq_len`, and may be cut, has not."""
        return min(len(row) + 1, self.config.max_seq_len)

    @torch.no_grad()
    def text_losses(self, vectors: Float[Tensor, "B D"] | None, ids: Sequence[Sequence[int]]) -> TextLosses:
        """How well each text is predicted from its vector; see `token_losses`. Texts of similar length go together."""
        totals, corrects, counts = (torch.zeros(len(ids), dtype=torch.float64) for _ in range(3))
        for rows in by_length(ids, BATCH_TOKENS // 4):
            some = None if vectors is None else vectors[torch.tensor(rows, device=vectors.device)]
            with self.computing():
                loss, correct, owner = self.token_losses(some, [ids[row] for row in rows])
            places = torch.tensor(rows)[owner.cpu()]
            totals.index_add_(0, places, loss.double().cpu())
            corrects.index_add_(0, places, correct.double().cpu())
            counts.index_add_(0, places, torch.ones_like(loss, dtype=torch.float64).cpu())
        return TextLosses((totals / counts).float(), counts.long(), corrects.long())

    def pool(self, ids: Sequence[Sequence[int]]) -> Float[Tensor, "B F"]:
        """States of the pooled layers, averaged over each text's tokens and put side by side, in float32.

        Args:
            ids: tokens of each text, at least one; the sink token is put before them and not averaged.
        """
        num_sinks = int(self.config.attention_sink)
        tokens, given = self._right_padded([[self.backbone.sink_id] * num_sinks + list(row) for row in ids])
        reads_through_adapter = self.config.lora.encode or not self.config.lora.rank
        with nullcontext() if reads_through_adapter else adapter_disabled(self.network):
            states = self.backbone.decoder(
                input_ids=tokens,
                attention_mask=None if bool(given.all()) else given.long(),
                position_ids=torch.arange(tokens.shape[1], device=self.device)[None],
                use_cache=False,
                output_hidden_states=True,
            ).hidden_states
        counted = given.clone()
        counted[:, :num_sinks] = False
        weights = counted / counted.sum(1, keepdim=True)
        with _full_precision(self.device):
            return torch.cat([torch.einsum("bt,bth->bh", weights, states[layer].float()) for layer in self.layers], 1)

    @torch.no_grad()
    def pool_all(self, ids: Sequence[Sequence[int]], batch_tokens: int = BATCH_TOKENS) -> Float[Tensor, "B F"]:
        """As `pool`, of any number of texts, in batches of similar length and without a gradient."""
        features = torch.zeros(len(ids), len(self.layers) * self.backbone.hidden_size, device=self.device)
        for rows in by_length(ids, batch_tokens):
            with self.computing():
                features[torch.tensor(rows, device=self.device)] = self.pool([ids[row] for row in rows])
        return features

    @torch.no_grad()
    def encode(self, texts: Sequence[str], batch_tokens: int = BATCH_TOKENS) -> SentenceVector:
        """The vector of each text, in float32.

        Args:
            texts: none of them empty.
            batch_tokens: tokens read at a time.

        Raises:
            PromptError: no text, or an empty one.
            CheckpointError: it was trained for the other direction alone.
        """
        self.require_direction("t2l")
        return SentenceVector(self.predict(self.pool_all(self.tokenize(texts), batch_tokens)))

    def require_direction(self, direction: Literal["t2l", "l2t"]) -> None:
        """Return if it was trained in a direction; the other one's weights are random.

        Raises:
            CheckpointError: it was not.
        """
        if self.task not in (direction, "joint"):
            wanted = {"t2l": "makes no vectors of texts", "l2t": "makes no texts of vectors"}[direction]
            raise CheckpointError(
                f"this bridge was trained with task = {self.task!r} and {wanted}; give one that was trained with "
                f"task = {direction!r} or 'joint'"
            )

    def predict(self, features: Float[Tensor, "B F"]) -> Float[Tensor, "B D"]:
        """Vectors of texts whose pooled features these are."""
        with _full_precision(self.device):
            return self.standardizer.inverse(self.text_to_latent(features))

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of each text, without special ones, at most `max_seq_len` of them.

        Raises:
            PromptError: no text, or one without a token.
        """
        ids = self.backbone.tokenize(texts, self.config.max_seq_len) if texts else []
        if empty := [index for index, row in enumerate(ids) if not row]:
            raise PromptError(f"text {empty[0]} is empty; give texts with at least one word")
        if not ids:
            raise PromptError("no text was given; give at least one")
        return ids

    def _right_padded(self, rows: Sequence[Sequence[int]]) -> tuple[Int64[Tensor, "B T"], Bool[Tensor, "B T"]]:
        longest = max(len(row) for row in rows)
        tokens = torch.full((len(rows), longest), self.backbone.end_id)
        given = torch.zeros(len(rows), longest, dtype=torch.bool)
        for index, row in enumerate(rows):
            tokens[index, : len(row)] = torch.tensor(row)
            given[index, : len(row)] = True
        return tokens.to(self.device), given.to(self.device)


def by_length(ids: Sequence[Sequence[int]], batch_tokens: int = BATCH_TOKENS) -> list[list[int]]:
    """Row numbers from short texts to long ones, in batches of at most so many tokens with padding."""
    batches: list[list[int]] = []
    for row in sorted(range(len(ids)), key=lambda index: len(ids[index])):
        if batches and (len(batches[-1]) + 1) * (len(ids[row]) + 1) <= batch_tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def _attention(device: torch.device, length: int) -> AbstractContextManager:
    """The attention to compute with: of short texts on a CPU, the gradient of the fused one takes longer than it saves.

    At 18 positions it takes a fifth of a step on SmolLM2, and plain matrix products a twentieth.
    """
    if device.type == "cpu" and length <= SHORT:
        return sdpa_kernel(SDPBackend.MATH)
    return nullcontext()


def _full_precision(device: torch.device) -> AbstractContextManager:
    """Heads compute in float32: in bfloat16 their weights hardly move."""
    return torch.autocast(device.type, enabled=False)
