"""Small trainings for the tests of the trainer: settings, examples in memory, and what forked processes run."""

import gc
import os
import pickle
import resource
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import get_context
from multiprocessing.context import ForkProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.utils.tensorboard
from torch import distributed

# before DeepSpeed is imported, as the trainer does it
os.environ["DS_ACCELERATOR"] = "cpu"

import deepspeed
from deepspeed.comm import comm

import latentloom.finetune.loop
from latentloom.finetune.checkpoint import checkpoints_in
from latentloom.finetune.config import FinetuneConfig
from latentloom.finetune.data import Example
from latentloom.finetune.session import Session, make_session
from latentloom.finetune.stages.processes import Place, joined_processes
from latentloom.finetune.train import main
from latentloom.runs import to_toml
from latentloom.training import read_curve
from latentloom.wan.clip_size import ClipSize
from latentloom.wan.pipeline import facts_of

PRINTED = "printed.txt"
IMPORTED = deepspeed, torch.utils.tensorboard, latentloom.finetune.loop
"""Here once, and not in every process that is forked."""

KEPT: list[Any] = []
CAPTIONS = ("a red circle moves left", "a small blue square moves up on black", "a green circle")
LORA: dict[str, Any] = {"adapter": {"rank": 4, "dropout": 0.1}}
ENCODER: dict[str, Any] = {"model": {"cache_text_embeddings": False, "train_text_encoder": True}}


class MemoryStore:
    """Random clips and images, every fourth an image, with the embeddings of their captions.

    Args:
        num: of items.
        channels: of the latents.
        text_dim: of the embeddings.
    """

    def __init__(self, num: int, channels: int = 4, text_dim: int = 16) -> None:
        generator = torch.Generator().manual_seed(0)
        self.sizes = [ClipSize(9, 48, 48) if item % 4 else ClipSize(1, 48, 48) for item in range(num)]
        self.names = [f"{item:02d}" for item in range(num)]
        self.examples = [
            Example(
                torch.randn(channels, 3 if item % 4 else 1, 6, 6, generator=generator),
                CAPTIONS[item % 3],
                torch.randn(5 + item % 3, text_dim, generator=generator) * 0.2,
            )
            for item in range(num)
        ]

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]


def settings(*changes: Mapping[str, Any]) -> FinetuneConfig:
    """Settings in float32 on the CPU, changed by nested mappings, the later ones winning."""
    values: dict[str, Any] = {
        "output_dir": "runs",
        "dataset": "clips",
        "micro_batch_size_per_gpu": 2,
        "mixed_precision": "none",
        "device": "cpu",
        "model": {"dtype": "float32"},
        "optimizer": {"lr": 1e-2},
    }
    for change in changes:
        values = _merged(values, change)
    return FinetuneConfig.model_validate(values)


def open_session(config: FinetuneConfig, checkpoint: Path, place: Place, store: MemoryStore) -> Session:
    """A session over examples in memory."""
    return make_session(config, checkpoint, facts_of(checkpoint), None, place, store)


def train(configs: Sequence[FinetuneConfig], checkpoint: Path, store: MemoryStore, num_steps: int) -> list[Any]:
    """Of short trainings one after the other: losses, gradient norms, held-out loss, and where the row was cut."""
    measured = []
    for config in configs:
        with joined_processes(config.pipeline_stages, config.device) as place:
            session = open_session(config, checkpoint, place, store)
            losses, norms = [], []
            for step in range(num_steps):
                session.set_rate(step)
                losses.append(session.train_step(step))
                norms.append(session.engine.gradient_norm)
            held_out = session.evaluate(0.5) if session.held_out else 0.0
            measured.append({"losses": losses, "norms": norms, "held_out": held_out, "parts": list(session.parts)})
    return measured


