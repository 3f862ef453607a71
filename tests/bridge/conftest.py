"""Tiny random backbones, written once for all tests of the bridge."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from latentloom.bridge.backbone import Backbone


@pytest.fixture(scope="session")
def backbone_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of a tiny random backbone by its kind: llama, qwen2, qwen3, wedlm or wedlm_7b; not to be changed."""
    from tiny_backbones import write_tiny_backbone  # transformers takes seconds to import

    return cache(lambda kind: write_tiny_backbone(tmp_path_factory.mktemp("backbones") / kind, kind))


@pytest.fixture(scope="session")
def load_tiny(backbone_folder: Callable[[str], Path]) -> "Callable[[str], Backbone]":
    """A new backbone of a kind on each call, in float32 on the CPU."""
    from latentloom.bridge.backbone import load_backbone
    from latentloom.bridge.config import ModelConfig

    def load(kind: str) -> "Backbone":
        config = ModelConfig(pretrained_model_name_or_path=str(backbone_folder(kind)))
        return load_backbone(config, device=torch.device("cpu"), dtype=torch.float32)

    return load


@pytest.fixture
def tiny_backbone(load_tiny: "Callable[[str], Backbone]") -> "Backbone":
    """A tiny random Llama of a test's own."""
    return load_tiny("llama")


@pytest.fixture
def tiny_backbone_folder(backbone_folder: Callable[[str], Path]) -> Path:
    """The folder of the tiny random Llama; not to be changed."""
    return backbone_folder("llama")
