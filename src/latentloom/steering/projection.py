"""What cross-attention reads of a prompt: encoder rows after the transformer's own text embedder.

The text embedder works on each row alone, so a row of zeros, which is what stands behind every prompt up to row 512,
becomes one and the same vector whatever the prompt.
"""

import torch
from diffusers.models.transformers.transformer_wan import WanAttention, WanTransformer3DModel
from jaxtyping import Float
from torch import Tensor, nn

from latentloom.errors import ConfigError, ShapeError
from latentloom.steering.text_rows import TextRows
from latentloom.tensors import TextEmbeddings
from latentloom.wan.text_encoder import MAX_TOKENS

_LOGITS_AT_ONCE = 2**25
"""Attention weights held at a time, 128 MiB of them: a default TI2V-5B clip has gigabytes per block."""


def project(transformer: WanTransformer3DModel, text: TextEmbeddings) -> TextEmbeddings:
    """True tokens as the transformer's blocks read them: in the model's width, in the dtype and place they came in.

    Gradients reach the tokens where these ask for them, and nothing else.

    Args:
        transformer: its text embedder is applied, in the embedder's own dtype.
        text: encoder rows; no padding is added.

    Raises:
        ShapeError: rows of another width than this model's text.
        ConfigError: the transformer's weights are not loaded.
    """
    with torch.set_grad_enabled(torch.is_grad_enabled() and text.tokens.requires_grad):
        rows = project_rows(transformer, text.tokens)
    return TextEmbeddings(rows.to(text.dtype), text.lengths)


@torch.no_grad()
def pad_vector(transformer: WanTransformer3DModel) -> Float[Tensor, "D"]:
    """The one vector that every padding row becomes, in the text embedder's dtype and on its device.

    Raises:
        ConfigError: the transformer's weights are not loaded.
    """
    weight = next(transformer.condition_embedder.text_embedder.parameters())
    return project_rows(transformer, weight.new_zeros(1, transformer.config["text_dim"]))[0]


@torch.no_grad()
def text_rows(transformer: WanTransformer3DModel, text: TextEmbeddings, folded: bool) -> TextRows:
    """A batch of prompts as `WanPipeline.predict` lets cross-attention read it, padding included.

    An image-to-video model puts image tokens before these rows; only the last rows of its context are the text's.

    Args:
        transformer: whose text embedder is applied.
        text: encoder rows, on the device that the model computes on.
        folded: one row for all padding (`WanPipeline.folds_padding`), or 512 rows.

    Raises:
        ShapeError: rows of another width than this model's text, or a prompt of more than 512 rows.
        ConfigError: the transformer's weights are not loaded.
    """
    longest = max(text.lengths.tolist(), default=0)
    padded = text.padded(longest + 1 if folded and longest <= MAX_TOKENS else MAX_TOKENS)
    return TextRows(project_rows(transformer, padded), text.lengths, MAX_TOKENS if folded else None)


def project_rows(transformer: WanTransformer3DModel, rows: Float[Tensor, "*rows T"]) -> Float[Tensor, "*rows D"]:
    """Rows of the text encoder after the transformer's text embedder, in its dtype and on the rows' own device.

    Raises:
        ShapeError: rows of another width than this model's text.
        ConfigError: the transformer's weights are not loaded.
    """
    require_weights(transformer)
    wanted = transformer.config["text_dim"]
    if rows.shape[-1] != wanted:
        raise ShapeError(f"text of {rows.shape[-1]} channels; this transformer reads text of {wanted}")
    embedder = transformer.condition_embedder.text_embedder
    weights = dict(embedder.named_parameters())
    rows = rows.to(next(iter(weights.values())).dtype)
    if all(weight.device == rows.device for weight in weights.values()):
        return embedder(rows)
    # offloaded weights rest on another device than the one that computes
    moved = {name: weight.to(rows.device) for name, weight in weights.items()}
    return torch.func.functional_call(embedder, moved, (rows,))


@torch.no_grad()
def attention_mass(
    attention: WanAttention, hidden_states: Float[Tensor, "B S D"], text: TextRows
) -> Float[Tensor, "B K"]:
    """How much of its attention a layer gives to each row: softmax weights, averaged over heads and queries; sums to 1.

    Args:
        attention: a block's `attn2`.
        hidden_states: what the layer asks with, its first input.
        text: what it reads; a folded row gets the attention of all the padding that it stands for.
    """
    queries, keys = (
        norm(rows).unflatten(2, (attention.heads, -1)).transpose(1, 2).float()
        for norm, rows in (
            (attention.norm_q, attention.to_q(hidden_states)),
            (attention.norm_k, attention.to_k(text.rows)),
        )
    )
    batch, heads, num_queries, width = queries.shape
    bias = 0.0 if text.bias is None else text.bias.float()
    total = queries.new_zeros(batch, keys.shape[2])
    for some in queries.split(max(1, _LOGITS_AT_ONCE // max(1, batch * heads * keys.shape[2])), dim=2):
        total += (some @ keys.mT / width**0.5 + bias).softmax(dim=-1).sum(dim=(1, 2))
    return total / (heads * num_queries)


def require_weights(transformer: nn.Module) -> None:
    """Return if the transformer has its weights.

    Raises:
        ConfigError: some are on the meta device, where nothing can be computed.
    """
    if any(weight.is_meta for weight in transformer.parameters()):
        raise ConfigError("the transformer's weights are not loaded (meta device); load the checkpoint, then try again")
