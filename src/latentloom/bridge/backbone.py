"""The pretrained language model under a bridge, from wherever its files lie on this machine."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from latentloom.bridge.config import ModelConfig
from latentloom.bridge.pretrained_folder import pretrained_folder
from latentloom.bridge.remote_code import allow_remote_code
from latentloom.bridge.wedlm import is_wedlm, wedlm_config
from latentloom.bridge.weight_files import CONFIG, read_json, require_complete, weights_fingerprint
from latentloom.errors import CheckpointError

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Backbone:
    """A causal language model of transformers with its tokenizer; in evaluation mode, nothing of it trainable.

    Args:
        model: with its output layer.
        tokenizer: that came with it.
        name: as the settings give it.
        fingerprint: 16 hex digits of its config, vocabulary and weights; the same for every dtype.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    name: str
    fingerprint: str

    @property
    def decoder(self) -> nn.Module:
        """The model without its output layer: gives last_hidden_state, hidden_states and past_key_values."""
        return self.model.base_model

    @property
    def embedding(self) -> nn.Embedding:
        return self.model.get_input_embeddings()

    @property
    def output_weight(self) -> Float[Tensor, "V H"]:
        """Weight of the output layer, also where the input embeddings are tied to it."""
        return self.model.get_output_embeddings().weight

    @property
    def hidden_size(self) -> int:
        return self.embedding.weight.shape[1]

    @property
    def num_layers(self) -> int:
        return self.model.config.num_hidden_layers

    @property
    def vocab_size(self) -> int:
        """Rows of the output layer, which can be more than the tokenizer has tokens."""
        return self.output_weight.shape[0]

    @property
    def sink_id(self) -> int:
        """A token that texts begin with in pretraining: the first one, else the one that ends or fills up texts."""
        return self._special_token("bos", "pad", "eos")

    @property
    def end_id(self) -> int:
        """The token that ends a text."""
        return self._special_token("eos", "pad")

    def tokenize(self, texts: Sequence[str], max_tokens: int) -> list[list[int]]:
        """Token numbers of each text as it stands, cut to `max_tokens`; no first or last token is added."""
        if not texts:
            return []
        ids = self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return [text[:max_tokens] for text in ids]

    def text(self, ids: Sequence[int]) -> str:
        """The text of token numbers up to the first end token, without special tokens."""
        ids = list(ids)
        until = ids.index(self.end_id) if self.end_id in ids else len(ids)
        return str(self.tokenizer.decode(ids[:until], skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _special_token(self, *roles: str) -> int:
        """The first of these special tokens that the tokenizer has and the model knows."""
        numbers = (getattr(self.tokenizer, f"{role}_token_id") for role in roles)
        known = [number for number in numbers if number is not None and number < self.vocab_size]
        if not known:
            raise CheckpointError(
                f"the tokenizer of {self.name} names no token that ends a text; set eos_token in its "
                "tokenizer_config.json"
            )
        return known[0]


def load_backbone(config: ModelConfig, *, device: torch.device, dtype: torch.dtype) -> Backbone:
    """The backbone that the settings name, from this machine alone.

    Args:
        config: which one, and where its files lie.
        device: where the weights go.
        dtype: of the weights.

    Raises:
        FileError: its files are not here; a line says how to get them.
        CorruptFileError: a file is damaged or cut short.
        CheckpointError: the weights are not those of its config, or it needs code of its own that is not allowed.
    """
    folder = pretrained_folder(config)
    require_complete(folder)
    trusted = allow_remote_code(config, folder)
    model_config = load_model_config(folder, trusted=trusted)
    model = _load_model(folder, model_config, trusted=trusted, dtype=dtype)
    name = config.pretrained_model_name_or_path
    tokenizer = _load_tokenizer(folder, model_config, trusted=trusted)
    backbone = Backbone(model.to(device), tokenizer, name, weights_fingerprint(folder))
    _log.info("%s: %s of %s, %s", name, type(model).__name__, folder, backbone.fingerprint)
    return backbone


def load_model_config(folder: Path, *, trusted: bool = False) -> PreTrainedConfig:
    """The config in a folder, as the class of transformers that the model is built as; needs no weights.

    Args:
        folder: the model's.
        trusted: whether code in the folder may run, as `allow_remote_code` says.

    Raises:
        CheckpointError: transformers knows no such model.
    """
    values = read_json(folder / CONFIG)
    if is_wedlm(values):
        return wedlm_config(values)
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trusted)
    except (
        Exception
    ) as cause:  # a class decides what it objects to: strict config fields raise errors of their own kind
        if "auto_map" in values and not trusted:
            raise CheckpointError(
                f"{folder} is a model of type {values.get('model_type')!r} that needs code of its own; if you have "
                "read that code, set model.trust_remote_code=true and model.revision to its commit"
            ) from cause
        raise CheckpointError(f"{folder / CONFIG} is of no model that loads: {_first_line(cause)}") from cause


def _load_model(folder: Path, model_config: PreTrainedConfig, *, trusted: bool, dtype: torch.dtype) -> Any:
    try:
        with _quiet_transformers():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                config=model_config,
                dtype=dtype,
                local_files_only=True,
                trust_remote_code=trusted,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # which are refused below, by name
                output_loading_info=True,
            )
    # Files of another form fail wherever transformers first trips over them, with errors of any kind.
    except Exception as cause:
        raise CheckpointError(f"{folder} holds no causal language model that loads: {_first_line(cause)}") from cause
    model, report = loaded
    _refuse_other_weights(folder, report)
    return model.eval().requires_grad_(False)


def _refuse_other_weights(folder: Path, report: dict[str, Any]) -> None:
    """Weights that the config does not have, or the other way round, would be left out or drawn at random."""
    for kind, what in (
        ("missing_keys", "lack"),
        ("mismatched_keys", "have other shapes for"),
        ("unexpected_keys", "add"),
    ):
        names = sorted(str(key[0] if isinstance(key, tuple) else key) for key in report[kind])
        if names:
            raise CheckpointError(
                f"the weights in {folder} {what} {len(names)} tensors of the model in its {CONFIG}, {names[0]} first; "
                "give the weights and the config of one model"
            )


def _load_tokenizer(folder: Path, model_config: PreTrainedConfig, *, trusted: bool) -> PreTrainedTokenizerBase:
    try:
        with _quiet_transformers():
            return AutoTokenizer.from_pretrained(
                folder, config=model_config, local_files_only=True, trust_remote_code=trusted
            )
    except Exception as cause:  # as above
        raise CheckpointError(f"{folder} holds no tokenizer that can be read: {_first_line(cause)}") from cause


def _first_line(cause: Exception) -> str:
    return (str(cause).strip() or type(cause).__name__).splitlines()[0]


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Without its bars and its table of keys; what is wrong is said by what it returns."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
