"""Prompts as Wan reads them: cleaned, encoded by UMT5 under the mask, cut to their true length."""

import logging
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, UMT5EncoderModel

from latentloom.errors import PromptError
from latentloom.tensors import TextEmbeddings
from latentloom.wan.fingerprint import ENCODER_SIZES, fingerprint
from latentloom.wan.prompt_cleaning import clean

logger = logging.getLogger(__name__)

MAX_TOKENS = 512
"""Wan's text length: longer prompts are cut, shorter ones padded with zeros for the transformer."""

BATCH_SIZE = 32
"""Prompts encoded at a time, so that a long list of prompts takes no more memory than a short one."""


class WanTextEncoder:
    """UMT5 and its tokenizer; gives one embedding per token and nothing for padding.

    Args:
        model: the encoder; its device and dtype are where and how it computes.
        tokenizer: closes a prompt with `</s>` and keeps that token when it cuts.
        device: where the encoder computes when its weights rest elsewhere (group offloading); the model's own if None.
    """

    def __init__(
        self, model: UMT5EncoderModel, tokenizer: PreTrainedTokenizerBase, device: torch.device | None = None
    ) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.device = device

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], max_length: int = MAX_TOKENS) -> TextEmbeddings:
        """Encode prompts; prompt i has as many rows as it has tokens, `</s>` included.

        Prompts are padded to the longest beside them and not to `max_length`: under the mask, padding has no effect.
        An empty prompt is the unconditional one and has the single row of `</s>`.

        Args:
            prompts: texts, not cleaned yet.
            max_length: tokens kept per prompt; what is cut is logged as a warning.

        Raises:
            PromptError: the list is empty or holds something that is not text.

        Source: Wan 2.2 `wan/modules/t5.py`, `T5EncoderModel.__call__`.
        """
        ids, mask = self.tokenize(prompts, max_length)
        batches = zip(ids.split(BATCH_SIZE), mask.split(BATCH_SIZE), strict=True)
        return TextEmbeddings.cat([self._encode_batch(ids, mask) for ids, mask in batches])

    def tokenize(
        self, prompts: Sequence[str], max_length: int = MAX_TOKENS
    ) -> tuple[Int[Tensor, "B L"], Bool[Tensor, "B L"]]:
        """The prompts' tokens, as the function `tokenize` gives them."""
        return tokenize(self.tokenizer, prompts, max_length)

    def fingerprint(self) -> str:
        """Identify encoder and tokenizer in 16 hex digits, so that stored embeddings can tell where they come from.

        Hashes the configuration, the vocabulary and at most 256 evenly spaced values of every weight, rounded to
        bfloat16: loading the same checkpoint in float32 or bfloat16 gives the same fingerprint, training changes it.
        """
        return encoder_fingerprint(self.model, self.tokenizer, ENCODER_SIZES)

    def _encode_batch(self, ids: Int[Tensor, "B L"], mask: Bool[Tensor, "B L"]) -> TextEmbeddings:
        longest = max(1, int(mask.sum(dim=1).max()))
        device = self.device if self.device is not None else self.model.device
        ids, mask = ids[:, :longest].to(device), mask[:, :longest].to(device)
        hidden = self.model(ids, attention_mask=mask.long()).last_hidden_state
        return TextEmbeddings.from_padded(hidden, mask=mask)


def tokenize(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], max_length: int = MAX_TOKENS
) -> tuple[Int[Tensor, "B L"], Bool[Tensor, "B L"]]:
    """Clean and tokenize prompts, padded on the right to the longest, with a mask that is true on tokens."""
    cleaned = [clean(prompt) for prompt in _as_list(prompts)]
    rows = tokenizer(cleaned, truncation=True, max_length=max_length)["input_ids"]
    _warn_of_cuts(tokenizer, cleaned, [len(row) for row in rows], max_length)
    # What stands under the mask has no effect, so zeros do, whatever the tokenizer's padding token.
    # A tokenizer without </s> makes nothing of an empty prompt; one masked column keeps the input valid.
    longest = max(1, *(len(row) for row in rows))
    ids = torch.zeros((len(rows), longest), dtype=torch.long)
    mask = torch.zeros((len(rows), longest), dtype=torch.bool)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row, dtype=torch.long)
        mask[index, : len(row)] = True
    return ids, mask


def _warn_of_cuts(tokenizer: PreTrainedTokenizerBase, cleaned: list[str], num_kept: list[int], max_length: int) -> None:
    for index, (prompt, kept) in enumerate(zip(cleaned, num_kept, strict=True)):
        if kept < max_length:
            continue
        num_tokens = len(tokenizer(prompt, truncation=False, verbose=False)["input_ids"])
        if num_tokens > max_length:
            logger.warning("prompt %d has %d tokens; only the first %d are used", index, num_tokens, max_length)


def _as_list(prompts: Sequence[str]) -> Sequence[str]:
    if isinstance(prompts, str):
        raise PromptError("prompts must be a list of texts, not one text; write [prompt]")
    if len(prompts) == 0:
        raise PromptError("no prompt was given; give at least one (an empty text is allowed)")
    return prompts


def encoder_fingerprint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sizes: Sequence[str]) -> str:
    """Sixteen hex digits that tell one encoder and tokenizer from another; see `WanTextEncoder.fingerprint`.

    Args:
        model: the encoder.
        tokenizer: its tokenizer.
        sizes: names of the settings that count.
    """
    settings = {name: getattr(model.config, name) for name in sizes}
    return fingerprint([settings, sorted(tokenizer.get_vocab().items())], model.named_parameters())
