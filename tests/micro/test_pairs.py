"""Pairs of prompts: the same content, in foreign words on one side and in known words on the other."""

import re
from collections import Counter

import pytest

from latentloom.delta.pairs import PromptPair, read_pairs, write_pairs
from latentloom.errors import ConfigError
from latentloom.micro.attributes import VALUES, split
from latentloom.micro.captions import TEMPLATES
from latentloom.micro.lexicon import LEXICONS, SEEN, TELEGRAPHIC, UNSEEN, Lexicon, parse
from latentloom.micro.pairs import MOST_LEFT_OPEN, PARTIAL_SHARE, make_pairs


def words_of(lexicon: dict[str, tuple[str, ...]]) -> set[str]:
    return {word for phrases in lexicon.values() for phrase in phrases for word in phrase.split()}


def frame(text: str) -> str:
    """A sentence with the words of all lexicons taken out; what is left is its template."""
    text = f" {text.lower()} "
    phrases = [phrase for lexicon in LEXICONS.values() for words in lexicon.values() for phrase in words]
    for phrase in ["object", "thing", *sorted(phrases, key=len, reverse=True)]:
        text = re.sub(rf"\b{phrase}\b", "_", text)
    return re.sub(r"\ban _", "a _", text)


def test_both_sides_mention_the_same_attributes():
    for base, rewritten in make_pairs(750):
        assert parse(base) == parse(rewritten), (base, rewritten)


def test_no_pair_shows_a_combination_that_is_kept_for_evaluation():
    asked = {parse(base) for base, _ in make_pairs(2000)}
    complete = {item for item in asked if len(item.mentioned()) == len(VALUES)}
    assert complete <= set(split("train"))


def test_every_combination_of_training_takes_its_turn():
    asked = Counter(parse(base) for base, _ in make_pairs(len(split("train")) * 4))
    complete = {item: count for item, count in asked.items() if len(item.mentioned()) == len(VALUES)}
    # of four turns each, a share of 0.3 leaves something open: all four for 1 % of the combinations
    assert len(complete) >= 0.98 * len(split("train"))
    assert max(complete.values()) <= 5  # repeats of terse pairs fall out and are made up for


def test_rewrites_are_verbose_captions_in_seen_words():
    foreign = (words_of(UNSEEN) | words_of(TELEGRAPHIC)) - words_of(SEEN) - {"is"}  # "The background is black."
    for _, rewritten in make_pairs(750):
        assert rewritten[0].isupper()
        assert rewritten.endswith(".")
        assert not foreign & set(re.findall(r"[a-z]+", rewritten.lower())), rewritten


@pytest.mark.parametrize(("lexicon", "other"), [("unseen", TELEGRAPHIC), ("telegraphic", UNSEEN)])
def test_base_prompts_are_in_the_words_of_the_lexicon_asked_for(lexicon: Lexicon, other: dict):
    own, foreign = words_of(LEXICONS[lexicon]), words_of(SEEN) | words_of(other)
    for base, _ in make_pairs(300, lexicons=[lexicon]):
        used = set(re.findall(r"[a-z]+", base.lower()))
        assert used & own
        assert not used & (foreign - own - {"the", "to", "is"})


def test_a_verbose_base_has_the_sentence_of_its_rewrite():
    pairs = make_pairs(300, lexicons=["unseen"])
    assert all(frame(base) == frame(rewritten) for base, rewritten in pairs)
    assert len({frame(base) for base, _ in pairs}) >= len(TEMPLATES["verbose"])


def test_a_share_of_the_pairs_leaves_attributes_open():
    open_counts = Counter(len(VALUES) - len(parse(base).mentioned()) for base, _ in make_pairs(3000))
    assert 1 - open_counts[0] / 3000 == pytest.approx(PARTIAL_SHARE, abs=0.03)
    assert set(open_counts) == set(range(MOST_LEFT_OPEN + 1))


def test_both_lexicons_take_equal_shares():
    verbose = sum(base.endswith(".") for base, _ in make_pairs(3000))
    assert verbose / 3000 == pytest.approx(0.5, abs=0.03)


def test_no_pair_comes_twice_and_none_is_left_out_when_read(tmp_path):
    pairs = make_pairs(3000, seed=1)
    assert len(set(pairs)) == 3000
    write_pairs(tmp_path / "pairs.jsonl", [PromptPair(*pair) for pair in pairs])
    found = read_pairs(tmp_path / "pairs.jsonl")
    assert [(pair.base, pair.rewritten) for pair in found.pairs] == pairs
    assert (found.duplicates, found.unchanged) == ([], [])


def test_a_seed_gives_the_same_pairs_and_fewer_of_them_are_the_first():
    assert make_pairs(50, seed=3) == make_pairs(800, seed=3)[:50]
    assert make_pairs(50, seed=3) != make_pairs(50, seed=4)


@pytest.mark.parametrize(
    ("num", "lexicons", "said"),
    [
        (0, ["unseen"], "0 pairs were asked for; give 1 to 100000"),
        (10**6, ["unseen"], "give 1 to 100000"),
        (5, ["seen"], "'seen' as the lexicon of base prompts; choose from unseen, telegraphic"),
        (5, [], "nothing as the lexicon"),
    ],
)
def test_mistakes_are_told_in_one_line(num: int, lexicons: list[Lexicon], said: str):
    with pytest.raises(ConfigError, match=said):
        make_pairs(num, lexicons=lexicons)
