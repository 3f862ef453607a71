"""The training command: caches, trains, watches, saves, goes on after an interruption.

`deepspeed --num_gpus=N --module latentloom.finetune.train --deepspeed --config recipes/….toml` starts it in several
processes; `latentloom finetune --config …` in one.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from torch import distributed

from latentloom.errors import LatentLoomError
from latentloom.finetune.cache import CacheModels, cache_dataset
from latentloom.finetune.cache.dataset import CachedDataset
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
from latentloom.finetune.exports import save_epoch
from latentloom.finetune.interruptions import agreed, noticed_signals
from latentloom.finetune.objective import EVALUATION_QUANTILES
from latentloom.finetune.samples import Sampler
from latentloom.finetune.session import Session, make_session
from latentloom.finetune.settings import experts_from, experts_to_train, fit_to_model
from latentloom.finetune.stages.processes import Place, joined_processes
from latentloom.finetune.stages.row import DTYPES
from latentloom.finetune.watch import Watch
from latentloom.runs import RunFolder, load_config, track
from latentloom.runs.logs import set_up_logs
from latentloom.wan.checkpoints import recognise
from latentloom.wan.facts import ModelFacts
from latentloom.wan.pipeline import facts_of
from latentloom.wan.shipped import micro_wan_weights


@dataclass(frozen=True)
class Options:
    """How a run is started, beside its settings.

    Args:
        resume: go on with the newest run, or a new one where there is none.
        resume_name: go on with this run, or from this `RUN/global_stepN`.
        cache_only: stop when the cache is made.
        trust_cache: take the cache as it is.
        regenerate_cache: make it anew.
    """

    resume: bool = False
    resume_name: str | None = None
    cache_only: bool = False
    trust_cache: bool = False
    regenerate_cache: bool = False


@dataclass(frozen=True)
class Target:
    """What will be trained.

    Attributes:
        config: settings that fit the model.
        root, facts: the checkpoint.
        experts: its transformers that are trained, one after the other; [None] for a model that is one.
        changes: what was changed in the settings to fit, in words.
    """

    config: FinetuneConfig
    root: Path
    facts: ModelFacts
    experts: tuple[str | None, ...]
    changes: tuple[str, ...]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line of this process and exit; a user's mistake is one line and exit code 2."""
    try:
        set_up_logs(verbose=False)
        given = _parser().parse_intermixed_args(arguments)
        config = load_config(FinetuneConfig, given.config, given.overrides)
        run_finetune(config, options_of(given.resume_from_checkpoint, given))
    except LatentLoomError as mistake:
        print("latentloom: " + " ".join(str(mistake).split()), file=sys.stderr)
        sys.exit(2)


def options_of(resume: str | None, flags: argparse.Namespace) -> Options:
    """The options behind the flags; an empty name resumes the newest run."""
    return Options(
        resume=resume is not None,
        resume_name=resume or None,
        cache_only=flags.cache_only,
        trust_cache=flags.trust_cache,
        regenerate_cache=flags.regenerate_cache,
    )


def run_finetune(config: FinetuneConfig, options: Options) -> list[Path]:
    """Train as the settings say; gives the folders of the runs, one per expert, or none with `cache_only`.

    Raises:
        LatentLoomError: the user's mistakes, of whichever kind.
    """
    target = target_of(config)
    runs: list[Path] = []
    with joined_processes(target.config.pipeline_stages, target.config.device) as place:
        store = _cache(target, place, options)
        notes = [*target.changes, *store.report.lines()]
        if place.is_main:
            print("\n".join(notes), flush=True)
        if options.cache_only:
            return []
        for expert in experts_from(target.experts, options.resume_name):
            after = runs[-1].name if runs else ""
            run, is_stopped = _train_one(target, expert, place, store, options, notes, after)
            runs.append(run)
            if is_stopped:
                break
            options = replace(options, resume_name=None)
    return runs


