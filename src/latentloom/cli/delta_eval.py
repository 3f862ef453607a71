"""`latentloom delta eval`: an adapter on held-out pairs beside its baselines, and on clips where a model is at hand."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latentloom.cli.delta_cache import CACHE_FILE
from latentloom.cli.delta_train import RUN_FOLDER
from latentloom.cli.model import checkpoint_or_default
from latentloom.cli.options import CkptRootOption, JsonOption, emit_json
from latentloom.cli.stopwatch import Stopwatch
from latentloom.errors import ConfigError

if TYPE_CHECKING:
    from latentloom.delta.held_out import HeldOut
    from latentloom.micro.evaluate import Evaluation
    from latentloom.micro.recovery import Recovery
    from latentloom.runs import Report
    from latentloom.wan.pipeline import WanPipeline

NUM_PROMPTS = 24
_PROMPTS_THROUGH_DIT = 8


def command(
    cache: Annotated[Path, typer.Option("--cache", help="From `latentloom delta cache`.")] = CACHE_FILE,
    adapter: Annotated[Path, typer.Option("--adapter", help="From `latentloom delta train`, either format.")] = (
        RUN_FOLDER / "embdelta_adapter.safetensors"
    ),
    out_dir: Annotated[Path, typer.Option("--out-dir", file_okay=False, help="Folder of the report.")] = (
        RUN_FOLDER / "eval"
    ),
    ckpt_root: CkptRootOption = None,
    num_prompts: Annotated[
        int, typer.Option("--num-prompts", min=0, help="Of each set, for attribute accuracy on MicroWan; 0 for none.")
    ] = NUM_PROMPTS,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="Of bootstrap, prompts and noise.")] = 0,
    json_file: JsonOption = None,
) -> None:
    """Measure an adapter on pairs that its training did not see.

    Where the cache was encoded by the checkpoint's text encoder (MicroWan's without --ckpt-root), the report also
    tells how far the DiT's output moves, and on MicroWan how many attributes its clips get right.
    """
    clock = Stopwatch()
    with clock.time("pairs"):
        from latentloom.delta.cache import read_cache
        from latentloom.delta.held_out import evaluate_held_out
        from latentloom.delta.report import verdict, write_evaluation

        pairs = read_cache(cache)
        held_out = evaluate_held_out(pairs, adapter, seed)
    facts: dict[str, Any] = {"cache": str(cache), "adapter": str(adapter), "test": held_out.about}
    sections, recovered = [], {}
    with clock.time("clips"):
        pipeline = matching_pipeline(pairs.encoder, pairs.dim, ckpt_root)
        if pipeline is not None:
            facts["output_change"] = measure_output(pipeline, held_out)
            sections.append(lambda report: add_output_change(report, facts["output_change"]))
        if pipeline is not None and num_prompts and pipeline.facts.key == "micro":
            results = measure_accuracy(pipeline, held_out, num_prompts, seed)
            recovered = recoveries(results)
            facts["accuracy"] = {
                "sets": {
                    label: {name: item.to_json() for name, item in sets.items()} for label, sets in results.items()
                },
                "recovered": {
                    name: {label: share.to_json() for label, share in shares.items()}
                    for name, shares in recovered.items()
                },
            }
            sections.append(lambda report: add_accuracy(report, results, recovered))

    def add_sections(report: "Report") -> None:
        for section in sections:
            section(report)

    page = write_evaluation(
        held_out.evaluation,
        out_dir,
        introduction=f"Tested on {held_out.about}. {held_out.record.get('decision', '')}",
        facts=facts,
        more=add_sections,
    )

    typer.echo(verdict(held_out.evaluation, "adapter"))
    for name, share in facts.get("accuracy", {}).get("recovered", {}).items():
        low, high = share["adapter"]["interval"]
        typer.echo(
            f"{name}: recovers {100 * share['adapter']['share']:.0f} % ({100 * low:.0f} to {100 * high:.0f}) of the gap"
        )
    typer.echo(f"report: {page}")
    emit_json(json_file, {**facts, **held_out.evaluation.to_json(), "seconds": clock.seconds})


def matching_pipeline(encoder: str | None, dim: int, ckpt_root: Path | None) -> "WanPipeline | None":
    """The model whose text encoder made the cache: the checkpoint asked for, or MicroWan if it did; None if not.

    Raises:
        ConfigError: the checkpoint asked for has another text encoder.
    """
    from latentloom.wan.checkpoints import recognise
    from latentloom.wan.pipeline import WanPipeline

    root = checkpoint_or_default(ckpt_root)
    width = recognise(root).component("text_encoder").derived_config["d_model"]
    pipeline = WanPipeline.load(root) if width == dim else None
    if pipeline is not None and pipeline.text_encoder is not None and pipeline.text_encoder.fingerprint() == encoder:
        return pipeline
    if ckpt_root is not None:
        raise ConfigError(f"{ckpt_root} did not encode this cache; give the checkpoint that did, or drop --ckpt-root")
    return None


def measure_output(pipeline: "WanPipeline", held_out: "HeldOut") -> dict[str, dict[str, float]]:
    """Mean relative change of the DiT's velocity by each adapter, on a few base prompts and on their rewrites."""
    from latentloom.delta.output_change import output_change

    few = held_out.test[slice(0, _PROMPTS_THROUGH_DIT)]
    sides = {"base": few.base, "rewritten": few.rewritten}
    return {
        name: {side: output_change(pipeline, text, adapter(text)).mean().item() for side, text in sides.items()}
        for name, adapter in held_out.adapters.items()
    }


