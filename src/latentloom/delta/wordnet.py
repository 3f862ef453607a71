"""Terms and their glosses from WordNet's database files: short prompts with a longer wording of the same."""

import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path

from latentloom.errors import ConfigError, CorruptFileError, FileError

FILES = {"data.noun": "n", "data.verb": "v", "data.adj": "as", "data.adv": "r"}
"""The database files in the order they are read, with the kinds of synset that each may hold."""

NUM_LEXICOGRAPHER_FILES = 45

# noun.animal, .food, .object (natural ones), .phenomenon, .plant, .shape and verb.weather: what can be seen, from
# fields whose glosses are natural history and cookery. Left out although they look as harmless: noun.artifact (06) and
# noun.substance (27), which hold weapons, drugs, poisons and instruments of torture; noun.process (22), diseases and
# bodily functions; noun.location (15) and noun.time (28), which tell of wars; noun.person (18) and the adjectives,
# which hold slurs. Of the 20,720 rows kept in WordNet 3.0 a few dozen name a microbe that can be a weapon, or how
# plants reproduce, as an encyclopedia does: glosses are not searched for words.
NEUTRAL = frozenset({5, 13, 17, 19, 20, 25, 43})
"""Lexicographer files fit for demonstrations: neutral content only."""

USUAL_FOLDERS = (Path("/usr/share/wordnet"), Path("/usr/local/WordNet-3.0/dict"))
"""Where Debian's wordnet-base puts the database, and where WordNet's own installer does."""

_SYNSET = re.compile(r"\d{8} (?P<file>\d\d) (?P<kind>[nvasr]) (?P<num_words>[0-9a-f]{2}) (?P<rest>\S.*)")
_ADJECTIVE_MARKER = re.compile(r"\((?:a|p|ip)\)$")
# A quotation in parentheses belongs to the definition; the first one outside of them is an example.
_BEFORE_EXAMPLES = re.compile(r'(?:\([^()]*\)|[^"])*')
_LEAD_TO_EXAMPLES = re.compile(r"(?:[\s;:,]|\bas in\b|\be\.g\.)+$")


def read_wordnet(path: Path | None = None, lexicographer_files: Collection[int] | None = None) -> list[tuple[str, str]]:
    """(term, gloss) of every synset, in the order of the files: nouns, verbs, adjectives, adverbs.

    The term is the synset's first word, the gloss its definition without examples. A term stands there once for each
    of its senses. Synsets without a definition, or whose definition is the term again, are left out.

    Args:
        path: folder of `data.noun`, `data.verb`, `data.adj` and `data.adv` of WordNet 3; None looks where $WNSEARCHDIR
            or $WNHOME points, and in the usual places when neither is set.
        lexicographer_files: numbers, 0 to 44, of the fields to keep, such as NEUTRAL; None keeps all.

    Raises:
        ConfigError: there is no lexicographer file of that number.
        FileError: the folder or one of its four files is missing.
        CorruptFileError: a line that is not in the format, or a file cut short.

    Source: WordNet 3.0's manual pages wndb(5) and lexnames(5).
    """
    unknown = sorted(set(lexicographer_files or ()) - set(range(NUM_LEXICOGRAPHER_FILES)))
    if unknown:
        raise ConfigError(
            f"lexicographer file {unknown[0]}; WordNet has 0 to {NUM_LEXICOGRAPHER_FILES - 1}, give those"
        )
    folder = _find_folder(path)
    pairs = []
    for name, kinds in FILES.items():
        for number, term, full_gloss in _read_synsets(folder / name, kinds):
            if lexicographer_files is not None and number not in lexicographer_files:
                continue
            gloss = definition(full_gloss)
            if gloss and gloss.casefold() != term.casefold():
                pairs.append((term, gloss))
    return pairs


def _find_folder(path: Path | None) -> Path:
    folder = path if path is not None else _installed_folder()
    for name in FILES:
        if not (folder / name).is_file():
            raise FileError(
                f"{folder} has no {name}; give the folder of WordNet's data files, "
                "on Debian and Ubuntu: sudo apt install wordnet-base"
            )
    return folder


def _installed_folder() -> Path:
    # WordNet's own two variables, in its own order; one that is set is a wish, so no other place is looked at
    if os.environ.get("WNSEARCHDIR"):
        return Path(os.environ["WNSEARCHDIR"])
    if os.environ.get("WNHOME"):
        return Path(os.environ["WNHOME"]) / "dict"
    for folder in USUAL_FOLDERS:
        if folder.is_dir():
            return folder
    raise FileError(
        f"WordNet is not in {' or '.join(map(str, USUAL_FOLDERS))}; on Debian and Ubuntu: sudo apt install "
        "wordnet-base, or set WNSEARCHDIR to the folder of its data files"
    )


def _read_synsets(path: Path, kinds: str) -> Iterator[tuple[int, str, str]]:
    """Lexicographer file, term and gloss with its examples of every line below the licence."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if raw.startswith(b"  "):
                continue  # the licence: two spaces and the number of the line
            try:
                if not raw.endswith(b"\n"):
                    raise ValueError("the file is cut short")
                yield _parse(raw.decode("utf-8"), kinds)
            except ValueError as error:
                raise CorruptFileError(
                    f"{path}, line {number}, is no synset of WordNet: {error}; install wordnet-base again"
                ) from error


def _parse(line: str, kinds: str) -> tuple[int, str, str]:
    head, bar, gloss = line.partition(" | ")
    found = _SYNSET.match(head)
    if not bar or found is None:
        raise ValueError("it has no '|' before a gloss" if not bar else f"it begins with {head[:20]!r}")
    if found["kind"] not in kinds:
        raise ValueError(f"its kind is {found['kind']!r}, in this file {' or '.join(map(repr, kinds))}")
    lexicographer_file, rest = int(found["file"]), found["rest"]
    if lexicographer_file >= NUM_LEXICOGRAPHER_FILES:
        raise ValueError(f"its lexicographer file is {lexicographer_file}, at most {NUM_LEXICOGRAPHER_FILES - 1}")
    word, _, _ = rest.partition(" ")
    _require_fields(rest, int(found["num_words"], 16))
    return lexicographer_file, _ADJECTIVE_MARKER.sub("", word).replace("_", " "), gloss


def _require_fields(rest: str, num_words: int) -> None:
    """Raise unless as many words and pointers follow as the line says; a line that lost a part shows here."""
    fields = rest.split()
    after_words = fields[2 * num_words :]
    if num_words == 0 or not after_words or not re.fullmatch(r"\d{3}", after_words[0]):
        raise ValueError(f"it says that it has {num_words} words and has others")
    if len(after_words) - 1 < 4 * int(after_words[0]):
        raise ValueError(f"it says that it has {int(after_words[0])} pointers and has fewer")


def definition(gloss: str) -> str:
    """The gloss up to its first example, which is a quotation outside parentheses.

    >>> definition('a whole; a unit (as in "the unit"); "the team is a unit"')
    'a whole; a unit (as in "the unit")'
    """
    found = _BEFORE_EXAMPLES.match(gloss)
    return _LEAD_TO_EXAMPLES.sub("", found[0] if found else "").strip()
