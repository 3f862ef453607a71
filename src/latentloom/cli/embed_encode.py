"""`latentloom embed encode`, or `latentloom embed` with prompts alone: prompts to text embeddings."""

from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import typer

from latentloom.cli.finetuned import TextEncoderOption
from latentloom.cli.model import DeviceOption, DtypeOption, checkpoint_or_default, load_text_encoder
from latentloom.cli.options import CkptRootOption, JsonOption, emit_json
from latentloom.cli.prompts import PromptsFileOption, collect_prompts
from latentloom.cli.stopwatch import Stopwatch
from latentloom.errors import ConfigError

VERBS_NOT_GIVEN = "latentloom.embed.verbs_not_given"  # the context's note that prompts came without a verb


def refuse_mistaken_verb(context: Any, prompts: list[str] | None) -> list[str] | None:
    """The prompts, unless they are a mistyped or misplaced verb and its files.

    Args:
        context: typer's own click context, of a class that typer does not export.
        prompts: the words of the command line.

    Raises:
        ConfigError: no verb was given, and a word names a safetensors file, the first is a verb after all, or it is
            nearly one and others follow.
    """
    verbs = context.meta.get(VERBS_NOT_GIVEN)
    if not (prompts and verbs):
        return prompts
    first, nearest = prompts[0], get_close_matches(prompts[0], verbs, n=1, cutoff=0.8)
    if first in verbs:
        mistake = f"the verb {first} comes after an option; give it first"
    elif len(prompts) > 1 and nearest:
        mistake = f"{first!r} is not a verb; did you mean {nearest[0]}?"
    elif any(prompt.endswith(".safetensors") for prompt in prompts):
        mistake = f"{first!r} is not a verb, and files need one; use {', '.join(verbs)}"
    else:
        return prompts
    raise ConfigError(f"{mistake} (to encode such words as prompts: latentloom embed encode PROMPT)")


def command(
    prompts: Annotated[
        list[str] | None,
        typer.Argument(metavar="PROMPT", callback=refuse_mistaken_verb, help="Texts, each in quotes."),
    ] = None,
    prompts_file: PromptsFileOption = None,
    text_encoder: TextEncoderOption = None,
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

        encoder = load_text_encoder(root, device, dtype, text_encoder)
    with clock.time("encoding"):
        embeddings = encoder.encode(texts).to("cpu")

    record = {
        "prompts": texts,
        "encoder": encoder.fingerprint(),
        "dtype": str(encoder.model.dtype).removeprefix("torch."),
    }
    save_object(out, embeddings, record)
    typer.echo(f"{out}: {len(embeddings)} prompts, {len(embeddings.tokens)} tokens of {embeddings.dim} channels")
    sources = {"ckpt_root": str(root), "text_encoder": None if text_encoder is None else str(text_encoder)}
    measured = {"file": str(out), "lengths": embeddings.lengths.tolist(), "dim": embeddings.dim}
    emit_json(json_file, {**record, **measured, **sources, "seconds": clock.seconds})
