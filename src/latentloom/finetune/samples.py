"""Clips made while training: the same prompts from the same noise, epoch after epoch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import cast

import torch
from diffusers.models.attention_processor import AttentionProcessor
from diffusers.models.transformers.transformer_wan import WanAttention, WanAttnProcessor, WanTransformer3DModel

from latentloom.finetune.encoder_files import read_text_encoder
from latentloom.finetune.session import Session
from latentloom.finetune.stages.row import DTYPES
from latentloom.storage import write_contact_sheet, write_video
from latentloom.wan.checkpoints import load_tokenizer, load_vae
from latentloom.wan.pipeline import WanPipeline
from latentloom.wan.text_encoder import WanTextEncoder

NUM_PROMPTS = 4


@contextmanager
def plain_attention(transformer: WanTransformer3DModel) -> Iterator[None]:
    """Within it, cross-attention takes padded texts, as whoever calls the whole model hands them over."""
    layers = [part for part in transformer.modules() if isinstance(part, WanAttention) and part.is_cross_attention]
    before = [layer.processor for layer in layers]
    try:
        for layer in layers:
            layer.set_processor(cast(AttentionProcessor, WanAttnProcessor()))
        yield
    finally:
        for layer, processor in zip(layers, before, strict=True):
            layer.set_processor(processor)


class Sampler:
    """Makes a clip of each prompt with the model as it is now.

    Args:
        session: with the whole model in this process.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        given = session.config.sample_prompts
        captions = [session.store[item].caption for item in (session.held_out or session.plan.items)[:NUM_PROMPTS]]
        self.prompts = list(given or dict.fromkeys(captions))

    @torch.no_grad()
    def write(self, folder: Path) -> list[Path]:
        """A clip per prompt in the folder, and a sheet of all; the noise of prompt i has seed i."""
        session = self.session
        session.engine.staged.eval()
        pipeline = WanPipeline(
            text_encoder=self._encoder(),
            transformer=session.stage.transformer,
            vae=load_vae(session.root, torch.float32, session.place.device),
            facts=session.facts,
            device=session.place.device,
            dtype=DTYPES[session.config.model.dtype],
        )
        swap = session.stage.swap
        with swap.suspended() if swap is not None else nullcontext(), plain_attention(session.stage.transformer):
            frames, _ = pipeline.generate(self.prompts, seeds=list(range(len(self.prompts))))
        files = []
        for index, clip in enumerate(frames):
            files.append(folder / f"sample_{index}.mp4")
            write_video(files[-1], clip, session.facts.fps)
        write_contact_sheet(folder / "samples.png", list(frames), self.prompts)
        return files

    def _encoder(self) -> WanTextEncoder:
        """The encoder that is trained, or the one that texts were cached with, which training does without."""
        session, device = self.session, self.session.place.device
        model = session.stage.encoder
        if model is None:
            config = session.config.model
            model = read_text_encoder(session.root, config.text_encoder_path, DTYPES[config.dtype], device)
        return WanTextEncoder(model, load_tokenizer(session.root), device)
