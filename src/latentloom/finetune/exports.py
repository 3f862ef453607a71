"""What an epoch leaves behind for other programs: adapter, encoder, merged transformer."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from latentloom.finetune.adapter_files import merge_adapter, save_adapter
from latentloom.finetune.checkpoint import barrier
from latentloom.finetune.encoder_files import read_text_encoder, save_text_encoder
from latentloom.finetune.session import Session
from latentloom.finetune.stages.row import DTYPES
from latentloom.storage import atomic_write, replace_folder
from latentloom.wan.checkpoints import load_transformer
from latentloom.wan.keys_transformer import TRANSFORMER_KEYS


def save_epoch(session: Session, run: Path, epoch: int) -> Path:
    """Write `epochN` of the run's folder, which appears whole; all processes call this together.

    Args:
        session: what was trained.
        run: its folder.
        epoch: counted from 1.
    """
    target, gathered = run / f"epoch{epoch}", run / f".epoch{epoch}.gathered"
    place = session.place
    if place.is_main:
        shutil.rmtree(gathered, ignore_errors=True)  # of a run that was killed here
        gathered.mkdir()
    barrier()
    if place.replica == 0:
        weights = {name: weight.detach().cpu().contiguous() for name, weight in session.stage.trained.items()}
        with atomic_write(gathered / f"stage_{place.stage}.safetensors") as temporary:
            save_file(weights, temporary)
    barrier()
    if place.is_main:
        trained: dict[str, Tensor] = {}
        for file in gathered.glob("*.safetensors"):
            trained |= load_file(file)
        with replace_folder(target) as folder:
            _write(session, folder, trained)
        shutil.rmtree(gathered)
    barrier()
    return target


def _write(session: Session, folder: Path, trained: dict[str, Tensor]) -> None:
    config = session.config
    adapter = _below(trained, "transformer.")
    if adapter and config.adapter is not None:
        base = str(config.model.ckpt_path or session.facts.title)
        rank, dropout = config.adapter.rank, config.adapter.dropout
        file = save_adapter(folder, adapter, rank=rank, dropout=dropout, base=base, expert=session.expert)
        if config.model.save_diffusion_model:
            _write_merged(session, folder, file)
    encoder = _below(trained, "text_encoder.")
    if encoder:
        is_partial = not config.model.save_text_encoder_full
        tensors = encoder if is_partial else _whole_encoder(session, encoder)
        save_text_encoder(folder / "text_encoder.safetensors", tensors, partial=is_partial)


def _whole_encoder(session: Session, trained: dict[str, Tensor]) -> dict[str, Tensor]:
    """The encoder in the model's dtype: what was trained, and the rest as it was read."""
    dtype = DTYPES[session.config.model.dtype]
    frozen = read_text_encoder(session.root, session.config.model.text_encoder_path, dtype)
    return {name: trained.get(name, weight).to(dtype) for name, weight in frozen.named_parameters()}


def _write_merged(session: Session, folder: Path, adapter: Path) -> None:
    transformer = load_transformer(session.root, session.expert, DTYPES[session.config.model.dtype])
    merge_adapter(transformer, adapter)
    weights = {TRANSFORMER_KEYS.to_official(name): weight for name, weight in transformer.state_dict().items()}
    noise = f"{session.expert}_noise_" if session.expert else ""
    with atomic_write(folder / f"{noise}diffusion_model.safetensors") as temporary, torch.no_grad():
        save_file({str(name): weight.contiguous() for name, weight in weights.items()}, temporary, {"format": "pt"})


def _below(trained: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): weight for name, weight in trained.items() if name.startswith(prefix)}
