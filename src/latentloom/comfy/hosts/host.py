"""What a node asks of its host; models and prompts are the host's own objects, and stay as they are."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from latentloom.errors import ConfigError
from latentloom.steering import BlockActivations, Plan
from latentloom.steering.hosts.official import Listener, Recording
from latentloom.tensors import TextEmbeddings

CONFIG = "wan_activation_editor"
"""Where a model's `transformer_options` and a prompt keep what an editor was set to, as the document names it."""


@dataclass(frozen=True)
class Sizes:
    """Of a transformer.

    Args:
        num_blocks: its depth.
        dim: width of its blocks.
        text_dim: width of its text encoder.
    """

    num_blocks: int
    dim: int
    text_dim: int


@dataclass(frozen=True, eq=False)
class NoisedClip:
    """A clip on its way from noise, as the host's sampler would make it.

    Args:
        seed: of the noise, which the host draws as for a run with this seed.
        percent: share of the schedule that lies behind; 0 is noise alone.
        num_frames, height, width: in pixels, where nothing below gives a size.
        samples: a LATENT, clean, whose first clip is noised; without it the clip is empty.
        shift: of the schedule, for a host whose model does not know it.
        image_embeds: WANVIDIMAGE_EMBEDS, for the host that has them.
    """

    seed: int = 0
    percent: float = 0.0
    num_frames: int = 81
    height: int = 480
    width: int = 832
    samples: Mapping[str, Any] | None = None
    shift: float = 5.0
    image_embeds: Mapping[str, Any] | None = None


class Host(ABC):
    """One of the two hosts; it holds nothing.

    A `model` is the value of a MODEL or WANVIDEOMODEL socket: a patcher, whose weights may not be loaded yet. A `text`
    is the value of a CONDITIONING or WANVIDEOTEXTEMBEDS socket.
    """

    @abstractmethod
    def read_text(self, text: Any) -> TextEmbeddings:
        """The positive prompts of a text, without padding, on the CPU.

        Raises:
            ConfigError: there is none.
        """

    @abstractmethod
    def read_single(self, text: Any) -> TextEmbeddings:
        """The prompt of a text that is to be injected; of several rows of a batch, one for each clip.

        Raises:
            ConfigError: there is none, or more than an injection can use.
        """

    @abstractmethod
    def beside_prompts(self, text: Any) -> Any:
        """What a text says beside its positive prompts, such as a start image; without what editors wrote there."""

    @abstractmethod
    def write_text(self, like: Any, embeddings: TextEmbeddings, notes: Mapping[str, Any] | None = None) -> Any:
        """A text like another one, with other positive prompts.

        Args:
            like: everything else is its own.
            embeddings: as many prompts as it has, or any number where the host takes one.
            notes: kept with the text, by name.
        """

    @abstractmethod
    def install(self, model: Any, plan: Plan, listen: Listener | None = None) -> Any:
        """A clone of the model whose runs are changed by the plan.

        Raises:
            ConfigError: the plan does not fit the model.
        """

    @abstractmethod
    def project(self, model: Any, text: TextEmbeddings) -> TextEmbeddings:
        """True rows as the model's blocks read them, after its `text_embedding`, on the CPU.

        Raises:
            ConfigError: the weights cannot be read.
        """

    @abstractmethod
    def encode(self, encoder: Any, prompt: str) -> TextEmbeddings:
        """A prompt, by a CLIP or a WANTEXTENCODER, without padding, on the CPU."""

    def capture(self, model: Any, text: Any, clip: NoisedClip, num_blocks: int) -> BlockActivations:
        """What enters blocks 0 to `num_blocks` in one step of the host's own sampler, for one clip.

        The model is loaded, patched and released as for any run, and what other nodes changed in it acts.

        Args:
            model: the patcher; it stays as it is.
            text: the prompt.
            clip: what the model is given.
            num_blocks: passed by the last of the activations.

        Raises:
            ConfigError: the model has not more blocks than that, or the host cannot run it.
        """
        depth = self.sizes(model).num_blocks
        if not 0 <= num_blocks < depth:
            raise ConfigError(f"there is no block after {num_blocks} of {depth} blocks; capture after 1 to {depth - 1}")
        recording = Recording(range(num_blocks + 1), progress=clip.percent)
        timestep = self._run_once(model, text, clip, recording)
        if not recording.values:
            raise ConfigError("the run did not reach the model's blocks; unlink what caches or skips its steps")
        values = {block: rows[:1] for block, rows in sorted(recording.values.items())}
        return BlockActivations(values, "hidden_states", timestep, {"seed": clip.seed, "percent": clip.percent})

    @abstractmethod
    def _run_once(self, model: Any, text: Any, clip: NoisedClip, recording: Recording) -> float:
        """Run the model once and return the timestep, 0 to 1,000."""

    def sizes(self, model: Any) -> Sizes:
        """Of the model's transformer.

        Raises:
            ConfigError: it is no Wan model.
        """
        transformer = getattr(model.model, "diffusion_model", None)
        if transformer is None or not all(hasattr(transformer, name) for name in ("blocks", "dim", "text_dim")):
            raise ConfigError(f"{type(transformer).__name__} is no Wan model; connect a Wan model")
        return Sizes(len(transformer.blocks), transformer.dim, transformer.text_dim)

    def notes(self, model: Any) -> dict[str, Any]:
        """What editors before wrote on the model, see `annotate`; empty where none did."""
        return dict(model.model_options.get("transformer_options", {}).get(CONFIG, {}))

    def annotate(self, model: Any, config: Mapping[str, Any]) -> Any:
        """A clone of the model that keeps an editor's configuration under `CONFIG`."""
        clone = model.clone()
        options = {**clone.model_options.get("transformer_options", {}), CONFIG: dict(config)}
        clone.model_options = {**clone.model_options, "transformer_options": options}
        return clone
