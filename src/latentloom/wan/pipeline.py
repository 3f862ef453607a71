"""Prompts in, clips out: one pipeline for every Wan text-to-video model, MicroWan included."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from jaxtyping import Float, Num, UInt8
from torch import Tensor, nn

from latentloom.errors import CheckpointError, ConfigError, PromptError
from latentloom.runs import choose_device
from latentloom.tensors import TextEmbeddings, VideoLatents
from latentloom.wan import checkpoints
from latentloom.wan.clip_size import ClipSize, LatentGrid
from latentloom.wan.facts import ModelFacts
from latentloom.wan.folded_padding import fold_padding
from latentloom.wan.layouts import component_name
from latentloom.wan.model_call import ModelCall, schedule_progress
from latentloom.wan.offload import offload_groups, store_in_fp8
from latentloom.wan.sampling import (
    NUM_TRAIN_TIMESTEPS,
    SamplingSettings,
    StepCallback,
    Velocity,
    build_scheduler,
    draw_noise,
    guide,
    sample,
)
from latentloom.wan.text_encoder import MAX_TOKENS, WanTextEncoder
from latentloom.wan.vae import decode_video

Adjust = Callable[[TextEmbeddings], TextEmbeddings]

AroundCall = Callable[[ModelCall], AbstractContextManager[object]]
"""What a transformer does for one call may be changed inside the context manager that this gives for the call."""

PreparePart = Callable[[nn.Module, str], None]
"""Changes a part that was just read, in place; the name is its folder's in diffusers: transformer_2, text_encoder, …"""

MAX_CLIPS_PER_BATCH = 16
MAX_TOKENS_PER_BATCH = 2**15
"""About the transformer tokens of one default TI2V-5B clip (27,280): small clips share a batch, large ones do not."""


