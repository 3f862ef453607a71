"""Clips and damaged members that the tests of shards share."""

import io
import os
import tarfile
from pathlib import Path

import torch
from torch import Tensor

from latentloom.drifting.clips.clip_sample import Anchors
from latentloom.drifting.clips.shard_writer import ShardWriter

SHAPE = (16, 5, 4, 4)


def clip_values(number: int, shape: tuple[int, ...] = SHAPE, dtype: torch.dtype = torch.float16) -> Tensor:
    """Float32 values that the dtype holds exactly; another clip for every number."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(number)).to(dtype).float()


def clip_text(number: int, width: int = 6) -> Tensor:
    """A text of 1 to 4 tokens, float16 values."""
    return torch.randn(1 + number % 4, width, generator=torch.Generator().manual_seed(1000 + number)).half().float()


def write_folder(folder: Path, num_clips: int = 5, clips_per_shard: int = 2, **settings) -> Path:
    """Shards of latents with texts; every third clip has anchors at its first and last frame."""
    with ShardWriter(folder, space="latent", frames="each", clips_per_shard=clips_per_shard, **settings) as writer:
        for number in range(num_clips):
            values = clip_values(number)
            anchors = Anchors(torch.tensor([0, 4]), values[:, [0, 4]] + 1) if number % 3 == 0 else None
            writer.write(f"clip{number:03d}", values, clip_text(number), f"prompt {number}", anchors)
    return folder


def pt(content: object) -> bytes:
    """What torch.save writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def write_tar(path: Path, clips: dict[str, dict[str, bytes]]) -> Path:
    """A tar of these members, as another program writes it: no manifest."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, members in clips.items():
            for suffix, data in members.items():
                entry = tarfile.TarInfo(f"{key}.{suffix}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    return path


def members(number: int, **changed: object) -> dict[str, bytes]:
    """The members of a sound clip in the document's format; `latent=`, `embed=` and so on replace one."""
    padded = torch.zeros(512, 6, dtype=torch.bfloat16)
    padded[: 1 + number % 4] = clip_text(number).bfloat16()
    found = {
        "latent.pt": pt(clip_values(number).half()),
        "embed.pt": pt(padded),
        "prompt.txt": f"prompt {number}".encode(),
    }
    for name, content in changed.items():
        suffix = "prompt.txt" if name == "prompt" else f"{name}.pt"
        if content is None:
            del found[suffix]
        else:
            found[suffix] = content if isinstance(content, bytes) else pt(content)
    return found


class RunsCode:
    """Unpickling it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def bad_members(folder: Path) -> dict[str, dict[str, bytes]]:
    """Clips that must be skipped, by the reason they are counted under."""
    values = clip_values(0).half()
    not_a_number = values.clone()
    not_a_number[0, 0, 0, 0] = float("nan")
    whole = pt(values)
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 255
    anchors = {"anchor_idx": torch.tensor([0, 9]), "anchor_values": values[:, [0, 1]]}
    return {
        "no latent": members(1, latent=None),
        "unreadable latent": members(1, latent=whole[: len(whole) // 2]),
        "another order of dimensions": members(1, latent=values.transpose(0, 1).contiguous()),
        "another shape": members(1, latent=values[:, :4].contiguous()),
        "latent not finite": members(1, latent=not_a_number),
        "no text": members(1, embed=None),
        "text of another width": members(1, embed=torch.ones(512, 7)),
        "unreadable text": members(1, embed=torch.ones(512)),
        "unreadable prompt": members(1, prompt=b"\xff\xfe\xff"),
        "unreadable anchors": members(1, anchors=anchors),
        "anchors of another shape": members(1, anchors=anchors | {"anchor_values": values[:, :3].contiguous()}),
    }


def more_unreadable(folder: Path) -> dict[str, bytes]:
    """Latents that cannot be read, by what is wrong with them."""
    whole = pt(clip_values(0).half())
    return {
        "code": pt(RunsCode(folder)),
        "empty": b"",
        "integers": pt(torch.zeros(SHAPE, dtype=torch.int64)),
        "a list": pt([clip_values(0)]),
        "another format": b"not a torch file at all",
        "stretched": pt(torch.zeros(1).expand(10**6, 10**6)),
        "cut": whole[:100],
    }
