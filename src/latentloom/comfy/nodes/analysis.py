"""What a text holds, in numbers and as a picture."""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from latentloom.comfy.hosts import Host
from latentloom.comfy.pictures import draw_tokens, figure_picture, principal_plane
from latentloom.comfy.schema import HOST_TEXT, Node, Output, Shown, Socket, Widget, for_both_hosts
from latentloom.comfy.store import ID_LETTERS, encoder_name, open_store, put_text
from latentloom.storage.embedding_entries import Analysis
from latentloom.storage.embedding_tensors import VARIANCE_SHARE, analyze
from latentloom.tensors import TextEmbeddings

ALL = "all"
ANALYSES = ("statistics", "shape", "pca_preview", ALL)


def analyze_text(host: Host, text_embeds: Any, analysis_type: str, store_in_db: bool) -> Shown:
    """A report on every prompt of a text, and the text as it came."""
    text = host.read_text(text_embeds)
    prompts = text.to_list()
    wanted = ANALYSES[:-1] if analysis_type == ALL else (analysis_type,)
    lines = _shapes(text_embeds, text, host) if "shape" in wanted else []
    pictures = []
    for number, tokens in enumerate(prompts, start=1):
        found = analyze(tokens)
        name = f"prompt {number} of {len(prompts)}" if len(prompts) > 1 else "prompt"
        if "statistics" in wanted:
            lines += [f"{name}: statistics of {len(tokens)} tokens", *_statistics(tokens, found)]
        if "pca_preview" in wanted:
            lines += [f"{name}: principal components", *_components(tokens, found)]
            title = f"{name}: {len(tokens)} tokens x {text.dim} channels"
            pictures.append(figure_picture(draw_tokens(tokens, title)))
    if store_in_db:
        lines += _store(host, text)
    report = "\n".join(lines)
    return Shown((report, text_embeds), report, tuple(pictures))


def _shapes(given: Any, text: TextEmbeddings, host: Host) -> list[str]:
    rows: Sequence[Tensor] = [entry[0] for entry in given] if isinstance(given, list) else list(given["prompt_embeds"])
    shapes = ", ".join(f"{list(each.shape)}" for each in rows)
    kind = str(text.dtype).removeprefix("torch.")
    tokens = ", ".join(map(str, text.lengths.tolist()))
    return [
        f"shape: {shapes} in {kind} on {rows[0].device}",
        f"  true tokens {tokens} x {text.dim} channels; what follows them is zero padding",
        f"  encoder {encoder_name(host, text.dim)}, as far as the host tells",
    ]


def _statistics(tokens: Float[Tensor, "L D"], found: Analysis) -> list[str]:
    return [
        f"  values  mean {found.mean:.4g}, std {found.std:.4g}, from {found.minimum:.4g} to {found.maximum:.4g}",
        f"  token norms  mean {found.norm_mean:.4g}, std {found.norm_std:.4g}, "
        f"from {found.norm_min:.4g} to {found.norm_max:.4g}",
        f"  norm of the whole prompt  {float(tokens.float().norm()):.4g}",
    ]


def _components(tokens: Float[Tensor, "L D"], found: Analysis) -> list[str]:
    first, second = principal_plane(tokens)[1]
    return [
        f"  effective dimensions {found.effective_dim:.1f} of at most {max(len(tokens) - 1, 0)}",
        f"  {found.num_components} components hold {VARIANCE_SHARE:.0%} of the variance; "
        f"the first {first:.0%}, the second {second:.0%}",
    ]


def _store(host: Host, text: TextEmbeddings) -> list[str]:
    store = open_store()
    lines = []
    for result in put_text(store, host, text):
        store.analyze(result.id)
        done = "stored" if result.is_new else "was there already"
        note = f", {result.note}" if result.note else ""
        size = f"{result.entry.stored_bytes:,} bytes"
        lines.append(f"{done} as {result.id[:ID_LETTERS]} ({size}{note}) in {store.path}")
    return lines


ANALYZER = Node(
    id="WanVideoEmbeddingAnalyzer",
    name="Embedding Analyzer",
    topic="Embeddings",
    description="Reports shape, statistics and principal components of a prompt's embedding, and draws its tokens.",
    inputs=(
        Socket("text_embeds", HOST_TEXT, "The prompt to look at."),
        Widget("analysis_type", ALL, "What the report is about.", options=ANALYSES),
        Widget("store_in_db", True, "Keep the embedding and its analysis in the embedding store."),
    ),
    outputs=(
        Output("analysis_report", "STRING", "The report as text."),
        Output("text_embeds", HOST_TEXT, "The prompt as it came."),
    ),
    run=analyze_text,
    shows=True,
    help="""
Changes nothing in the clip: the prompt goes through as it is. Use it to see what came out of arithmetic, or why two
prompts act alike.

- True tokens are the rows up to the last that is not zero; padding is not counted anywhere.
- Effective dimensions say in how many directions the tokens really differ: 1 if all lie on a line, at most one less
  than there are tokens.
- The picture shows each token in the plane in which the prompt varies most, from first (dark) to last (bright), and
  the norm of each. A token with a norm far above the others dominates sums and differences.
- With `store_in_db` the embedding goes to the store, float32 rounded to float16. The same content is stored once;
  putting it again counts as a use (see Embedding Database).
""",
)

NODES: tuple[Node, ...] = for_both_hosts(ANALYZER)
