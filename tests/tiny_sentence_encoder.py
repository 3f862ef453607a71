"""A sentence-transformers model with random weights and few words, as a folder."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel

WORDS = ["a", "the", "red", "blue", "circle", "square", "moves", "left", "right", "dog", "query", "passage", ":"]
DIM = 16


def write_tiny_sentence_encoder(
    folder: Path, *, max_tokens: int = 24, normalized: bool = True, prompts: dict[str, str] | None = None, seed: int = 0
) -> Path:
    """A BERT of two layers whose states are averaged; returns the folder."""
    (folder / "1_Pooling").mkdir(parents=True)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    config = BertConfig(
        vocab_size=len(special) + len(WORDS),
        hidden_size=DIM,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=max_tokens,
        architectures=["BertModel"],
    )
    config.save_pretrained(folder)
    torch.manual_seed(seed)
    model = BertModel(config)
    for parameter in model.parameters():  # as they are initialised, all texts have nearly one vector
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    tokens = {word: index for index, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordPiece(tokens, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", tokens["[CLS]"]), ("[SEP]", tokens["[SEP]"])]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "vocab.txt").write_text("\n".join(tokens))
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": max_tokens}
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), *([("2_Normalize", "Normalize")] if normalized else [])]
    listed = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(modules)
    ]
    contents = {
        "tokenizer_config.json": settings,
        "modules.json": listed,
        "1_Pooling/config.json": {"word_embedding_dimension": DIM, "pooling_mode_mean_tokens": True},
        "sentence_bert_config.json": {"max_seq_length": max_tokens, "do_lower_case": False},
        "config_sentence_transformers.json": {"prompts": prompts or {}},
    }
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content))
    return folder