@dataclass
class WanPipeline:
    """A loaded Wan model that turns prompts into clips.

    Args:
        text_encoder: None if prompts will only be given as embeddings.
        transformer: the model, or its high-noise expert.
        vae: between latents and pixels.
        facts: sampling defaults, and the boundary between the experts.
        transformer_2: the low-noise expert of a two-expert model.
        device: where everything computes, wherever the weights rest.
        dtype: what the transformer computes in.
        around_call: entered around every call of a transformer while sampling; who sets it puts back what was there.
    """

    text_encoder: WanTextEncoder | None
    transformer: WanTransformer3DModel
    vae: AutoencoderKLWan
    facts: ModelFacts
    transformer_2: WanTransformer3DModel | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    around_call: AroundCall | None = None

    @classmethod
    def load(
        cls,
        root: Path,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        offload: str = "none",
        fp8: bool = False,
        prepare: PreparePart | None = None,
    ) -> WanPipeline:
        """Load a checkpoint folder of any known layout, ready to generate.

        Args:
            root: the official, diffusers or ComfyUI layout.
            dtype: of transformer and text encoder; None is bfloat16 on CUDA and float32 on the CPU. The VAE always
                computes in float32.
            device: None takes the best there is.
            offload: `group` keeps weights on the CPU and moves them as needed.
            fp8: store the transformer in float8.
            prepare: called with the text encoder and with each transformer, while its weights are as they were read.

        Raises:
            CheckpointError: the folder is no Wan checkpoint, or parts are missing or do not fit together.
            ConfigError: an unknown offload mode.
        """
        if offload not in ("none", "group"):
            raise ConfigError(f"offload={offload!r} is unknown; use none or group")
        where = choose_device(device) if device is None or isinstance(device, str) else device
        if dtype is None:
            dtype = torch.bfloat16 if where.type == "cuda" else torch.float32
        rest = torch.device("cpu") if offload == "group" else where
        facts = facts_of(root)
        tokenizer = checkpoints.load_tokenizer(root)
        _refuse_parts_of_several_models(checkpoints.recognise(root), len(tokenizer))
        encoder = checkpoints.load_text_encoder(root, dtype=dtype, device=rest)
        if prepare is not None:
            prepare(encoder, "text_encoder")
        vae = checkpoints.load_vae(root, dtype=torch.float32, device=rest)
        experts = []
        for expert in facts.experts or (None,):
            experts.append(checkpoints.load_transformer(root, expert=expert, dtype=dtype, device=rest))
            if prepare is not None:
                prepare(experts[-1], component_name("transformer", expert))
            if fp8:
                store_in_fp8(experts[-1], dtype)
        if offload == "group":
            for module in (*experts, encoder, vae):
                offload_groups(module, where)
        return cls(
            text_encoder=WanTextEncoder(encoder, tokenizer, where),
            transformer=experts[0],
            vae=vae,
            facts=facts,
            transformer_2=experts[1] if len(experts) > 1 else None,
            device=where,
            dtype=dtype,
        )

    def generate(
        self,
        prompts: list[str] | TextEmbeddings,
        negative_prompt: str | TextEmbeddings = "",
        *,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        steps: int | None = None,
        guidance: float | tuple[float, float] | None = None,
        shift: float | None = None,
        sampler: str = "unipc",
        seeds: list[int],
        adjust: Adjust | None = None,
        callback: StepCallback | None = None,
        batched_guidance: bool = False,
        batch_size: int | None = None,
    ) -> tuple[UInt8[Tensor, "B T H W 3"], VideoLatents]:
        """Generate one clip per prompt: frames on the CPU, and the latents they were decoded from.

        A clip depends on its prompt, its seed and the settings, not on the clips beside it.

        Args:
            prompts: texts, or embeddings that were encoded before.
            negative_prompt: what guidance moves away from.
            num_frames: 4k+1. This and every setting below is the model's own where it is None.
            height, width: pixels, multiples of the model's stride.
            steps, guidance, shift, sampler, batched_guidance: see `SamplingSettings`.
            seeds: one per prompt.
            adjust: applied to the prompts' embeddings, not to the negative one's.
            callback: see `sample`; with several batches it is called anew for each.
            batch_size: clips per batch; None takes as many as hold together the tokens of one large clip.

        Raises:
            PromptError: no prompt, or one that is not text.
            ConfigError: a setting is out of range; the message names what is allowed.
        """
        latents = self.sample(
            self.encode(prompts),
            negative_prompt,
            size=ClipSize.for_model(self.facts, num_frames, height, width),
            settings=SamplingSettings.for_model(self.facts, steps, guidance, shift, sampler, batched_guidance),
            seeds=seeds,
            adjust=adjust,
            callback=callback,
            batch_size=batch_size,
        )
        return self.decode(latents, batch_size), latents

    def encode(self, prompts: list[str] | TextEmbeddings) -> TextEmbeddings:
        """Encode prompts; embeddings are only checked and moved to the pipeline's device.

        Raises:
            ConfigError: embeddings of another width than this model's, or texts without a text encoder.
        """
        if isinstance(prompts, TextEmbeddings):
            if len(prompts) == 0:
                raise PromptError("the embeddings hold no prompt; give at least one")
            width = self.transformer.config["text_dim"]
            if prompts.dim != width:
                raise ConfigError(f"the embeddings have {prompts.dim} channels and {self.facts.title} takes {width}")
            return prompts.to(device=self.device)
        if self.text_encoder is None:
            raise ConfigError("this pipeline has no text encoder; give TextEmbeddings instead of texts")
        return self.text_encoder.encode(prompts)

    @torch.no_grad()
    def sample(
        self,
        embeddings: TextEmbeddings,
        negative: str | TextEmbeddings = "",
        *,
        size: ClipSize | None = None,
        settings: SamplingSettings | None = None,
        seeds: list[int],
        adjust: Adjust | None = None,
        callback: StepCallback | None = None,
        batch_size: int | None = None,
    ) -> VideoLatents:
        """Sample one clip's latents per embedding; the arguments are those of `generate`.

        Args:
            size, settings: the model's defaults where None.
        """
        size = size if size is not None else ClipSize.for_model(self.facts)
        settings = settings if settings is not None else SamplingSettings.for_model(self.facts)
        if len(seeds) != len(embeddings):
            raise ConfigError(f"{len(seeds)} seeds were given for {len(embeddings)} prompts; give one per prompt")
        shape = self.grid.shape(size)
        positive = adjust(embeddings) if adjust is not None else embeddings
        unconditional = self._encode_negative(negative) if settings.is_guided else None

        batches = []
        for rows in self.batches(len(seeds), size, batch_size):
            noise = draw_noise(shape, seeds[rows], self.device)
            scheduler = build_scheduler(settings, self.device)
            progress = {float(t): step / settings.steps for step, t in enumerate(scheduler.timesteps)}
            clips = tuple(range(len(seeds)))[rows]
            velocity = self._velocity(positive[rows], unconditional, settings, clips, progress)
            batches.append(VideoLatents(sample(velocity, noise, scheduler, callback)))
        return VideoLatents.cat(batches)

    def velocity(
        self, latents: Float[Tensor, "B C T H W"], timestep: Num[Tensor, ""], text: TextEmbeddings
    ) -> Float[Tensor, "B C T H W"]:
        """The model's own answer at one timestep (0 to 1,000), in float32, by the expert in charge; no guidance."""
        settings = SamplingSettings.for_model(self.facts)
        expert, _ = self.expert(float(timestep), settings)
        progress = schedule_progress(float(timestep) / NUM_TRAIN_TIMESTEPS, settings.shift)
        clips = tuple(range(len(latents)))
        return self._call(ModelCall(expert, latents, timestep, text, (True,) * len(clips), clips, progress))

    def predict(
        self,
        model: WanTransformer3DModel,
        latents: Float[Tensor, "B C T H W"],
        timestep: Num[Tensor, ""],
        text: TextEmbeddings,
    ) -> Float[Tensor, "B C T H W"]:
        """One call of one transformer, in float32; whatever `around_call` does elsewhere is left out here.

        Padded text rows are zeros that the model attends to, as it was trained.
        """
        text = text.to(self.device, self.dtype)
        inputs = {
            "hidden_states": latents.to(self.dtype),
            "timestep": timestep.expand(len(latents)),
            "return_dict": False,
        }
        if not self.folds_padding:
            return model(encoder_hidden_states=text.padded(MAX_TOKENS), **inputs)[0].float()
        with fold_padding(model, MAX_TOKENS) as fold:
            return model(encoder_hidden_states=fold(text), **inputs)[0]

    def expert(self, timestep: float, settings: SamplingSettings) -> tuple[WanTransformer3DModel, float]:
        """The transformer in charge at a timestep, and its guidance."""
        boundary = self.facts.boundary
        if self.transformer_2 is None or boundary is None or timestep >= boundary * NUM_TRAIN_TIMESTEPS:
            return self.transformer, settings.guidance[0]
        return self.transformer_2, settings.guidance[1]

    def decode(self, latents: VideoLatents, batch_size: int | None = None) -> UInt8[Tensor, "B T H W 3"]:
        """Decode latents into frames on the CPU."""
        _, _, frames, rows, columns = latents.values.shape
        stride = self.grid.spatial_stride
        size = ClipSize((frames - 1) * self.grid.temporal_stride + 1, rows * stride, columns * stride)
        batches = self.batches(len(latents), size, batch_size)
        return torch.cat([decode_video(self.vae, latents[rows], self.device) for rows in batches])

    @property
    def folds_padding(self) -> bool:
        """Whether one text row stands for all padding; see `wan.folded_padding`."""
        # in bfloat16 the fold's logit of log(512 - L) would round, by one percent
        return self.dtype == torch.float32

    @property
    def grid(self) -> LatentGrid:
        """How this model divides clips into latents and tokens."""
        return LatentGrid.of(self.facts)

    def batches(self, num_clips: int, size: ClipSize, batch_size: int | None = None) -> list[slice]:
        """Which clips are computed together; see `generate` for `batch_size`."""
        if batch_size is None:
            batch_size = min(MAX_CLIPS_PER_BATCH, max(1, MAX_TOKENS_PER_BATCH // self.grid.num_tokens(size)))
        if batch_size < 1:
            raise ConfigError(f"batch_size={batch_size} is out of range; use 1 or more")
        return [slice(start, start + batch_size) for start in range(0, num_clips, batch_size)]

    def _encode_negative(self, negative: str | TextEmbeddings) -> TextEmbeddings:
        encoded = self.encode([negative] if isinstance(negative, str) else negative)
        if len(encoded) != 1:
            raise ConfigError(f"{len(encoded)} negative prompts were given; give one for all clips")
        return encoded

    def _velocity(
        self,
        positive: TextEmbeddings,
        negative: TextEmbeddings | None,
        settings: SamplingSettings,
        clips: tuple[int, ...],
        progress: Mapping[float, float],
    ) -> Velocity:
        """The guided model as a function of latents and timestep, with the expert chosen by the timestep."""
        text = positive.to(self.device, self.dtype)
        blank = None if negative is None else negative.to(self.device, self.dtype)[[0] * len(text)]
        given, left_out = (True,) * len(clips), (False,) * len(clips)

        def velocity(latents: Float[Tensor, "B C T H W"], timestep: Num[Tensor, ""]) -> Float[Tensor, "B C T H W"]:
            model, guidance = self.expert(float(timestep), settings)

            def answer(latents: Tensor, text: TextEmbeddings, sides: tuple[bool, ...], of: tuple[int, ...]) -> Tensor:
                walked = progress[float(timestep)]
                return self._call(ModelCall(model, latents, timestep, text, sides, of, walked))

            if blank is None or guidance <= 1:
                return answer(latents, text, given, clips)
            if settings.batched_guidance:
                both = TextEmbeddings.cat([text, blank])
                prediction = answer(latents.repeat(2, 1, 1, 1, 1), both, given + left_out, clips + clips)
                conditional, unconditional = prediction.chunk(2)
            else:
                conditional = answer(latents, text, given, clips)
                unconditional = answer(latents, blank, left_out, clips)
            return guide(conditional, unconditional, guidance)

        return velocity

    def _call(self, call: ModelCall) -> Float[Tensor, "B C T H W"]:
        with self.around_call(call) if self.around_call is not None else nullcontext():
            return self.predict(call.model, call.latents, call.timestep, call.text)


def facts_of(root: Path) -> ModelFacts:
    """What is known of a checkpoint's model, from its headers alone.

    Raises:
        CheckpointError: it is no Wan checkpoint, or has no transformer.
    """
    facts = checkpoints.recognise(root).facts
    if facts is None:
        raise CheckpointError(f"{root} has no transformer; give the folder of a whole Wan checkpoint")
    return facts


def _refuse_parts_of_several_models(found: checkpoints.Checkpoint, num_words: int) -> None:
    """A folder that gathers files of several models must not fail after the sampling."""
    experts = [part.derived_config for part in found.components if part.role == "transformer"]
    encoder = found.component("text_encoder").derived_config
    channels = found.component("vae").derived_config["z_dim"]
    if num_words > encoder["vocab_size"]:
        raise CheckpointError(
            f"{found.root}: its tokenizer has {num_words} words and its text encoder {encoder['vocab_size']}; "
            "give parts of one model"
        )
    for dims in experts:
        if (dims["text_dim"], dims["in_channels"]) != (encoder["d_model"], channels):
            raise CheckpointError(
                f"{found.root}: its transformer takes text of {dims['text_dim']} and latents of {dims['in_channels']} "
                f"channels, its text encoder and vae give {encoder['d_model']} and {channels}; give parts of one model"
            )
