"""`latentloom embed amplify`: two files of embeddings made more different."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from latentloom.cli.embed_operands import MixedOption, Operation, differences, load_operands, save_result, span
from latentloom.cli.options import JsonOption, emit_json
from latentloom.errors import ConfigError
from latentloom.storage import require_writable

Method = Literal["push_apart", "maximize_diff", "orthogonalize"]


def command(
    first: Annotated[Path, typer.Argument(metavar="A", help="Embeddings to move away from B.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="What to move away from; push_apart moves it too.")],
    method: Annotated[
        Method,
        typer.Option(
            "--method", help="Both apart; A alone along the difference; A alone by what it shares with B, per token."
        ),
    ] = "push_apart",
    target: Annotated[
        float, typer.Option("--target", help="Relative difference to reach; pairs beyond it stay as they are.")
    ] = 0.6,
    out: Annotated[Path, typer.Option("--out", help="The safetensors file of the moved A.")] = Path(
        "amplified.safetensors"
    ),
    out_second: Annotated[
        Path | None,
        typer.Option("--out-second", help="That of the moved B under push_apart; by default A's with -second."),
    ] = None,
    allow_mixed: MixedOption = False,
    json_file: JsonOption = None,
) -> None:
    """Move embeddings apart until they differ by the target; every token keeps its norm."""
    moves_both = method == "push_apart"
    if out_second is not None and not moves_both:
        raise ConfigError(f"--out-second has no effect with --method {method}, which moves A alone; drop it")
    if out_second == out:
        raise ConfigError(f"--out and --out-second are both {out}; give two files")
    beside = out_second or out.with_name(f"{out.stem}-second{out.suffix}")
    for file in [out, beside][: 1 + moves_both]:
        require_writable(file)
    operands = load_operands([first, second], allow_mixed)
    from latentloom.steering.embeddings.amplify import amplify

    a, b = (operand.embeddings for operand in operands)
    done = amplify(a, b, method, target)

    def operation(side: str) -> Operation:
        return Operation("amplify", {"method": method, "target": target, "side": side})

    report = save_result(out, done.first, operation("first"), operands, done.alignment)
    if moves_both:
        report["second"] = save_result(beside, done.second, operation("second"), operands, done.alignment)
    before, reached = done.before.tolist(), done.reached.tolist()
    num_moved = int((done.strength > 0).sum())
    typer.echo(f"{num_moved} of {len(before)} moved; A and B differ by {span(reached)}, before by {span(before)}")
    measured = {"before": before, "reached": reached, "moved": differences(a, done.first)}
    emit_json(json_file, {**report, "strength": done.strength.tolist(), "relative_differences": measured})
