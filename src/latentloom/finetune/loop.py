"""One training from its first step to its last: steps, evaluations, samples, artifacts, checkpoints."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from torch import distributed

from latentloom.finetune.cache.ranks import Ranks
from latentloom.finetune.checkpoint import (
    Position,
    Resume,
    barrier,
    clear_remains,
    find_resume,
    is_finished,
    load_checkpoint,
    save_checkpoint,
)
from latentloom.finetune.config import FinetuneConfig
from latentloom.finetune.experiment import finetune_trainings
from latentloom.finetune.exports import save_epoch
from latentloom.finetune.interruptions import agreed, noticed_signals
from latentloom.finetune.objective import EVALUATION_QUANTILES
from latentloom.finetune.samples import Sampler
from latentloom.finetune.session import Session
from latentloom.finetune.watch import Watch
from latentloom.runs import RunFolder, track
from latentloom.storage.atomic import disk_failures_said


@dataclass(frozen=True)
class Start:
    """How a training begins.

    Args:
        resumes: with the newest run, if there is one.
        name: with this run, or from this `RUN/global_stepN`.
        after: only runs that began later than this one count.
        notes: lines for the report: what was cached, what was changed.
    """

    resumes: bool = False
    name: str | None = None
    after: str = ""
    notes: tuple[str, ...] = ()


def train_session(session: Session, start: Start) -> tuple[Path, bool]:
    """Train to the end, or until a signal asks to stop; gives the run's folder, and whether it was stopped.

    Raises:
        ConfigError: the run to go on with is not there, or was made with other settings.
        CorruptFileError: its checkpoints cannot be read.
        FileError: the disk is full or cannot be written to; what was saved before stays.
    """
    place = session.place
    with noticed_signals() as stop, disk_failures_said(session.config.output_dir):
        resumed = _start_or_resume(session, start)
        position = resumed.position if resumed else Position(0, 0)
        if resumed and position.step >= session.num_steps and is_finished(resumed.run):
            if place.is_main:
                print(f"run: {resumed.run} is finished; nothing is left to do", flush=True)
            return resumed.run, False
        run, told = None, []
        if place.is_main:
            told = [*_bucket_notes(session), *_schedule_notes(session), *(resumed.notes if resumed else ())]
            if start.resumes and resumed is None:
                told.append(f"nothing to go on with in {session.config.output_dir}; this is a new run")
            run = _open_run(session, resumed.run if resumed else None)
            where = f", going on after step {position.step}" if resumed else ""
            print("\n".join([*told, f"run: {run.path}{where}"]), flush=True)
        path = _from_main(run.path if run is not None else None)
        watch = Watch(session, run, position.step, [*start.notes, *told]) if run is not None else None
        with run if run is not None else nullcontext():
            position = _loop(session, path, position, watch, stop)
            (is_stopped,) = agreed((bool(stop),), place)
            if run is not None and watch is not None:
                watch.write_report()
                close = run.finish if position.step >= session.num_steps else run.interrupt
                close(watch.results(position.step))
    barrier()
    return path, is_stopped


def _loop(session: Session, run: Path, position: Position, watch: Watch | None, stop: list[int]) -> Position:
    """Train from a position to the end, or until a signal asks to stop; gives where it stopped."""
    config, per_epoch = session.config, session.plan.steps_per_epoch
    if position.step == 0:
        _evaluate(session, 0, watch)
        if watch is not None and _ever_samples(session):
            watch.samples(0, Sampler(session).write(run / "epoch0"))
        barrier()
    saved = time.monotonic()
    for step in track(range(position.step, session.num_steps), "train"):
        started = time.monotonic()
        factor = session.set_rate(step)
        loss = session.train_step(step)
        if watch is not None:
            watch.step(step, loss, factor, time.monotonic() - started)
        done = step + 1
        position = Position(done, (step // per_epoch) + 1)
        ends_run = done == session.num_steps
        if done % per_epoch == 0 or ends_run:
            _end_epoch(session, run, position, ends_run, watch)
        is_due = ends_run or _is_due(config, done, time.monotonic() - saved)
        stops, saves = agreed((bool(stop), is_due), session.place)
        if stops or saves:
            _save(session, run, position)
            saved = time.monotonic()
        if stops:
            break
    return position


def _is_due(config: FinetuneConfig, step: int, seconds: float) -> bool:
    steps, minutes = config.checkpoint_every_n_steps, config.checkpoint_every_n_minutes
    return (steps is not None and step % steps == 0) or (minutes is not None and seconds >= 60 * minutes)


def _end_epoch(session: Session, run: Path, position: Position, ends_run: bool, watch: Watch | None) -> None:
    config, epoch = session.config, position.epoch
    if epoch % config.eval_every_n_epochs == 0 or ends_run:
        _evaluate(session, position.step, watch)
    saves = epoch % config.save_every_n_epochs == 0 or ends_run
    folder = save_epoch(session, run, epoch) if saves else run / f"epoch{epoch}"
    if watch is not None and _samples_are_due(session, epoch, ends_run):
        watch.samples(position.step, Sampler(session).write(folder))
    barrier()


def _ever_samples(session: Session) -> bool:
    every = session.config.sample_every_n_epochs
    is_wanted = session.facts.key == "micro" if every is None else every > 0
    return is_wanted and session.config.pipeline_stages == 1


def _samples_are_due(session: Session, epoch: int, ends_run: bool) -> bool:
    every = session.config.sample_every_n_epochs
    return _ever_samples(session) and (ends_run or (every is not None and epoch % every == 0))


def _evaluate(session: Session, step: int, watch: Watch | None) -> None:
    if not session.held_out:
        return
    losses = {quantile: session.evaluate(quantile) for quantile in EVALUATION_QUANTILES}
    if watch is not None:
        watch.evaluation(step, losses)


def _save(session: Session, run: Path, position: Position) -> None:
    place = session.place
    trained, optimizer, kept = session.stage.trained, session.optimizer, session.config.checkpoints_kept
    save_checkpoint(run, position, place.stage, place.replica == 0, trained, optimizer, session.identity, kept)


def _start_or_resume(session: Session, start: Start) -> Resume | None:
    """The run to go on with, loaded; None for a new run."""
    if not start.resumes:
        return None
    folder, kind, facts = session.config.output_dir, _run_name(session), session.identity
    with Ranks.open() as ranks:  # one process looks, before any writes
        found = ranks.first(lambda: find_resume(folder, start.name, kind, facts, start.after))
    if found is not None and found.checkpoint is not None:
        load_checkpoint(found.checkpoint, session.stage.trained, session.optimizer)
    return found


def _open_run(session: Session, path: Path | None) -> RunFolder:
    config = session.config
    data, facts = f"{config.dataset}, {len(session.store)} items", finetune_trainings(session)
    if path is None:
        name = _run_name(session)
        return RunFolder.create(config.output_dir, name, config, seeds=[config.seed], data=data, trainings=facts)
    clear_remains(path)
    return RunFolder.at(path, config, seeds=[config.seed], data=data, trainings=facts)


def _run_name(session: Session) -> str:
    mode = "encoder" if session.config.model.train_text_encoder else "lora"
    return f"{mode}-{session.expert}_noise" if session.expert else mode


def _bucket_notes(session: Session) -> list[str]:
    """What a person should know about batches that could not be filled with different items."""
    plan = session.plan
    notes = []
    for size, count in plan.small_buckets().items():
        notes.append(
            f"bucket {size.width}x{size.height}x{size.num_frames}: {count} items, fewer than the global batch of "
            f"{plan.global_batch(size)}; they are repeated to fill it"
        )
    total = sum(plan.filled.values())
    if total:
        notes.append(f"{total} of each epoch's places are filled with items a second time, to complete last batches")
    return notes


def _schedule_notes(session: Session) -> list[str]:
    """A warmup that outlasts the run never reaches the rate that was asked for."""
    warmup, num_steps = session.config.warmup_steps, session.num_steps
    if warmup <= num_steps:
        return []
    share = num_steps / warmup
    return [f"warmup_steps = {warmup} and the run has {num_steps} steps: the rate reaches {share:.0%} of what is set"]


def _from_main(path: Path | None) -> Path:
    """The main process's path, in every process."""
    box = [path]
    distributed.broadcast_object_list(box, src=0)
    assert box[0] is not None
    return box[0]
