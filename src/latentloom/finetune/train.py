"""The training command: caches, trains, watches, saves, goes on after an interruption.

`deepspeed --num_gpus=N --module latentloom.finetune.train --deepspeed --config recipes/….toml` starts it in several
processes; `latentloom finetune --config …` in one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from latentloom.errors import LatentLoomError
from latentloom.finetune.cache import CachedDataset, CacheModels, cache_dataset
from latentloom.finetune.config import FinetuneConfig
from latentloom.finetune.lora import lora_targets
from latentloom.finetune.settings import experts_from, experts_to_train, fit_to_model, idle_settings
from latentloom.finetune.stages.processes import Place, joined_processes
from latentloom.finetune.stages.row import DTYPES
from latentloom.runs import load_config
from latentloom.runs.logs import set_up_logs
from latentloom.storage import require_writable
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
        changes: what was changed in the settings to fit, and which do nothing, in words.
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
        resume, overrides = given.resume_from_checkpoint, list(given.overrides)
        if resume and "=" in resume:  # a setting that stands where a run's name may
            resume, overrides = "", [resume, *overrides]
        config = load_config(FinetuneConfig, given.config, overrides)
        run_finetune(config, options_of(resume, given))
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
    if not options.cache_only:
        require_writable(target.config.output_dir / "run")  # before hours of caching
    runs: list[Path] = []
    with joined_processes(target.config.pipeline_stages, target.config.device) as place:
        store = _cache(target, place, options)
        notes = [*target.changes, *store.report.lines()]
        if place.is_main:
            print("\n".join(notes), flush=True)
        if options.cache_only:
            return []
        # DeepSpeed takes its device when it is imported, and joining the processes has named it
        from latentloom.finetune.loop import Start, train_session
        from latentloom.finetune.session import make_session

        name = options.resume_name
        for expert in experts_from(target.experts, name):
            session = make_session(target.config, target.root, target.facts, expert, place, store)
            start = Start(options.resume, name, runs[-1].name if runs else "", tuple(notes))
            run, is_stopped = train_session(session, start)
            runs.append(run)
            if is_stopped:
                break
            name = None
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
    adapter = fitted.config.adapter
    if adapter is not None:  # refused before hours of caching
        lora_targets(num_blocks, adapter.train_blocks_range, adapter.targets, adapter.allow_self_attn)
    changes = (*fitted.changes, *idle_settings(fitted.config, facts))
    return Target(fitted.config, root, facts, tuple(experts), changes)


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
