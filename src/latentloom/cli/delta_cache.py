"""`latentloom delta cache`: prompts and rewrites, encoded once for training."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from latentloom.cli.delta_pairs import PAIRS_FILE, left_out, left_out_lines
from latentloom.cli.model import DeviceOption, checkpoint_or_default, load_text_encoder, torch_dtype
from latentloom.cli.options import CkptRootOption, JsonOption, emit_json
from latentloom.cli.stopwatch import Stopwatch
from latentloom.errors import ConfigError, FileError
from latentloom.storage import require_writable

if TYPE_CHECKING:
    from latentloom.delta.minilm import MiniLM
    from latentloom.wan.text_encoder import WanTextEncoder

CACHE_FILE = Path("reports/embdelta_v2/cache/pairs.npz")
StoredPrecision = Literal["bfloat16", "float32"]


def command(
    jsonl: Annotated[
        Path, typer.Option("--jsonl", help='The pairs: {"base": ..., "rewritten": ...} on each line.')
    ] = PAIRS_FILE,
    ckpt_root: CkptRootOption = None,
    out: Annotated[Path, typer.Option("--out", help="The .npz or .safetensors file to write.")] = CACHE_FILE,
    encoder: Annotated[
        Literal["wan", "minilm"], typer.Option("--encoder", help="The checkpoint's UMT5, or the small MiniLM.")
    ] = "wan",
    dtype: Annotated[
        StoredPrecision | None,
        typer.Option("--dtype", help="Of the stored embeddings; what the encoder computes in when not given."),
    ] = None,
    device: DeviceOption = None,
    shard_size: Annotated[
        int, typer.Option("--shard-size", min=1, help="Pairs saved at a time; an interrupted run continues there.")
    ] = 64,
    json_file: JsonOption = None,
) -> None:
    """Encode pairs of prompts and rewrites into the file that training reads."""
    if encoder == "minilm" and ckpt_root is not None:
        raise ConfigError("--ckpt-root was given with --encoder minilm, which brings its own weights; drop one of them")
    if not jsonl.exists():
        raise FileError(f"{jsonl} does not exist; write it with `latentloom delta pairs`, or give --jsonl FILE")
    require_writable(out)
    clock = Stopwatch()
    with clock.time("load"):
        from latentloom.delta.cache import build_cache, cache_suffix
        from latentloom.delta.pairs import read_pairs

        cache_suffix(out)
        found = read_pairs(jsonl)
        reader = load_encoder(encoder, ckpt_root, dtype, device)
        stored_as = reader.model.dtype if dtype is None else torch_dtype(dtype)
    with clock.time("encoding"):
        fingerprint = reader.fingerprint()
        cache = build_cache(found.pairs, reader.encode, fingerprint, out, dtype=stored_as, shard_size=shard_size)

    sides = {"base": cache.base, "rewritten": cache.rewritten}
    lengths = {name: side.lengths.float().mean().item() for name, side in sides.items()}
    precision = str(cache.base.dtype).removeprefix("torch.")
    typer.echo(
        f"{out}: {len(cache)} pairs of {lengths['base']:.1f} and {lengths['rewritten']:.1f} tokens on average, "
        f"{cache.dim} channels in {precision}, {out.stat().st_size / 1e6:.1f} MB{left_out(found)}"
    )
    measured = {"file": str(out), "num_pairs": len(cache), **left_out_lines(found), "mean_lengths": lengths}
    stored = {"dim": cache.dim, "dtype": precision, "bytes": out.stat().st_size, "encoder": fingerprint}
    emit_json(json_file, {**measured, **stored, "jsonl": str(jsonl), "seconds": clock.seconds})


def load_encoder(
    name: Literal["wan", "minilm"], ckpt_root: Path | None, dtype: StoredPrecision | None, device: str | None
) -> "WanTextEncoder | MiniLM":
    """The encoder asked for; it computes in float32 where that is to be stored, else in what suits the device."""
    if name == "minilm":
        from latentloom.delta.minilm import MiniLM

        return MiniLM.load(device)
    return load_text_encoder(checkpoint_or_default(ckpt_root), device, "float32" if dtype == "float32" else None)
