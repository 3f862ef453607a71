"""`latentloom steer control list`: the control vectors of a folder and where each came from."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latentloom.cli.options import JsonOption, emit_json
from latentloom.cli.steer_control_fit import FOLDER
from latentloom.cli.tables import print_table
from latentloom.errors import FileError

if TYPE_CHECKING:
    from latentloom.steering.control.vector import ControlVector


def command(
    folder: Annotated[Path, typer.Argument(help="Where the files are.")] = FOLDER, json_file: JsonOption = None
) -> None:
    """List the control vectors of a folder: what each is for, how it was fitted, how long it is."""
    from latentloom.steering.control.files import load_control

    if not folder.is_dir():
        raise FileError(f"{folder} is not a folder; give the folder that holds control vectors")
    found: list[dict[str, Any]] = []
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.gguf")]):
        try:
            found.append({"file": str(path), **about(load_control(path))})
        except FileError as problem:
            typer.echo(f"left out: {problem}", err=True)
    columns = ["file", "site", "model", "blocks", "windows", "method", "pairs", "length"]
    if found:
        print_table(columns, [[Path(item["file"]).name, *(item[name] for name in columns[1:])] for item in found])
    else:
        typer.echo(f"no control vectors in {folder}")
    emit_json(json_file, {"controls": found})


def about(control: "ControlVector") -> dict[str, Any]:
    """Facts of one vector as JSON values; length is the mean over blocks and windows."""
    provenance = control.provenance
    return {
        "site": control.site,
        "model": control.model,
        "blocks": control.num_blocks,
        "windows": len(control.windows),
        "method": provenance.get("method") or provenance.get("operation"),
        "pairs": provenance.get("num_pairs"),
        "length": round(float(control.directions.norm(dim=-1).mean()), 4),
    }
