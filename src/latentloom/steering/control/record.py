"""Mean activations of pairs of prompts, on the same noised latents: what a control vector is fitted on."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from jaxtyping import Float
from torch import Tensor

from latentloom.errors import ConfigError
from latentloom.runs import track
from latentloom.steering.capture import watched
from latentloom.steering.control.vector import WHOLE_SCHEDULE, Window
from latentloom.steering.inject import of_clips
from latentloom.steering.plan import Site
from latentloom.steering.projection import project
from latentloom.tensors import TextEmbeddings
from latentloom.wan.model_call import ModelCall
from latentloom.wan.pipeline import WanPipeline
from latentloom.wan.sampling import SamplingSettings

Means = Float[Tensor, "P W N D"]
PAIRS_AT_ONCE = 16


@torch.no_grad()
def record_pairs(
    pipeline: WanPipeline,
    positive: TextEmbeddings,
    negative: TextEmbeddings,
    seeds: Sequence[int],
    site: Site,
    windows: Sequence[Window] = WHOLE_SCHEDULE,
) -> tuple[Means, Means]:
    """Activations of both sides of P pairs, averaged over tokens and over the steps of each window.

    The context is the same at every step and in every block, so nothing is sampled for it. At the other sites the
    clips of the negative sides are sampled, and at every step the model also answers the positive sides on the same
    latents: what differs is the prompt's doing alone.

    Args:
        pipeline: the model, with its own settings of sampling.
        positive, negative: P prompts each.
        seeds: of the noise, one per pair.
        site: where in the blocks.
        windows: shares of the schedule.

    Raises:
        ConfigError: not as many prompts and seeds, or a window that no step of the schedule falls into.
    """
    if not len(positive) == len(negative) == len(seeds) or not seeds:
        raise ConfigError(f"{len(positive)} and {len(negative)} prompts with {len(seeds)} seeds; give as many of each")
    if site == "context":
        shape = (len(seeds), len(windows), len(pipeline.transformer.blocks), -1)
        first, second = (
            _mean_rows(project(pipeline.transformer, text))[:, None, None].expand(shape)
            for text in (positive, negative)
        )
        return first, second
    recorder = _Recorder(pipeline, positive, site, windows)
    for start in track(range(0, len(seeds), PAIRS_AT_ONCE), "recording pairs"):
        rows = slice(start, start + PAIRS_AT_ONCE)
        with recorder.on(start):
            pipeline.sample(negative[rows], seeds=list(seeds[rows]), batch_size=PAIRS_AT_ONCE)
    return recorder.means(len(seeds))


class _Recorder:
    """Adds up token means by side, window and block while the negative sides are sampled."""

    def __init__(self, pipeline: WanPipeline, positive: TextEmbeddings, site: Site, windows: Sequence[Window]) -> None:
        self._pipeline, self._positive = pipeline, positive
        self._site: Site = site
        steps = SamplingSettings.for_model(pipeline.facts).steps
        self._windows = list(windows)
        self._num_steps = [sum(start <= step / steps < end for step in range(steps)) for start, end in windows]
        if not all(self._num_steps):
            empty = self._windows[self._num_steps.index(0)]
            raise ConfigError(f"no step of {steps} falls into the window {empty}; make it wider")
        self._sums: dict[tuple[int, int, bool], Tensor] = {}

    @contextmanager
    def on(self, start: int) -> Iterator[None]:
        """Within this context, sampling the pairs from `start` on is recorded."""
        before = self._pipeline.around_call

        @contextmanager
        def around(call: ModelCall) -> Iterator[None]:
            with before(call) if before is not None else nullcontext():
                if not all(call.conditional):
                    yield
                    return
                pairs = tuple(start + clip for clip in call.clips)
                text = of_clips(self._positive, pairs).to(call.latents.device)
                with self._watched(call, start, is_positive=True):
                    self._pipeline.predict(call.model, call.latents, call.timestep, text)
                with self._watched(call, start, is_positive=False):
                    yield

        self._pipeline.around_call = around
        try:
            yield
        finally:
            self._pipeline.around_call = before

    @contextmanager
    def _watched(self, call: ModelCall, start: int, *, is_positive: bool) -> Iterator[None]:
        values: dict[int, Tensor] = {}
        blocks = range(len(call.model.blocks))
        with watched(call.model, blocks, self._site, values, lambda rows: rows.float().mean(dim=1).cpu()):
            yield
        means = torch.stack([values[block] for block in blocks], dim=1)
        for window, (begin, end) in enumerate(self._windows):
            if begin <= call.progress < end:
                key = (start, window, is_positive)
                self._sums[key] = self._sums.get(key, torch.zeros_like(means)) + means

    def means(self, num_pairs: int) -> tuple[Means, Means]:
        """What was recorded of all pairs, positive sides first."""

        def side(is_positive: bool) -> Means:
            parts = [
                torch.stack(
                    [self._sums[start, window, is_positive] / steps for window, steps in enumerate(self._num_steps)], 1
                )
                for start in range(0, num_pairs, PAIRS_AT_ONCE)
            ]
            return torch.cat(parts)

        return side(True), side(False)


def _mean_rows(text: TextEmbeddings) -> Float[Tensor, "P D"]:
    return torch.stack([rows.float().mean(dim=0).cpu() for rows in text.to_list()])
