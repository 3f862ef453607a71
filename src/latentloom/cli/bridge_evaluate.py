"""`latentloom bridge evaluate`: a bridge on held-out pairs, both ways, beside what it has to beat."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from latentloom.bridge.offline import offline_environment
from latentloom.cli.bridge_use import LocalDirOption
from latentloom.cli.model import DeviceOption
from latentloom.cli.options import JsonOption, emit_json
from latentloom.cli.stopwatch import Stopwatch
from latentloom.cli.tables import print_table
from latentloom.errors import ConfigError

if TYPE_CHECKING:
    from latentloom.bridge.evaluation import BridgeScores

_NOTHING = "\u2013"


def command(
    bridge: Annotated[
        Path, typer.Option("--bridge", help="Folder of a run, whose newest export is taken, or an export.")
    ],
    data: Annotated[
        str | None,
        typer.Option("--data", help="Pairs to score on, as in data.train_json; the run's held-out ones by default."),
    ] = None,
    texts: Annotated[
        Path | None, typer.Option("--texts", help="Texts to score on, one a line or JSONL; the encoder makes vectors.")
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            "--encoder",
            help="That made the data's vectors: minilm, or the folder of a sentence-transformers model; the run's own "
            "by default.",
        ),
    ] = None,
    num_pairs: Annotated[
        int | None, typer.Option("--num-pairs", min=1, help="Pairs to score at most, drawn by the seed.")
    ] = None,
    best_of: Annotated[
        int | None, typer.Option("--best-of", min=1, help="Texts drawn per vector, to keep the best; 1 draws none.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="Of the draws and intervals.")] = 0,
    device: DeviceOption = None,
    local_dir: LocalDirOption = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", file_okay=False, help="Folder of metrics.json and report.html (RUN/evaluation)."),
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Score a bridge on held-out pairs, beside its baselines.

    Every figure has a 95 % interval over the texts.
    """
    offline_environment()
    if data is not None and texts is not None:
        raise ConfigError("--data and --texts are both given; give the pairs or the texts")
    clock = Stopwatch()
    with clock.time("evaluate"):
        from latentloom.bridge.evaluate_saved import EvaluationRequest, evaluate_saved

        found = evaluate_saved(
            EvaluationRequest(bridge, data, texts, encoder, num_pairs, best_of, seed, device, out, local_dir)
        )
    print_scores(found.scores)
    typer.echo(f"report: {found.folder / 'report.html'}")
    facts = {**found.facts, "out_dir": str(found.folder), "seconds": clock.seconds}
    emit_json(json_file, {**found.scores.to_json(), **facts})


def print_scores(scores: "BridgeScores") -> None:
    """The tables on the terminal, what they say in sentences, and what is missing."""
    from latentloom.bridge.score_tables import score_tables, verdict

    for table in score_tables(scores):
        typer.echo(f"{table.heading}, {scores.num_texts} held-out texts")
        print_table(table.columns, [[_NOTHING if cell is None else cell for cell in row] for row in table.rows])
    for line in (*verdict(scores), *scores.notes):
        typer.echo(line)