def target_of(config: FinetuneConfig) -> Target:
    """The checkpoint that settings name, and the settings as they fit it; only headers are read.

    Raises:
        LatentLoomError: no such checkpoint, or settings that it cannot take.
    """
    root = config.model.ckpt_path or micro_wan_weights()
    found, facts = recognise(root), facts_of(root)
    experts = experts_to_train(config, facts)
    num_text_blocks = found.component("text_encoder").derived_config["num_layers"]
    num_blocks = found.component("transformer", experts[0]).derived_config["num_layers"]
    fitted = fit_to_model(config, facts, num_text_blocks, num_blocks)
    return Target(fitted.config, root, facts, tuple(experts), fitted.changes)


def _cache(target: Target, place: Place, options: Options) -> CachedDataset:
    config = target.config
    return cache_dataset(
        config.dataset,
        CacheModels.of(target.root, place.device, DTYPES[config.model.dtype], config.model.text_encoder_path),
        facts=target.facts,
        cache_text=config.model.cache_text_embeddings or config.model.text_anchor_weight > 0,
        trust=options.trust_cache,
        regenerate=options.regenerate_cache,
        batch_size=config.caching_batch_size,
    )


def _train_one(
    target: Target,
    expert: str | None,
    place: Place,
    store: CachedDataset,
    options: Options,
    notes: Sequence[str],
    after: str,
) -> tuple[Path, bool]:
    """Train one transformer; gives its run, and whether a signal asked to stop."""
    session = make_session(target.config, target.root, target.facts, expert, place, store)
    with noticed_signals() as stop:
        resumed = _start_or_resume(session, options, after)
        position = resumed.position if resumed else Position(0, 0)
        if resumed and position.step >= session.num_steps and is_finished(resumed.run):
            if place.is_main:
                print(f"run: {resumed.run} is finished; nothing is left to do", flush=True)
            return resumed.run, False
        run = None
        if place.is_main:
            told = [*_bucket_notes(session), *(resumed.notes if resumed else ())]
            run = _open_run(session, resumed.run if resumed else None)
            where = f", going on after step {position.step}" if resumed else ""
            print("\n".join([*told, f"run: {run.path}{where}"]), flush=True)
            notes = [*notes, *told]
        path = _from_main(run.path if run is not None else None)
        watch = Watch(session, run, position.step, notes) if run is not None else None
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
        factor = session.set_rate(step)
        loss = session.train_step(step)
        if watch is not None:
            watch.step(step, loss, factor)
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


def _start_or_resume(session: Session, options: Options, after: str) -> Resume | None:
    """The run to go on with, loaded; None for a new run."""
    if not options.resume:
        return None
    config, kind = session.config, _run_name(session)
    with Ranks.open() as ranks:  # one process looks, before any writes
        found = ranks.first(lambda: find_resume(config.output_dir, options.resume_name, kind, session.identity, after))
    if found is not None and found.checkpoint is not None:
        load_checkpoint(found.checkpoint, session.stage.trained, session.optimizer)
    return found


def _open_run(session: Session, path: Path | None) -> RunFolder:
    config = session.config
    data = f"{config.dataset}, {len(session.store)} items"
    if path is None:
        return RunFolder.create(config.output_dir, _run_name(session), config, seeds=[config.seed], data=data)
    clear_remains(path)
    return RunFolder.at(path, config, seeds=[config.seed], data=data)


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


def _from_main(path: Path | None) -> Path:
    """The main process's path, in every process."""
    box = [path]
    distributed.broadcast_object_list(box, src=0)
    assert box[0] is not None
    return box[0]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="latentloom.finetune.train", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="The run's TOML file.")
    parser.add_argument(
        "--resume_from_checkpoint",
        nargs="?",
        const="",
        metavar="NAME",
        help="The newest run, or RUN, or RUN/global_stepN.",
    )
    parser.add_argument("--cache_only", action="store_true", help="Make the cache and stop.")
    parser.add_argument(
        "--trust_cache", action="store_true", help="Take the cache as it is, without a look at the media."
    )
    parser.add_argument("--regenerate_cache", action="store_true", help="Make the cache anew.")
    # what DeepSpeed's launcher and the document's command lines add
    parser.add_argument("--deepspeed", action="store_true", help="Accepted; training always runs on DeepSpeed.")
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="Changes to the settings.")
    return parser


if __name__ == "__main__":
    main()