def forked(num_processes: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What a function returns in each process of a new group.

    The processes are forked: new interpreters would spend seconds on imports. What they return is pickled by value: a
    queue would pass a tensor as a handle, which is lost if its process ends before the handle is opened.
    """
    context = get_context("fork")
    with TemporaryDirectory() as folder:
        queues = [context.SimpleQueue() for _ in range(num_processes)]
        group = Path(folder) / "rendezvous", num_processes
        processes = [
            context.Process(target=_run_rank, args=(rank, *group, queue, function, arguments))
            for rank, queue in enumerate(queues)
        ]
        for process in processes:
            process.start()
        results = [pickle.loads(queue.get()) for queue in queues]
        for process in processes:
            process.join()
    errors = [text for text, _ in results if text]
    assert not errors, errors[0]
    return [value for _, value in results]


def _run_rank(
    rank: int, meeting: Path, count: int, queue: Any, function: Callable[..., Any], arguments: Sequence[Any]
) -> None:
    _keep_what_was_forked()
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    os.environ["LOCAL_RANK"] = str(rank)
    distributed.init_process_group("gloo", init_method=meeting.as_uri(), rank=rank, world_size=count)
    try:
        queue.put(pickle.dumps(("", function(*arguments))))
    except BaseException:
        queue.put(pickle.dumps((traceback.format_exc(), None)))
        raise
    finally:
        distributed.destroy_process_group()


def _merged(values: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(values)
    for key, value in change.items():
        merged[key] = _merged(merged.get(key) or {}, value) if isinstance(value, Mapping) else value
    return merged


def start(
    config: FinetuneConfig,
    folder: Path,
    *arguments: str,
    largest_file: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> ForkProcess:
    """A forked process that runs the training command; what it prints is in `folder/printed.txt`.

    Args:
        config: the settings, handed over as a file.
        folder: for the file and the output; made where it is not there.
        arguments: more of the command line.
        largest_file: files above this many bytes fail to be written, as on a full disk.
        environment: variables that a launcher sets.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.toml").write_text(to_toml(config))
    (folder / PRINTED).write_text("")
    command = ("--config", str(folder / "config.toml"), *arguments)
    process = get_context("fork").Process(
        target=_run_command, args=(command, folder / PRINTED, largest_file, environment or {})
    )
    process.start()
    return process


def finish(config: FinetuneConfig, folder: Path, *arguments: str, largest_file: int | None = None) -> int | None:
    """The exit code of the training command, run to its end in a forked process."""
    process = start(config, folder, *arguments, largest_file=largest_file)
    process.join()
    return process.exitcode


def printed(folder: Path) -> str:
    """What the last command that was started with this folder has printed, on both of its outputs."""
    return (folder / PRINTED).read_text()


def the_run(config: FinetuneConfig) -> Path:
    """The only run in the output folder."""
    (record,) = config.output_dir.glob("*/record.json")
    return record.parent


def losses(run: Path) -> list[tuple[float, float]]:
    """Steps and losses of a run, as its curve has them."""
    return [(line["step"], line["loss"]) for line in read_curve(run / "loss.jsonl")]


def wait_for_steps(config: FinetuneConfig, number: int) -> None:
    """Return once the run in the output folder has taken so many steps."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        curves = list(config.output_dir.glob("*/loss.jsonl"))
        if curves and curves[0].read_text().count("\n") >= number:
            return
        time.sleep(0.002)
    raise TimeoutError(f"no {number} steps in {config.output_dir}")


def _keep_what_was_forked() -> None:
    """Hold on to all objects: process groups of the parent would wait for their threads, which are not forked.

    It copies the parent's memory, and is left out where the parent has not trained.
    """
    if comm.cdb is not None:
        KEPT.extend(gc.get_objects())


def run_forked(function: Callable[..., Any], out: Path, *arguments: Any) -> int | None:
    """The exit code of a forked process that calls a function; what it prints is in `out`."""
    process = get_context("fork").Process(target=_run_printing, args=(function, out, *arguments))
    process.start()
    process.join()
    return process.exitcode


def checkpoints(run: Path) -> list[int]:
    """The steps of a run's checkpoints."""
    return [int(path.name.removeprefix("global_step")) for path in checkpoints_in(run)]


def _run_command(arguments: Sequence[str], out: Path, largest_file: int | None, environment: Mapping[str, str]) -> None:
    os.environ.update(environment)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    _run_printing(main, out, arguments)


def _run_printing(function: Callable[..., Any], out: Path, *arguments: Any) -> None:
    _keep_what_was_forked()
    with out.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
    function(*arguments)