def measure_accuracy(
    pipeline: "WanPipeline", held_out: "HeldOut", num_prompts: int, seed: int
) -> "dict[str, dict[str, Evaluation]]":
    """Attribute accuracy on MicroWan's held-out prompts, by adapter and set."""
    from latentloom.micro.recovery import evaluate_adjusted

    return evaluate_adjusted(pipeline, held_out.adapters, num_prompts, seed)


def recoveries(results: "dict[str, dict[str, Evaluation]]") -> "dict[str, dict[str, Recovery]]":
    """The share of the gap to verbose prompts that each adapter recovers, by set of foreign prompts."""
    from latentloom.micro.recovery import FOREIGN, KNOWN, recovery

    plain, *others = results
    known = results[plain][KNOWN]
    return {
        name: {label: recovery(known, results[plain][name], results[label][name]) for label in others}
        for name in FOREIGN
    }


def add_output_change(report: "Report", changes: dict[str, dict[str, float]]) -> None:
    """The DiT's section of the page."""
    report.heading("What the DiT answers")
    report.paragraph("Mean change of the predicted velocity, relative to its length; noise and timesteps are the same.")
    rows = [
        [name, f"{100 * sides['base']:.1f} %", f"{100 * sides['rewritten']:.2f} %"] for name, sides in changes.items()
    ]
    report.table(["adjustment", "base prompts", "rewrites"], rows)


def add_accuracy(
    report: "Report", results: "dict[str, dict[str, Evaluation]]", recovered: "dict[str, dict[str, Recovery]]"
) -> None:
    """MicroWan's section of the page: what its clips show of held-out prompts."""
    from latentloom.micro.report import format_accuracy

    report.heading("What the clips show")
    report.paragraph(
        "MicroWan's held-out prompts, attributes read from the clips, percent right with 95 % intervals. No pair that "
        "was trained on asks for any of these combinations of attributes."
    )
    first = next(iter(next(iter(results.values())).values()))
    rows = [
        [name, label, len(item.questions), *(format_accuracy(accuracy) for accuracy in item.accuracy.values())]
        for label, sets in results.items()
        for name, item in sets.items()
    ]
    report.table(["prompts", "adjustment", "n", *first.accuracy], sorted(rows, key=lambda row: str(row[0])))
    report.paragraph("Share of the gap to verbose prompts that is recovered, in clips right in everything asked for:")
    shares = [[name, label, str(share)] for name, labels in recovered.items() for label, share in labels.items()]
    report.table(["prompts", "adjustment", "recovered"], shares)
