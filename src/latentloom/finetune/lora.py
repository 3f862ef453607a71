"""Low-rank adapters in a frozen Wan transformer, the same on however many processes it is spread.

What is drawn at random, the first weights and the dropout masks, follows from a seed and a layer's name alone.
"""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from hashlib import blake2b

import torch
from jaxtyping import Float
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

from latentloom.errors import ConfigError
from latentloom.wan.keys_transformer import TRANSFORMER_KEYS

ATTENTION_TARGETS = tuple(f"{kind}_attn.{part}" for kind in ("cross", "self") for part in "qkvo")
TARGETS = (*ATTENTION_TARGETS, "ffn.0", "ffn.2")
"""The linear layers of a block in the official names."""

_ADAPTER = "default"


def lora_targets(
    num_layers: int, blocks: tuple[int, int] | None, targets: Sequence[str], allow_self_attn: bool
) -> list[str]:
    """The layers that get an adapter, as diffusers names them (`blocks.3.attn2.to_k`), block by block.

    Args:
        num_layers: blocks of the transformer.
        blocks: first and last block, both included; None is all.
        targets: of `TARGETS`.
        allow_self_attn: whether layers of self-attention may be among them.

    Raises:
        ConfigError: an unknown target, blocks that the model does not have, or self-attention that was not allowed.

    Source: the Wan 2.2 trainer document, "Quality guardrail" and `train_blocks_range`.
    """
    if not targets:
        raise ConfigError("targets is empty, so nothing would be trained; give at least one, such as cross_attn.k")
    for target in targets:
        if target not in TARGETS:
            nearest = get_close_matches(target, TARGETS, n=1, cutoff=0)[0]
            raise ConfigError(f"target {target!r} is unknown; did you mean {nearest}? Known are {', '.join(TARGETS)}")
        if target.startswith("self_attn") and not allow_self_attn:
            raise ConfigError(
                f"target {target!r}: adapters in self-attention gave artefacts and unstable video in earlier tests; "
                "train cross_attn.k and cross_attn.v, or set allow_self_attn = true to do it all the same"
            )
    first, last = blocks if blocks is not None else (0, num_layers - 1)
    if not 0 <= first <= last < num_layers:
        raise ConfigError(
            f"adapter.train_blocks_range: blocks {first} to {last} are no range of this model's; "
            f"its {num_layers} blocks are 0 to {num_layers - 1}"
        )
    return [diffusers_name(f"blocks.{n}.{target}") for n in range(first, last + 1) for target in dict.fromkeys(targets)]


def diffusers_name(official: str) -> str:
    """A linear layer's name in diffusers, `blocks.3.attn2.to_k` for `blocks.3.cross_attn.k`."""
    key = TRANSFORMER_KEYS.from_official(f"{official}.weight")
    if key is None:
        raise ConfigError(f"{official!r} is no linear layer of a Wan transformer; give a name such as blocks.0.ffn.0")
    return key.removesuffix(".weight")


def official_name(name: str) -> str:
    """A linear layer's official name, `blocks.3.cross_attn.k` for diffusers' `blocks.3.attn2.to_k`."""
    key = TRANSFORMER_KEYS.to_official(f"{name}.weight")
    if key is None:
        raise ConfigError(f"{name!r} is no linear layer of a Wan transformer; give a name such as blocks.0.attn2.to_k")
    return key.removesuffix(".weight")


def inject_lora(
    transformer: nn.Module,
    targets: Sequence[str],
    rank: int,
    dropout: float,
    dtype: torch.dtype,
    seed: int = 0,
) -> dict[str, nn.Parameter]:
    """Add adapters that change nothing yet, freeze all else, and give the trained weights by name.

    The transformer may lie on the meta device in whole or in part: adapters of layers without memory have none either,
    and `init_lora` fills them once they do.

    Args:
        transformer: diffusers' WanTransformer3DModel, changed in place.
        targets: from `lora_targets`.
        rank: of the adapters; their scale is 1 (lora_alpha = rank).
        dropout: chance that an adapter does not see an input channel of a token, while training.
        dtype: of the trained weights, whatever the frozen ones have.
        seed: of the first weights.

    Returns:
        `blocks.3.attn2.to_k.lora_A.weight` [rank, in] and `....lora_B.weight` [out, rank] for every target.
    """
    config = LoraConfig(r=rank, lora_alpha=rank, lora_dropout=dropout, target_modules=list(targets))
    transformer.requires_grad_(False)
    # without memory, and so without a draw from torch's global generator
    inject_adapter_in_model(config, transformer, low_cpu_mem_usage=True)
    parameters: dict[str, nn.Parameter] = {}
    for target in targets:
        layer = transformer.get_submodule(target)
        if not isinstance(layer, LoraLinear):
            raise TypeError(f"peft put a {type(layer).__name__} at {target}; a linear layer with an adapter was meant")
        device = layer.get_base_layer().get_parameter("weight").device
        layer.lora_dropout[_ADAPTER] = SeededDropout(dropout, target)
        for part, matrices in (("lora_A", layer.lora_A), ("lora_B", layer.lora_B)):
            matrix = matrices[_ADAPTER]
            shape = matrix.get_parameter("weight").shape
            weight = nn.Parameter(torch.empty(shape, dtype=dtype, device=device))
            matrix.register_parameter("weight", weight)
            parameters[f"{target}.{part}.weight"] = weight
    init_lora(parameters, seed)
    return parameters


@torch.no_grad()
def init_lora(parameters: Mapping[str, Tensor], seed: int) -> None:
    """Fill adapters with their first weights: A uniform as in `nn.Linear`, drawn by seed and name; B zero.

    Args:
        parameters: by the names of `inject_lora`; those on the meta device are left there.
        seed: of the draw, which depends on neither the order, the device nor the dtype.
    """
    for name, weight in parameters.items():
        if weight.is_meta:
            continue
        if name.endswith("lora_B.weight"):
            weight.zero_()
            continue
        bound = weight.shape[1] ** -0.5
        generator = torch.Generator().manual_seed(_named_seed(seed, name))
        weight.copy_(torch.empty(weight.shape).uniform_(-bound, bound, generator=generator))


class SeededDropout(nn.Module):
    """Dropout whose mask follows from `seed`, the layer's name and the input's shape, and from nothing else.

    So a layer drops the same on one process as on several, and again when its activations are recomputed. Set the seed
    inside of what is recomputed, as another batch may have passed in between.

    Args:
        p: chance that an element becomes zero; the others grow by 1 / (1 - p).
        name: of the layer.
    """

    def __init__(self, p: float, name: str) -> None:
        super().__init__()
        self.p = p
        self.name = name
        self.seed = 0

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The input with elements dropped while training, the input itself otherwise."""
        if not self.training or self.p == 0:
            return x
        generator = torch.Generator(x.device).manual_seed(_named_seed(self.seed, self.name))
        kept = torch.empty(x.shape, dtype=torch.bool, device=x.device).bernoulli_(1 - self.p, generator=generator)
        return x * kept / (1 - self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}, name={self.name!r}"


def _named_seed(seed: int, name: str) -> int:
    return int.from_bytes(blake2b(f"{seed} {name}".encode(), digest_size=7).digest(), "big")
