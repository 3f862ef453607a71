"""Where the clips of shards come from: MicroWan's world, which the systems themselves do not know."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from latentloom.drifting.clips.encode import SourceClip


def world_clips(
    num_clips: int, num_frames: int, frame_size: int, height: int | None, split: str, seed: int
) -> "Iterator[SourceClip]":
    """Captioned clips of MicroWan's world; clip i is the same whatever their number is.

    Args:
        num_clips: how many.
        num_frames, frame_size: of a clip, see `draw_clips`.
        height: what frames are brought to by averaging blocks; None keeps them.
        split: "train", "held_out" or "unseen_pair".
        seed: of attributes, geometry and words.

    Raises:
        ConfigError: an unknown split or size.
    """
    from latentloom.drifting.clips.encode import SourceClip
    from latentloom.drifting.clips.video_windows import average_blocks, block_size
    from latentloom.micro.draw import draw_captioned
    from latentloom.runs import track

    drawn = draw_captioned(num_clips, num_frames=num_frames, frame_size=frame_size, split_name=split, seed=seed)
    block = block_size(frame_size, height)
    for index in track(num_clips, "clips"):
        clip = next(drawn)
        pixels = average_blocks(clip.frames.permute(0, 3, 1, 2), block).transpose(0, 1)
        yield SourceClip(f"{split}-{index:08d}", pixels, clip.caption)
