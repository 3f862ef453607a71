"""`latentloom embed`: prompts to text embeddings."""

from pathlib import Path
from typing import Annotated

import typer

from latentloom.cli.model import DeviceOption, DtypeOption, checkpoint_or_default, load_text_encoder
from latentloom.cli.options import CkptRootOption, JsonOption, emit_json
from latentloom.cli.prompts import PromptsArgument, PromptsFileOption, collect_prompts
from latentloom.cli.stopwatch import Stopwatch


def command(
    prompts: PromptsArgument = None,
    prompts_file: PromptsFileOption = None,
    ckpt_root: CkptRootOption = None,
    out: Annotated[Path, typer.Option("--out", help="The safetensors file to write.")] = Path("embeddings.safetensors"),
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    json_file: JsonOption = None,
) -> None:
    """Encode prompts into text embeddings, which `latentloom generate --embeddings` takes in place of prompts."""
    texts = collect_prompts(prompts, prompts_file)
    root = checkpoint_or_default(ckpt_root)
    clock = Stopwatch()
    with clock.time("load"):
        from latentloom.storage import save_object

        encoder = load_text_encoder(root, device, dtype)
    with clock.time("encoding"):
        embeddings = encoder.encode(texts).to("cpu")

    record = {
        "prompts": texts,
        "encoder": encoder.fingerprint(),
        "dtype": str(encoder.model.dtype).removeprefix("torch."),
    }
    save_object(out, embeddings, record)
    typer.echo(f"{out}: {len(embeddings)} prompts, {len(embeddings.tokens)} tokens of {embeddings.dim} channels")
    measured = {"file": str(out), "lengths": embeddings.lengths.tolist(), "dim": embeddings.dim}
    emit_json(json_file, {**record, **measured, "ckpt_root": str(root), "seconds": clock.seconds})
