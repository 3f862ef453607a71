"""`latentloom bridge decode`: sentence vectors to texts, by a trained bridge."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

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
from latentloom.cli.prompts import collect_prompts
from latentloom.cli.stopwatch import Stopwatch
from latentloom.errors import ConfigError
from latentloom.storage import require_writable

if TYPE_CHECKING:
    from latentloom.bridge.model import LatentBridge
    from latentloom.bridge.sentence_encoders import SentenceEncoder
    from latentloom.tensors import SentenceVector

BEST_OF = 8
Mode = Literal["greedy", "sample", "best-of-n"]


@dataclass
class Decoded:
    """What was decoded, vector by vector.

    Attributes:
        texts: of each vector; the best one first where they were ranked.
        cosines: of each text's own vector to the one it was made from, where an encoder made it.
        facts: what else is known, for `--json`.
    """

    texts: list[list[str]]
    cosines: list[list[float]] | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def command(
    bridge: BridgeOption,
    vectors: Annotated[
        Path | None,
        typer.Option(
            "--vectors", metavar="FILE", help="Vectors: .safetensors from encode, .npy, or pairs as .json(l)."
        ),
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option("--text", help="A text whose vector is made and said again; may be repeated.")
    ] = None,
    encoder: EncoderOption = None,
    mode: Annotated[
        Mode, typer.Option("--mode", help="The likeliest tokens; drawn ones; or the nearest of n drawn texts.")
    ] = "greedy",
    n: Annotated[
        int | None, typer.Option("--n", min=1, help="Texts drawn per vector (sample: 1, best-of-n: 8).")
    ] = None,
    temperature: TemperatureOption = None,
    top_p: TopPOption = None,
    seed: SeedOption = None,
    max_new_tokens: NewTokensOption = 40,
    prompt: Annotated[str, typer.Option("--prompt", help="How every text begins.")] = "",
    window: Annotated[
        int | None,
        typer.Option("--window", min=1, help="Fill in tokens in a window of so many, on a backbone such as WeDLM."),
    ] = None,
    entropy_threshold: Annotated[
        float | None, typer.Option("--entropy-threshold", min=0, help="In a window: nats below which it is sure (0.4).")
    ] = None,
    mask_token: Annotated[
        str | None, typer.Option("--mask-token", help="In a window: what masks a token, where the model names none.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write the texts as JSONL, a line for each.")
    ] = None,
    local_dir: LocalDirOption = None,
    device: DeviceOption = None,
    dtype: BackboneDtypeOption = "bf16",
    json_file: JsonOption = None,
) -> None:
    """Say what sentence vectors mean.

    With --encoder, and with best-of-n, each text is embedded again and its cosine to the vector is shown.
    """
    offline_environment()
    drawn = {"--n": n, "--temperature": temperature, "--top-p": top_p, "--seed": seed}
    _refuse_idle(
        vectors, text, mode, drawn, window, {"--entropy-threshold": entropy_threshold, "--mask-token": mask_token}
    )
    if out is not None:
        require_writable(out)
    clock = Stopwatch()
    with clock.time("load"):
        import torch

        from latentloom.bridge.checkpoint import load_bridge

        needs_encoder = bool(text) or mode == "best-of-n" or encoder is not None
        model = load_bridge(bridge, device=device, dtype=dtype, local_dir=local_dir)
        model.require_direction("l2t")
        embedder = load_vector_encoder(model, encoder, device) if needs_encoder else None
        wanted, sources = _wanted(model, vectors, text, embedder)
    generator = torch.Generator().manual_seed(seed or 0)
    settings: dict[str, Any] = {"max_new_tokens": max_new_tokens, "mode": "greedy" if mode == "greedy" else "sample"}
    settings |= _given(temperature=temperature, top_p=top_p)
    with clock.time("decode"):
        if window is not None:
            settings |= _given(window=window, entropy_threshold=entropy_threshold, mask_token=mask_token)
            decoded = _in_windows(model, wanted, settings, generator, prompt)
        else:
            settings["num_samples"] = n or (BEST_OF if mode == "best-of-n" else 1)
            decoded = _by_token(model, wanted, embedder if mode == "best-of-n" else None, settings, generator, prompt)
        if embedder is not None and decoded.cosines is None:
            decoded.cosines = _cosines(wanted, decoded.texts, embedder)
    rows = _rows(sources, decoded)
    _show(rows, best_alone=mode == "best-of-n")
    if out is not None:
        _write(out, rows)
    about = {"bridge": str(bridge), "mode": mode, "seed": seed or 0, **settings, **decoded.facts}
    about["encoder"] = None if embedder is None else embedder.name
    emit_json(json_file, {**about, "texts": rows, "seconds": clock.seconds})


def _given(**options: Any) -> dict[str, Any]:
    """The options that were given; the rest keep the defaults of what reads them."""
    return {name: value for name, value in options.items() if value is not None}


def _refuse_idle(
    vectors: Path | None,
    text: list[str] | None,
    mode: Mode,
    drawn: dict[str, Any],
    window: int | None,
    of_window: dict[str, Any],
) -> None:
    """Options that would have no effect, or no meaning together."""
    if (vectors is None) == (not text):
        raise ConfigError("give either vectors as --vectors FILE or texts as --text TEXT, not both")
    given = [name for name, value in drawn.items() if value is not None]
    if mode == "greedy" and given:
        raise ConfigError(f"{given[0]} has no effect with --mode greedy, which draws nothing; give --mode sample")
    idle = [name for name, value in of_window.items() if value is not None]
    if window is None and idle:
        raise ConfigError(f"{idle[0]} has no effect without --window; give the window's size, such as 16")
    if window is not None and (mode == "best-of-n" or drawn["--n"] is not None):
        raise ConfigError("--window makes one text per vector; leave out --n and --mode best-of-n")


def _wanted(
    bridge: "LatentBridge", vectors: Path | None, text: list[str] | None, encoder: "SentenceEncoder | None"
) -> "tuple[SentenceVector, list[str] | None]":
    """The vectors to say, and the texts they were made from where those are known."""
    from latentloom.bridge.vector_files import read_vectors

    if text and encoder is not None:
        texts = collect_prompts(text, None)
        return embed_texts(encoder, texts, bridge), texts
    if vectors is None:
        raise ConfigError("nothing to decode; give --vectors FILE or --text TEXT")
    wanted, sources = read_vectors(vectors)
    require_width(wanted, bridge, vectors)
    return wanted, sources


def _by_token(
    bridge: "LatentBridge",
    wanted: "SentenceVector",
    encoder: "SentenceEncoder | None",
    settings: dict[str, Any],
    generator: Any,
    prompt: str,
) -> Decoded:
    """Texts of the vectors; with an encoder ranked by it."""
    from latentloom.bridge.decoding import DecodingConfig, decode
    from latentloom.bridge.rerank import decode_best_of

    config = DecodingConfig(**settings)
    if encoder is None:
        return Decoded(decode(bridge, wanted, config, generator, prompt))
    best = decode_best_of(bridge, wanted, encoder, config, generator, prompt)
    order = best.candidate_cosines.argsort(dim=1, descending=True, stable=True).tolist()
    texts = [[drawn[place] for place in places] for drawn, places in zip(best.candidates, order, strict=True)]
    cosines = [
        [row[place] for place in places] for row, places in zip(best.candidate_cosines.tolist(), order, strict=True)
    ]
    return Decoded(texts, cosines)


def _in_windows(
    bridge: "LatentBridge", wanted: "SentenceVector", settings: dict[str, Any], generator: Any, prompt: str
) -> Decoded:
    from latentloom.bridge.window_decoding import WindowConfig, decode_in_windows

    found = decode_in_windows(bridge, wanted, WindowConfig(**settings), generator, prompt)
    typer.echo(f"{sum(found.num_tokens)} tokens in {sum(found.num_passes)} passes")
    facts = {"num_tokens": found.num_tokens, "num_passes": found.num_passes}
    return Decoded([[text] for text in found.texts], facts=facts)


def _cosines(wanted: "SentenceVector", texts: list[list[str]], encoder: "SentenceEncoder") -> list[list[float]]:
    from latentloom.bridge.rerank import rerank

    return rerank(wanted, texts, encoder).candidate_cosines.tolist()


def _rows(sources: list[str] | None, decoded: Decoded) -> list[dict[str, Any]]:
    """A row for each text: which vector it is of, its place among that vector's texts, and what is known of it."""
    rows = []
    for index, texts in enumerate(decoded.texts):
        for place, text in enumerate(texts):
            row: dict[str, Any] = {"vector": index, "place": place, "text": text}
            if decoded.cosines is not None:
                row["cosine"] = decoded.cosines[index][place]
            if sources is not None:
                row["source"] = sources[index]
            rows.append(row)
    return rows


def _show(rows: list[dict[str, Any]], *, best_alone: bool) -> None:
    shown = [row for row in rows if row["place"] == 0 or not best_alone]
    columns = {"source": "made from", "text": "text", "cosine": "cosine"}
    names = [name for name in columns if name in shown[0]]
    print_texts(
        ["vector", *(columns[name] for name in names)],
        [[row["vector"], *(f"{row[name]:.3f}" if name == "cosine" else row[name] for name in names)] for row in shown],
    )


def _write(out: Path, rows: list[dict[str, Any]]) -> None:
    import json

    from latentloom.storage import write_text

    write_text(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
