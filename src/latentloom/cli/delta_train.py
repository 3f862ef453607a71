"""`latentloom delta train`: an adapter from cached pairs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from latentloom.cli.delta_cache import CACHE_FILE
from latentloom.cli.options import JsonOption, emit_json
from latentloom.cli.stopwatch import Stopwatch
from latentloom.errors import ConfigError

if TYPE_CHECKING:
    from latentloom.delta.train import Training

RUN_FOLDER = Path("reports/embdelta_v2/run1")


def command(
    cache: Annotated[Path, typer.Option("--cache", help="From `latentloom delta cache`.")] = CACHE_FILE,
    out_dir: Annotated[
        Path, typer.Option("--out-dir", file_okay=False, help="Folder of the run; an interrupted one continues.")
    ] = RUN_FOLDER,
    rank: Annotated[int, typer.Option("--rank", min=1, help="Of the correction.")] = 64,
    cap: Annotated[
        str, typer.Option("--cap", help="Longest correction of a token; auto tries several and validation chooses.")
    ] = "auto",
    cap_mode: Annotated[
        Literal["relative", "absolute"],
        typer.Option("--cap-mode", help="Whether the cap counts in lengths of the token or in embedding units."),
    ] = "relative",
    no_orth: Annotated[
        bool, typer.Option("--no-orth", help="Let a correction have a component along its own token.")
    ] = False,
    init: Annotated[
        Literal["auto", "zero", "ridge", "mean", "align"],
        typer.Option("--init", help="What SGD starts from; auto tries zero, ridge and align."),
    ] = "auto",
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="At most; validation decides.")] = 6000,
    lr: Annotated[float, typer.Option("--lr", help="Rate of Adam.")] = 3e-4,
    gate_lr_mult: Annotated[float, typer.Option("--gate-lr-mult", help="How much faster the gate learns.")] = 10.0,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Pairs per step.")] = 64,
    w_nce: Annotated[float, typer.Option("--w-nce", help="Weight of the contrast with other rewrites.")] = 0.1,
    tau: Annotated[float, typer.Option("--tau", help="Temperature of that contrast.")] = 0.05,
    w_anchor: Annotated[float, typer.Option("--w-anchor", help="Weight of keeping the prompt's direction.")] = 0.02,
    w_l2: Annotated[float, typer.Option("--w-l2", help="Weight of the corrections' squared length.")] = 0.001,
    w_gate: Annotated[float, typer.Option("--w-gate", help="Weight of telling base prompts from rewrites.")] = 0.1,
    ema_decay: Annotated[float, typer.Option("--ema-decay", help="Of the weights' mean that is kept.")] = 0.98,
    patience: Annotated[int, typer.Option("--patience", min=1, help="Epochs without gain before an end.")] = 30,
    val_frac: Annotated[float, typer.Option("--val-frac", help="Share of base prompts that choose.")] = 0.1,
    test_frac: Annotated[float, typer.Option("--test-frac", help="Share of base prompts kept for delta eval.")] = 0.1,
    seed: Annotated[int, typer.Option("--seed", help="Of split, initial weights and order.")] = 0,
    save_every: Annotated[int, typer.Option("--save-every", min=1, help="Epochs between checkpoints.")] = 50,
    method: Annotated[
        Literal["fused", "packed", "padded"],
        typer.Option("--method", help="How corrections are pooled; all give the same numbers, fused is fastest."),
    ] = "fused",
    json_file: JsonOption = None,
) -> None:
    """Learn an adapter, beside the baselines that it has to beat; validation chooses among all."""
    clock = Stopwatch()
    with clock.time("load"):
        from latentloom.delta.cache import read_cache
        from latentloom.delta.config import TrainConfig
        from latentloom.delta.training_run import cache_digest, run_training, training_record
        from latentloom.runs import load_config

        settings: dict[str, object] = {
            **{"rank": rank, "cap": read_cap(cap), "cap_mode": cap_mode, "orth": not no_orth, "init": init},
            **{"epochs": epochs, "lr": lr, "gate_lr_mult": gate_lr_mult, "batch_size": batch_size, "w_nce": w_nce},
            **{"tau": tau, "w_anchor": w_anchor, "w_l2": w_l2, "w_gate": w_gate, "ema_decay": ema_decay},
            **{"patience": patience, "val_frac": val_frac, "test_frac": test_frac, "seed": seed},
            **{"save_every": save_every, "method": method},
        }
        config = load_config(TrainConfig, None, [f"{name}={str(value).lower()}" for name, value in settings.items()])
        pairs = read_cache(cache)
    with clock.time("training"):
        training = run_training(pairs, config, out_dir, str(cache))
    print_candidates(training)
    record = training_record(training, config, pairs, cache_digest(pairs))
    typer.echo(f"{record['decision']}\nadapter: {out_dir / 'embdelta_adapter.safetensors'} (and .pt)")
    typer.echo(f"{clock.seconds['training']:.1f} s; report: {out_dir / 'report.html'}")
    emit_json(json_file, {**record, "out_dir": str(out_dir), "seconds": clock.seconds})


def read_cap(text: str) -> float | str:
    """The cap, or `auto`.

    Raises:
        ConfigError: neither a number nor `auto`.
    """
    if text == "auto":
        return text
    try:
        return float(text)
    except ValueError as error:
        raise ConfigError(f"--cap {text} is not understood; give a number above 0 such as 0.22, or auto") from error


def print_candidates(training: "Training") -> None:
    """A table of what was tried, in the order it was tried."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None)
    for column in ("candidate", "cosine", "R@1", "drift", "best epoch", ""):
        table.add_column(column, justify="left" if column in ("candidate", "") else "right")
    for item in training.candidates:
        epoch = "" if item.history is None else str(item.history.best + 1)
        mark = "chosen" if item is training.chosen else "" if item.score.keeps(training.before) else "out"
        score = item.score
        table.add_row(item.name, f"{score.cosine:.4f}", f"{score.recall_at_1:.3f}", f"{score.drift:.1e}", epoch, mark)
    Console().print(table)
