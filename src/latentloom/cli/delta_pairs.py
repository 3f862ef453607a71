"""`latentloom delta pairs`: a file of prompts and their rewrites."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from latentloom.cli.options import JsonOption, emit_json
from latentloom.errors import ConfigError
from latentloom.storage import require_writable

if TYPE_CHECKING:
    from latentloom.delta.pairs import PairFile, PromptPair
    from latentloom.micro.lexicon import Lexicon

PAIRS_FILE = Path("reports/embdelta_v2/pairs.jsonl")
NUM_PAIRS = 750  # as many as the document's adapter is trained on


def command(
    num: Annotated[
        int | None, typer.Option("--num", min=1, help=f"How many pairs; {NUM_PAIRS}, or all of a text file.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, max=2**32 - 1, help="Start of all randomness; 0 when not given.")
    ] = None,
    lexicons: Annotated[
        str | None,
        typer.Option("--lexicons", help="Words of MicroWan's base prompts: unseen,telegraphic or one of them."),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option("--text", metavar="FILE", help="Pairs of your own, one per line: prompt, tab or ' -> ', rewrite."),
    ] = None,
    wordnet: Annotated[
        bool, typer.Option("--wordnet", help="Terms and glosses of an installed WordNet, from its neutral fields.")
    ] = False,
    wordnet_path: Annotated[
        Path | None, typer.Option("--wordnet-path", metavar="FOLDER", help="The same, from this folder's data files.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="The JSONL file to write.")] = PAIRS_FILE,
    json_file: JsonOption = None,
) -> None:
    """Write pairs of prompts and rewrites: from MicroWan's lexicons, from a text file or from WordNet."""
    from_wordnet = wordnet or wordnet_path is not None
    if (text is not None) + from_wordnet + (lexicons is not None) > 1:
        raise ConfigError("--lexicons, --text and --wordnet are three sources of pairs; give one of them")
    if text is not None and num is None and seed is not None:
        raise ConfigError("--seed chooses among the pairs of --text, but all are taken; give --num too, or drop --seed")
    require_writable(out)

    from latentloom.delta.pairs import read_pair_text, write_pairs

    if text is not None:
        found, source = read_pair_text(text), str(text)
        pairs = choose(found.pairs, num, seed or 0, source)
    elif from_wordnet:
        found, source = read_wordnet_pairs(wordnet_path), "WordNet"
        pairs = choose(found.pairs, num or NUM_PAIRS, seed or 0, source)
    else:
        names = [name.strip() for name in ("unseen,telegraphic" if lexicons is None else lexicons).split(",")]
        found, source = make_lexicon_pairs(num or NUM_PAIRS, seed or 0, names), f"MicroWan, {' and '.join(names)}"
        pairs = found.pairs
    write_pairs(out, pairs)
    typer.echo(f"{out}: {len(pairs)} pairs from {source}{left_out(found)}")
    emit_json(json_file, {"file": str(out), "num_pairs": len(pairs), "source": source, **left_out_lines(found)})


def make_lexicon_pairs(num: int, seed: int, lexicons: list[str]) -> "PairFile":
    """Pairs in the words of MicroWan's lexicons.

    Raises:
        ConfigError: a number or a lexicon that is not allowed.
    """
    from latentloom.delta.pairs import tidy_pairs
    from latentloom.micro.pairs import BASE_STYLES, make_pairs

    unknown = [name for name in lexicons if name not in BASE_STYLES]
    if unknown:
        raise ConfigError(f"unknown lexicon {unknown[0]!r} of base prompts; choose from {', '.join(BASE_STYLES)}")
    known = cast("list[Lexicon]", list(dict.fromkeys(lexicons)))
    return tidy_pairs(make_pairs(num, seed, known), "MicroWan")


def read_wordnet_pairs(folder: Path | None) -> "PairFile":
    """Terms and glosses of WordNet's neutral fields.

    Raises:
        FileError: there is no WordNet.
    """
    from latentloom.delta.pairs import tidy_pairs
    from latentloom.delta.wordnet import NEUTRAL, read_wordnet

    return tidy_pairs(read_wordnet(folder, NEUTRAL), "WordNet")


def choose(pairs: "list[PromptPair]", num: int | None, seed: int, source: str) -> "list[PromptPair]":
    """So many of the pairs by chance, in their order; None takes all.

    Raises:
        ConfigError: there are not so many.
    """
    if num is None:
        return pairs
    if num > len(pairs):
        raise ConfigError(f"--num {num} was given and {source} has {len(pairs)} pairs; ask for no more than these")
    import torch

    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed))
    return [pairs[row] for row in sorted(order[:num].tolist())]


def left_out(found: "PairFile") -> str:
    """What was left out of a file, for the end of a line; nothing where nothing was."""
    shown = ""
    for what, lines in (("repeated", found.duplicates), ("unchanged by their rewrite", found.unchanged)):
        if lines:
            numbers = ", ".join(map(str, lines[:10])) + (", ..." if len(lines) > 10 else "")
            shown += f"\nleft out: {len(lines)} {what} (line {numbers})"
    return shown


def left_out_lines(found: "PairFile") -> dict[str, list[int]]:
    """The same as JSON values."""
    return {"duplicates": found.duplicates, "unchanged": found.unchanged}
