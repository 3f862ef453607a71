"""What caching found and did."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from latentloom.storage.byte_sizes import in_words
from latentloom.wan.clip_size import ClipSize


@dataclass(frozen=True)
class CacheReport:
    """Counts of one call of `cache_dataset`, over all processes.

    Args:
        num_items: of the data set, without what was skipped and without repeats.
        num_images, num_videos: of these, by kind of file.
        num_stills: videos too short for more than one frame.
        num_missing_captions: items without a text file; they are trained on with the empty caption.
        skipped: files that cannot be used, each with the reason.
        buckets: how often an epoch shows a clip of each size, repeats included.
        num_latents_computed, num_latents_reused: clips; equal files in one size count once.
        num_texts_computed, num_texts_reused: captions; equal ones count once.
        num_bytes: of the cache on disk, for this VAE and encoder.
    """

    num_items: int = 0
    num_images: int = 0
    num_videos: int = 0
    num_stills: int = 0
    num_missing_captions: int = 0
    skipped: Mapping[str, str] = field(default_factory=dict)
    buckets: Mapping[ClipSize, int] = field(default_factory=dict)
    num_latents_computed: int = 0
    num_latents_reused: int = 0
    num_texts_computed: int = 0
    num_texts_reused: int = 0
    seconds: float = 0.0
    num_bytes: int = 0

    @property
    def num_computed(self) -> int:
        """Latents and texts that were computed."""
        return self.num_latents_computed + self.num_texts_computed

    @property
    def num_reused(self) -> int:
        """Latents and texts that were there."""
        return self.num_latents_reused + self.num_texts_reused

    def lines(self) -> list[str]:
        """What a person wants to know, a line each."""
        lines = [f"{self.num_items} items: {self.num_images} images, {self.num_videos} videos"]
        if self.num_stills:
            lines.append(f"{self.num_stills} videos are too short for more than one frame and count as images")
        if self.num_missing_captions:
            lines.append(f"{self.num_missing_captions} items have no caption file; their caption is empty")
        for size, count in sorted(self.buckets.items(), key=lambda item: (item[0].num_frames, -item[1])):
            frames = "1 frame" if size.num_frames == 1 else f"{size.num_frames} frames"
            lines.append(f"bucket {size.width}x{size.height}, {frames}: {count} per epoch")
        lines.append(
            f"latents: {self.num_latents_computed} computed, {self.num_latents_reused} reused; "
            f"texts: {self.num_texts_computed} computed, {self.num_texts_reused} reused; "
            f"{in_words(self.num_bytes)} on disk; {self.seconds:.1f} s"
        )
        if self.skipped:
            lines.append(f"{len(self.skipped)} files were skipped:")
            lines += [f"  {reason}" for reason in self.skipped.values()]
        return lines
