"""Embedding deltas: adapters between text encoder and model, loaded and applied to prompts."""

from typing import Any

import torch

from latentloom.comfy.hosts import Host
from latentloom.comfy.model_files import file_named, files_of, folder_hint, state_of_files
from latentloom.comfy.schema import HOST_TEXT, Node, Output, Shown, Socket, Widget, for_both_hosts
from latentloom.delta import EmbeddingDelta, load_embdelta_adapter
from latentloom.tensors import TextEmbeddings

KIND = "deltas"
SUFFIXES = (".safetensors", ".pt")
AT_CAP = 1 - 1e-4
"""A correction this near to its limit was cut by it."""


def delta_names() -> list[str]:
    """What can be loaded."""
    return list(files_of(KIND, SUFFIXES))


def load_delta(name: str) -> Shown:
    """The adapter of a file."""
    adapter = load_embdelta_adapter(file_named(KIND, SUFFIXES, name))
    config = adapter.config
    cap = "no cap" if config.cap is None else f"cap {config.cap:g} ({config.cap_mode})"
    return Shown((adapter,), f"{config.d_model} channels, rank {config.rank}, {cap}")


def delta_files_state(name: str, **hidden: Any) -> Any:
    """Changes with the files."""
    return [name, state_of_files(KIND, SUFFIXES)]


def apply_delta(host: Host, text_embeds: Any, embedding_delta: EmbeddingDelta, strength: float) -> Shown:
    """The text with its positive prompts corrected; as it came where the strength is 0."""
    if not strength:
        return Shown((text_embeds, "strength 0: the prompt is as it was"), "strength 0: the prompt is as it was")
    prompts = host.read_text(text_embeds)
    with torch.no_grad():
        corrected = embedding_delta(prompts, strength)
        info = _about(embedding_delta, prompts, corrected)
    return Shown((host.write_text(text_embeds, corrected), info), info)


def _about(adapter: EmbeddingDelta, before: TextEmbeddings, after: TextEmbeddings) -> str:
    """How far tokens moved, how open the gate was, and how many corrections the cap cut."""
    tokens = before.tokens.float()
    lengths = tokens.norm(dim=1)
    moved = (after.tokens.float() - tokens).norm(dim=1) / lengths.clamp_min(torch.finfo(torch.float32).tiny)
    gates = ", ".join(f"{gate:.2f}" for gate in adapter.gate(before).tolist())
    average, most = float(moved.mean()), float(moved.max())
    lines = [
        f"{len(tokens)} tokens moved by {average:.0%} of their length on average, {most:.0%} at most",
        f"gate {gates}: 1 corrects the prompt in full, 0 leaves it as it is",
    ]
    if adapter.config.cap is not None:
        corrections = adapter.deltas(before.tokens).norm(dim=1)
        capped = (corrections >= AT_CAP * adapter.limits(lengths)).float().mean()
        lines.append(f"the cap of {adapter.config.cap:g} cut the correction of {float(capped):.0%} of them")
    return "\n".join(lines)


LOADER = Node(
    id="LatentLoomEmbeddingDeltaLoader",
    name="Embedding Delta Loader",
    topic="Text",
    description="Loads an adapter that corrects text embeddings of prompts that the model misreads.",
    inputs=(
        Widget(
            "name",
            "microwan/lexicons.safetensors",
            f"A file in {folder_hint(KIND)}, or the one that ships for MicroWan.",
            options=delta_names,
        ),
    ),
    outputs=(Output("embedding_delta", "EMBEDDING_DELTA", "The adapter."),),
    run=load_delta,
    fingerprint=delta_files_state,
    help=f"""
An Embedding Delta is a small adapter, trained with `latentloom delta train` on pairs of prompts and better
wordings of them. Put its `.safetensors` (or `.pt`, which is read without running any code from it) into
`{folder_hint(KIND)}` and reload the page.

`microwan/lexicons.safetensors` belongs to MicroWan: it makes the model understand words that its transformer
never met, such as "scarlet" and "heads west".
""",
)

APPLY = Node(
    id="WanVideoEmbeddingDeltaApply",
    name="Embedding Delta Apply",
    topic="Text",
    description="Corrects the positive prompt by an Embedding Delta; the negative prompt stays as it is.",
    inputs=(
        Socket("text_embeds", HOST_TEXT, "The prompt to correct."),
        Socket("embedding_delta", "EMBEDDING_DELTA", "The adapter; of the text encoder that made the prompt."),
        Widget(
            "strength",
            1.0,
            "1 is as trained, 0 changes nothing, a negative number goes the other way.",
            low=-4,
            high=4,
            step=0.05,
        ),
    ),
    outputs=(
        Output("text_embeds", HOST_TEXT, "The corrected prompt."),
        Output("info", "STRING", "How far the tokens moved."),
    ),
    run=apply_delta,
    help="""
Moves each token of the prompt to where a better wording would have put it. Use it where a prompt is worded in a
way that the model misreads; prompts that are worded well are left alone by the adapter's gate, which `info`
shows.

The adapter must be of the text encoder that made the prompt: another width is refused. Begin with strength 1.
Above it, corrections can leave what the model has met; the cap that `info` speaks of was chosen for strength 1.
""",
)

NODES: tuple[Node, ...] = (LOADER, *for_both_hosts(APPLY))
