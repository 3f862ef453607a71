"""Media to latents and captions to embeddings, batch by batch, while the next files are decoded."""

import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from torch import Tensor

from latentloom.errors import CorruptFileError
from latentloom.finetune.cache.shards import ShardWriter
from latentloom.finetune.media import read_frames
from latentloom.runs import track
from latentloom.wan.clip_size import ClipSize
from latentloom.wan.text_encoder import BATCH_SIZE, WanTextEncoder
from latentloom.wan.vae import encode_video

logger = logging.getLogger(__name__)

BATCHES_AHEAD = 2
NUM_DECODERS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True)
class LatentJob:
    """One file to encode in one size, under the key that it is stored by."""

    key: str
    path: Path
    size: ClipSize


def encode_latents(
    jobs: Sequence[LatentJob],
    get_vae: Callable[[], AutoencoderKLWan],
    writer: ShardWriter,
    *,
    fps: float,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, str]:
    """Store the latents of every job; gives the keys of those that cannot be decoded, with the reason.

    Args:
        jobs: those of one size stand together.
        get_vae: called when the first batch is decoded.
        fps: the model's frames per second.
        batch_size: clips of one size that are encoded together.
        device: where the VAE computes.
        dtype: of what is stored.
    """
    problems: dict[str, str] = {}
    batches = list(_batches_of_one_size(jobs, batch_size))
    for batch, decoding in _decoded_ahead(track(batches, "encoding latents"), fps):
        clips: dict[str, Tensor] = {}
        for job, future in zip(batch, decoding, strict=True):
            try:
                clips[job.key] = future.result()
            except CorruptFileError as error:
                problems[job.key] = str(error)
                logger.warning("skipped: %s", error)
        if clips:
            latents = encode_video(get_vae(), torch.stack(list(clips.values())), device).values
            for key, clip in zip(clips, latents, strict=True):
                writer.add(key, clip.to("cpu", dtype))
    return problems


def encode_texts(
    captions: Sequence[tuple[str, str]], encoder: WanTextEncoder, writer: ShardWriter, dtype: torch.dtype
) -> None:
    """Store the embeddings of captions, given with the keys that they are stored by."""
    by_length = sorted(captions, key=lambda item: len(item[1]), reverse=True)  # like lengths need little padding
    for start in track(range(0, len(by_length), BATCH_SIZE), "encoding captions"):
        batch = by_length[start : start + BATCH_SIZE]
        tokens = encoder.encode([caption for _, caption in batch]).to("cpu", dtype).to_list()
        for (key, _), rows in zip(batch, tokens, strict=True):
            writer.add(key, rows)


def _batches_of_one_size(jobs: Sequence[LatentJob], batch_size: int) -> Iterator[list[LatentJob]]:
    batch: list[LatentJob] = []
    for job in jobs:
        if batch and (len(batch) == batch_size or job.size != batch[0].size):
            yield batch
            batch = []
        batch.append(job)
    if batch:
        yield batch


def _decoded_ahead(
    batches: Iterator[list[LatentJob]], fps: float
) -> Iterator[tuple[list[LatentJob], list["Future[Tensor]"]]]:
    """The batches with the frames of their clips, decoded by other threads while the caller computes."""
    waiting: deque[tuple[list[LatentJob], list[Future[Tensor]]]] = deque()
    with ThreadPoolExecutor(NUM_DECODERS, "decode") as pool:
        try:
            for batch in batches:
                waiting.append((batch, [pool.submit(read_frames, job.path, job.size, fps) for job in batch]))
                if len(waiting) > BATCHES_AHEAD:
                    yield waiting.popleft()
            while waiting:
                yield waiting.popleft()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
