"""The random numbers of a step, which depend on nothing but the seed, the step and what they are for."""

import hashlib

import torch


def step_generator(seed: int, step: int, stream: str) -> torch.Generator:
    """A CPU generator for one purpose in one step: a resumed run draws what the uninterrupted one draws.

    The same in every process, on every machine and in every Python version.

    Args:
        seed: of the run.
        step: counted from 0.
        stream: what is drawn, such as "masks"; different ones are independent.
    """
    digest = hashlib.sha256(f"{seed}/{step}/{stream}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
