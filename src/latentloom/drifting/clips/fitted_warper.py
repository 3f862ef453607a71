"""The keyframes of a run; where interpolation is learned, its warper is fitted to the run's own clips first."""

from pathlib import Path

import torch
from jaxtyping import Bool, Float
from safetensors.torch import save_file
from torch import Tensor

from latentloom.drifting.clips.config import ClipConfig
from latentloom.drifting.clips.corruption import Keyframes
from latentloom.drifting.clips.data import ClipData
from latentloom.errors import CheckpointError
from latentloom.keyframes.sinkhorn import SinkhornWarper, fit_warper
from latentloom.runs import process_rank
from latentloom.runs.process_group import wait_for_all
from latentloom.runs.randomness import step_generator
from latentloom.storage import atomic_write
from latentloom.storage.modules import read_tensors

WARPER_FILE = "warper.safetensors"
CLIPS_AT_ONCE = 8
LEARNING_RATE = 3e-2


def make_keyframes(config: ClipConfig, data: ClipData, folder: Path, device: torch.device) -> Keyframes:
    """What takes frames away and fills them in; a warper of an earlier sitting is read from `folder`.

    Raises:
        ConfigError: more levels than the frames can be halved into.
        CheckpointError: the file of the earlier sitting is damaged, or something else.
    """
    num_frames = data.train.shape[1]
    if config.interp_mode != "learned":
        return Keyframes(config, num_frames)
    path = folder / WARPER_FILE
    warper = SinkhornWarper(data.train.shape[0])
    if not path.exists() and process_rank() == 0:
        _fit(warper.to(device), config, data)
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            save_file({name: value.cpu() for name, value in warper.state_dict().items()}, temporary)
    wait_for_all()
    try:
        warper.load_state_dict(read_tensors(path))
    except RuntimeError as error:
        raise CheckpointError(f"{path} is no warper of {data.train.shape[0]} channels; delete it") from error
    return Keyframes(config, num_frames, warper.to(device).eval().requires_grad_(False))


def _fit(warper: SinkhornWarper, config: ClipConfig, data: ClipData) -> None:
    holes = Keyframes(config.model_copy(update={"interp_mode": "linear"}), data.train.shape[1])

    def batch(generator: torch.Generator) -> tuple[Float[Tensor, "B C T H W"], Bool[Tensor, "B T"]]:
        numbers = torch.randint(len(data.train), (CLIPS_AT_ONCE,), generator=generator)
        clips = data.train.load(numbers)
        return clips, holes.draw_holes(CLIPS_AT_ONCE, generator).given.to(clips.device)

    generator = step_generator(config.split_seed, 0, "warper")
    fit_warper(warper, batch, config.interp_steps, LEARNING_RATE, generator)
