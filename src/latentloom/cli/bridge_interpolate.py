"""`latentloom bridge interpolate`: what the vectors between two sentences say."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from latentloom.bridge.offline import offline_environment
from latentloom.cli.bridge_use import (
    BackboneDtypeOption,
    BridgeOption,
    EncoderOption,
    LocalDirOption,
    NewTokensOption,
    SeedOption,
    TemperatureOption,
    TopPOption,
    embed_texts,
    load_vector_encoder,
    print_texts,
    require_width,
)
from latentloom.cli.model import DeviceOption
from latentloom.cli.options import JsonOption, emit_json
from latentloom.cli.stopwatch import Stopwatch
from latentloom.errors import ConfigError, FileError

if TYPE_CHECKING:
    from latentloom.bridge.model import LatentBridge
    from latentloom.tensors import SentenceVector


def command(
    bridge: BridgeOption,
    from_text: Annotated[
        str | None, typer.Option("--from-text", help="Where to begin; its vector is made by --encoder.")
    ] = None,
    to_text: Annotated[str | None, typer.Option("--to-text", help="Where to end.")] = None,
    vectors: Annotated[
        Path | None, typer.Option("--vectors", metavar="FILE", help="In place of texts: a file of exactly two vectors.")
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=2, help="Texts, both ends included.")] = 7,
    method: Annotated[
        Literal["spherical", "linear"],
        typer.Option("--method", help="Turn the direction evenly, at a length between the two; or a straight line."),
    ] = "spherical",
    encoder: EncoderOption = None,
    mode: Annotated[
        Literal["greedy", "sample"], typer.Option("--mode", help="The likeliest tokens, or drawn ones.")
    ] = "greedy",
    temperature: TemperatureOption = None,
    top_p: TopPOption = None,
    seed: SeedOption = None,
    max_new_tokens: NewTokensOption = 40,
    local_dir: LocalDirOption = None,
    device: DeviceOption = None,
    dtype: BackboneDtypeOption = "bf16",
    json_file: JsonOption = None,
) -> None:
    """Decode the vectors in even steps between two sentences."""
    offline_environment()
    texts = _two_texts(from_text, to_text, vectors, encoder)
    drawn = {"--temperature": temperature, "--top-p": top_p, "--seed": seed}
    if mode == "greedy" and (given := [name for name, value in drawn.items() if value is not None]):
        raise ConfigError(f"{given[0]} has no effect with --mode greedy, which draws nothing; give --mode sample")
    clock = Stopwatch()
    with clock.time("load"):
        import torch

        from latentloom.bridge.checkpoint import load_bridge
        from latentloom.bridge.decoding import DecodingConfig
        from latentloom.bridge.interpolate import interpolate_texts

        model = load_bridge(bridge, device=device, dtype=dtype, local_dir=local_dir)
        model.require_direction("l2t")
        ends = _ends(model, texts, vectors, encoder, device)
    settings = {"mode": mode, "max_new_tokens": max_new_tokens}
    settings |= {name: value for name, value in (("temperature", temperature), ("top_p", top_p)) if value is not None}
    with clock.time("decode"):
        generator = torch.Generator().manual_seed(seed or 0)
        config = DecodingConfig.model_validate(settings)
        found = interpolate_texts(model, ends[0:1], ends[1:2], steps, method, config, generator)
    rows = [
        {"share": share, "text": text, "norm": norm}
        for share, text, norm in zip(
            found.shares.tolist(), found.texts, found.vectors.values.norm(dim=1).tolist(), strict=True
        )
    ]
    print_texts(["share", "text"], [[f"{row['share']:.2f}", row["text"]] for row in rows])
    about = {"bridge": str(bridge), "from": texts and texts[0], "to": texts and texts[1], "method": method, **settings}
    emit_json(
        json_file, {**about, "cosine": float(ends[0:1].cosine(ends[1:2])), "steps": rows, "seconds": clock.seconds}
    )


def _two_texts(
    from_text: str | None, to_text: str | None, vectors: Path | None, encoder: str | None
) -> list[str] | None:
    """Both texts; None where a file of vectors takes their place.

    Raises:
        ConfigError: one text alone, an empty one, or texts and a file.
    """
    given = [text for text in (from_text, to_text) if text is not None and text.strip()]
    if vectors is not None and from_text is None and to_text is None:
        if encoder is not None:
            raise ConfigError("--encoder has no effect on a file of vectors; leave it out")
        return None
    if len(given) != 2 or vectors is not None:
        raise ConfigError("give both --from-text and --to-text, or --vectors with a file of two vectors")
    return given


def _ends(
    bridge: "LatentBridge", texts: list[str] | None, vectors: Path | None, encoder: str | None, device: str | None
) -> "SentenceVector":
    """The two vectors to go between."""
    from latentloom.bridge.vector_files import read_vectors

    if texts is not None:
        return embed_texts(load_vector_encoder(bridge, encoder, device), texts, bridge)
    if vectors is None:
        raise ConfigError("give texts, or a file of two vectors")
    ends, _ = read_vectors(vectors)
    if len(ends) != 2:
        raise FileError(f"{vectors} holds {len(ends)} vectors; give a file of exactly two")
    require_width(ends, bridge, vectors)
    return ends
