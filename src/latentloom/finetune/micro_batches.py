"""What a step computes, as tensors: every draw follows from the seed, the step and the place in the step's batch.

So a step is the same on one process as on several, and the same in a run that was interrupted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedTokenizerBase

from latentloom.finetune.batches import BatchPlan
from latentloom.finetune.captions import keywords_in, trim_caption, trim_probability
from latentloom.finetune.config import ModelConfig
from latentloom.finetune.data import Example, ExampleStore
from latentloom.finetune.objective import NoiseLevels, noise_latents
from latentloom.finetune.stages.layers import Wiring
from latentloom.wan.text_encoder import tokenize

MicroBatch = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]
"""What the first layer gets, and what the loss compares with: the target and each frame's weight."""


@dataclass(frozen=True)
class Draw:
    """The random part of one example.

    Args:
        level: noise level, 0 to 1.
        keeps_first_frame: the first latent frame stays clean.
        caption: as the model reads it.
        noise: of the latents' shape.
    """

    level: float
    keeps_first_frame: bool
    caption: str
    noise: Tensor


@dataclass(frozen=True)
class MicroBatchMaker:
    """Makes the micro-batches of a run.

    Args:
        store: the examples.
        wiring: of the row that computes them.
        model: the model's settings.
        levels: the distribution of noise levels.
        tokenizer: where texts are encoded in the row.
        dtype: of the frozen weights; texts are handed over in it.
        patch: latent frames, rows and columns per token.
        seed: of all draws.
    """

    store: ExampleStore
    wiring: Wiring
    model: ModelConfig
    levels: NoiseLevels
    tokenizer: PreTrainedTokenizerBase | None
    dtype: torch.dtype
    patch: tuple[int, int, int]
    seed: int

    def training(
        self, plan: BatchPlan, step: int, num_steps: int, rank: int = 0, num_replicas: int = 1
    ) -> Iterator[MicroBatch]:
        """One replica's micro-batches of a training step."""
        batch = plan.at(step)
        probability = trim_probability(self.model.caption_aug, step / num_steps)
        for positions in batch.share(rank, num_replicas):
            examples = [self.store[batch.items[position]] for position in positions]
            draws = [
                self._training_draw(example, probability, f"{step} {position}")
                for example, position in zip(examples, positions, strict=True)
            ]
            yield self._assemble(examples, draws, _number(f"{self.seed} dropout {step} {positions[0]}"))

    def evaluation(self, items: Sequence[int], micro_batch_size: int, quantile: float) -> Iterator[MicroBatch]:
        """All items at one noise level, given as a quantile of training's; an item always gets the same noise."""
        level = float(self.levels.at(torch.tensor(quantile)))
        by_size: dict[object, list[int]] = {}
        for item in items:
            by_size.setdefault(self.store.sizes[item], []).append(item)
        for group in by_size.values():
            for start in range(0, len(group), micro_batch_size):
                chosen = group[start : start + micro_batch_size]
                examples = [self.store[item] for item in chosen]
                draws = []
                for item, example in zip(chosen, examples, strict=True):
                    generator = self._generator(f"evaluation {self.store.names[item]}")
                    noise = torch.randn(example.latents.shape, generator=generator)
                    draws.append(Draw(level, False, example.caption, noise))
                yield self._assemble(examples, draws, 0)

    def _training_draw(self, example: Example, trim_probability: float, place: str) -> Draw:
        generator = self._generator(place)
        level, first, trims, which = torch.rand(4, generator=generator)
        caption = example.caption
        if float(trims) < trim_probability:
            caption = trim_caption(caption, self.model.caption_aug, float(which))
        is_video = example.latents.shape[1] > 1
        return Draw(
            level=float(self.levels.at(level)),
            keeps_first_frame=is_video and float(first) < self.model.first_frame_prob,
            caption=caption,
            noise=torch.randn(example.latents.shape, generator=generator),
        )

    def _assemble(self, examples: Sequence[Example], draws: Sequence[Draw], dropout_seed: int) -> MicroBatch:
        latents = torch.stack([example.latents.float() for example in examples])
        noise = torch.stack([draw.noise for draw in draws])
        noisy, timestep, weight = noise_latents(
            latents,
            noise,
            torch.tensor([draw.level for draw in draws]),
            torch.tensor([draw.keeps_first_frame for draw in draws]),
            self.patch,
            by_token=self.model.first_frame_prob > 0,
        )
        values = {"noisy": noisy, "timestep": timestep, "seed": torch.tensor(dropout_seed)}
        values |= self._texts(examples, draws)
        return self.wiring.given.pack(values), (noise - latents, weight)

    def _texts(self, examples: Sequence[Example], draws: Sequence[Draw]) -> dict[str, Tensor]:
        if not self.wiring.encodes:
            text, lengths = self._padded(examples)
            return {"text": text, "lengths": lengths}
        assert self.tokenizer is not None
        ids, mask = tokenize(self.tokenizer, [draw.caption for draw in draws])
        texts = {"ids": ids, "lengths": mask.sum(1)}
        if self.wiring.anchors:
            texts |= self._references(examples, draws, ids.shape[1])
        return texts

    def _references(self, examples: Sequence[Example], draws: Sequence[Draw], width: int) -> dict[str, Tensor]:
        """The frozen encoder's embeddings; captions that hold a keyword, or were cut to one, are not held to them."""
        is_anchored = [not keywords_in(draw.caption, self.model.caption_aug) for draw in draws]
        reference, _ = self._padded(examples)
        reference = pad(reference, (0, 0, 0, max(0, width - reference.shape[1])))[:, :width]
        return {"reference": reference, "anchored": torch.tensor(is_anchored, dtype=torch.int64)}

    def _padded(self, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
        texts = [example.text for example in examples if example.text is not None]
        if len(texts) < len(examples):
            raise ValueError("an example came without its text embedding; the cache must be made with texts")
        lengths = torch.tensor([len(text) for text in texts])
        return torch.nn.utils.rnn.pad_sequence(texts, batch_first=True).to(self.dtype), lengths

    def _generator(self, place: str) -> torch.Generator:
        return torch.Generator().manual_seed(_number(f"{self.seed} {place}"))


def _number(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=7).digest(), "big")
