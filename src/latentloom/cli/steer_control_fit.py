"""`latentloom steer control fit`: pairs of prompts in, control vectors out, and on MicroWan what they do to clips."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from latentloom.cli.model import DeviceOption, DtypeOption, checkpoint_or_default, torch_dtype
from latentloom.cli.options import CkptRootOption, JsonOption, emit_json
from latentloom.cli.steer_control_learn import encode_pairs, learn_vectors
from latentloom.cli.stopwatch import Stopwatch
from latentloom.cli.tables import print_table
from latentloom.errors import ConfigError
from latentloom.storage import require_writable

if TYPE_CHECKING:
    from latentloom.micro.steering_control import AblationScore, ValueScore
    from latentloom.steering.control.fit import FittedControl
    from latentloom.steering.control.vector import ControlVector, Window
    from latentloom.wan.pipeline import WanPipeline

FOLDER = Path("controls")
NUM_PAIRS = 48
NUM_PROMPTS = 24
Method = Literal["mean", "pca_pair", "pca_difference", "learned"]
Place = Literal["context", "hidden_states", "attention_output"]


@dataclass(frozen=True)
class FitSettings:
    """How to fit: the options of these names."""

    site: Place
    method: Method
    windows: "tuple[Window, ...]"
    seed: int


def command(
    attribute: Annotated[
        str, typer.Option("--attribute", help="Of MicroWan's world: one vector per value of it.")
    ] = "colour",
    pairs_file: Annotated[
        Path | None,
        typer.Option("--pairs", metavar="FILE", help='Or JSON lines {"positive": "...", "negative": "..."}.'),
    ] = None,
    site: Annotated[Place, typer.Option("--site", help="Where in a block.")] = "context",
    method: Annotated[
        Method, typer.Option("--method", help="Mean difference, principal component, or learned (context only).")
    ] = "mean",
    windows: Annotated[
        str, typer.Option("--windows", help="Bounds of the windows of the schedule, such as 0,0.5,1.")
    ] = "0,1",
    num_pairs: Annotated[int, typer.Option("--num-pairs", min=1, help="Per value; not with --pairs.")] = NUM_PAIRS,
    num_prompts: Annotated[
        int, typer.Option("--num-prompts", min=0, help="Held-out clips per value that measure the vectors; 0: none.")
    ] = NUM_PROMPTS,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**31 - 1, help="Of pairs, prompts and noise.")] = 0,
    out: Annotated[Path, typer.Option("--out", file_okay=False, help="Folder of the vectors.")] = FOLDER,
    gguf: Annotated[bool, typer.Option("--gguf", help="Write GGUF in repeng's layout beside safetensors.")] = False,
    ckpt_root: CkptRootOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    json_file: JsonOption = None,
) -> None:
    """Fit control vectors on pairs of prompts that differ in one thing.

    On MicroWan, a vector for each value of an attribute, and how well it sets the attribute of held-out clips.
    """
    clock, settings = Stopwatch(), FitSettings(site, method, read_windows(windows), seed)
    if method == "learned" and (site != "context" or len(settings.windows) > 1):
        raise ConfigError(f"--method learned is for the context and the whole schedule, not {site} and {windows}")
    require_writable(out / "report.html")
    root = checkpoint_or_default(ckpt_root)
    with clock.time("load"):
        from latentloom.wan.pipeline import WanPipeline, facts_of

        is_micro = facts_of(root).key == "micro"
        if pairs_file is None and not is_micro:
            raise ConfigError("only MicroWan has attributes to fit; give --pairs FILE with prompts for this model")
        by_name = collect_pairs(pairs_file, attribute, num_pairs, seed)
        pipeline = WanPipeline.load(root, torch_dtype(dtype), device)
    with clock.time("fitting"):
        data = "MicroWan's training split" if pairs_file is None else str(pairs_file)
        if method == "learned":
            fitted = learn_vectors(pipeline, by_name, seed, data, root, out)
        else:
            fitted = {name: fit(pipeline, pairs, settings, data) for name, pairs in by_name.items()}
    files = save(out, attribute if pairs_file is None else None, fitted, gguf)
    print_table(*separation_table(fitted))
    facts: dict[str, Any] = {"ckpt_root": str(root), "files": [str(file) for file in files]}
    if pairs_file is None and num_prompts:
        with clock.time("clips"):
            family = {name: item.control for name, item in fitted.items()}
            facts |= measure(pipeline, attribute, family, num_prompts, seed, out)
    for file in files:
        typer.echo(file)
    emit_json(json_file, {**facts, "separation": separations(fitted), "seconds": clock.seconds})


def read_windows(text: str) -> "tuple[Window, ...]":
    """The windows between the bounds in a text such as `0,0.5,1`.

    Raises:
        ConfigError: fewer than two bounds, or bounds that do not ascend from 0 to 1.
    """
    try:
        bounds = [float(part) for part in text.split(",")]
    except ValueError:
        bounds = []
    pairs = tuple(pairwise(bounds))
    if not pairs or not all(0 <= start < end <= 1 for start, end in pairs):
        raise ConfigError(f"--windows {text} is not understood; give bounds that ascend from 0 to 1, such as 0,0.5,1")
    return pairs


def collect_pairs(file: Path | None, attribute: str, num_pairs: int, seed: int) -> dict[str, list[tuple[str, str]]]:
    """Pairs (positive, negative) by the name of the vector that they are for."""
    if file is not None:
        from latentloom.steering.prompt_pairs import read_prompt_pairs

        return {file.stem: read_prompt_pairs(file, ("positive", "negative"))}
    from latentloom.micro.steering_control import attribute_pairs, values_of

    return {value: attribute_pairs(attribute, value, num_pairs, seed) for value in values_of(attribute)}


def fit(pipeline: "WanPipeline", pairs: list[tuple[str, str]], settings: FitSettings, data: str) -> "FittedControl":
    """Record both sides of the pairs and fit a vector from the negative ones to the positive ones."""
    from latentloom.steering.control.fit import fit_control
    from latentloom.steering.control.record import record_pairs

    positive, negative, seeds, about = encode_pairs(pipeline, pairs, settings.seed, data)
    how = {"site": settings.site, "model": pipeline.facts.key, "windows": settings.windows, "provenance": about}
    recorded = record_pairs(pipeline, positive, negative, seeds, settings.site, settings.windows)
    return fit_control(*recorded, method=settings.method, **how)


def save(out: Path, attribute: str | None, fitted: "dict[str, FittedControl]", gguf: bool) -> list[Path]:
    """Write the vectors; a name is the attribute's and the value's, or that of the file of pairs."""
    from latentloom.steering.control.files import save_control

    files = []
    for name, item in fitted.items():
        stem = name if attribute is None else f"{attribute}_{name}"
        for suffix in (".safetensors", ".gguf") if gguf else (".safetensors",):
            files.append(out / f"{stem}{suffix}")
            save_control(files[-1], item.control)
    return files


def separations(fitted: "dict[str, FittedControl]") -> dict[str, list[list[float]]]:
    """Per vector, the share of its pairs that it tells apart, by window and block."""
    return {name: item.separation.pairs.tolist() for name, item in fitted.items()}


def separation_table(fitted: "dict[str, FittedControl]") -> tuple[list[str], list[list[Any]]]:
    """Columns and rows: how well each vector tells its own pairs apart, and how long it is."""
    rows = []
    for name, item in fitted.items():
        shares, length = 100 * item.separation.pairs, float(item.control.directions.norm(dim=-1).mean())
        rows.append([name, f"{float(shares.min()):.0f} to {float(shares.max()):.0f}", f"{length:.3g}"])
    return ["vector", "own pairs told apart, % by block", "mean length"], rows


def measure(
    pipeline: "WanPipeline",
    attribute: str,
    family: "dict[str, ControlVector]",
    num_prompts: int,
    seed: int,
    out: Path,
) -> dict[str, Any]:
    """Choose strengths on training prompts, measure on held-out ones, write the page; returns JSON values."""
    from latentloom.micro import steering_control as scoring
    from latentloom.micro.steering_control_report import ablation_table, moved_table, verdict, write_control_report

    scores: list[ValueScore] = []
    for value in family:
        strength = scoring.choose_strength(pipeline, attribute, family, value, seed=seed)
        scores.append(scoring.score_value(pipeline, attribute, family, value, strength, num_prompts, seed))
    ablation: AblationScore = scoring.score_ablation(pipeline, attribute, family, len(family) * num_prompts, seed)
    gallery = scoring.gallery(pipeline, family, {score.value: score.strength for score in scores}, seed)
    write_control_report(out / "report.html", family, scores, ablation, gallery)
    print_table(*moved_table(scores))
    print_table(*ablation_table(ablation))
    typer.echo(verdict(scores, ablation))
    typer.echo(f"report: {out / 'report.html'}")
    return {"set": [score.to_json() for score in scores], "ablation": ablation.to_json()}
