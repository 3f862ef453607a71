"""`latentloom bridge encode`: texts to sentence vectors, by a trained bridge."""

from pathlib import Path
from typing import Annotated

import typer

from latentloom.bridge.offline import offline_environment
from latentloom.cli.bridge_use import BackboneDtypeOption, BridgeOption, LocalDirOption
from latentloom.cli.model import DeviceOption
from latentloom.cli.options import JsonOption, emit_json
from latentloom.cli.prompts import collect_prompts
from latentloom.cli.stopwatch import Stopwatch
from latentloom.errors import PromptError
from latentloom.storage import require_writable


def command(
    bridge: BridgeOption,
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[TEXT]...", help="Texts, each in quotes.", show_default=False)
    ] = None,
    texts: Annotated[
        Path | None, typer.Option("--texts", metavar="FILE", help="A text file with one text per line.")
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", help="A .safetensors with the texts, a .npy [N, D], or a .jsonl of pairs.")
    ] = Path("vectors.safetensors"),
    local_dir: LocalDirOption = None,
    device: DeviceOption = None,
    dtype: BackboneDtypeOption = "bf16",
    json_file: JsonOption = None,
) -> None:
    """Predict the sentence vectors of texts.

    `latentloom bridge decode` says such vectors again.
    """
    offline_environment()
    if not arguments and texts is None:
        raise PromptError("no text was given; give some, each in quotes, or a file of them as --texts FILE")
    found = collect_prompts(arguments, texts)
    require_writable(out)
    clock = Stopwatch()
    with clock.time("load"):
        from latentloom.bridge.checkpoint import load_bridge
        from latentloom.bridge.vector_files import require_vector_name, write_vectors

        require_vector_name(out)
        model = load_bridge(bridge, device=device, dtype=dtype, local_dir=local_dir)
    with clock.time("encode"):
        vectors = model.encode(found).to("cpu")
    backbone = {"name": model.backbone.name, "fingerprint": model.backbone.fingerprint}
    write_vectors(out, vectors, found, {"bridge": str(bridge), "backbone": backbone})
    typer.echo(f"{out}: {len(vectors)} vectors of {vectors.dim} channels")
    about = {"file": str(out), "bridge": str(bridge), "backbone": backbone, "dim": vectors.dim}
    emit_json(json_file, {**about, "texts": found, "seconds": clock.seconds})
