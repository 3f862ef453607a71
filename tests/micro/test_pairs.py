"""Pairs of prompts: the same content, in foreign words on one side and in known words on the other."""

import re
from collections import Counter
from dataclasses import astuple

import pytest

from latentloom.delta.pairs import PromptPair, read_pairs, write_pairs
from latentloom.errors import ConfigError
from latentloom.micro.attributes import VALUES, split
from latentloom.micro.captions import TEMPLATES
from latentloom.micro.lexicon import BARE_MOTIONS, LEXICONS, SEEN, TELEGRAPHIC, UNSEEN, Lexicon, parse
from latentloom.micro.pairs import BASE_STYLES, MOST_LEFT_OPEN, make_pairs


def words_of(lexicon: dict[str, tuple[str, ...]]) -> set[str]:
    return {word for phrases in lexicon.values() for phrase in phrases for word in phrase.split()}


def frame(text: str) -> str:
    """A sentence with the words of all lexicons taken out; what is left is its template."""
    text = f" {text.lower()} "
    phrases = [phrase for lexicon in LEXICONS.values() for words in lexicon.values() for phrase in words]
    for phrase in sorted(["object", "thing", *BARE_MOTIONS.values(), *phrases], key=len, reverse=True):
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
    # of four turns each, one of five leaves nothing open: 1 - 0.8**4 of the combinations
    assert len(complete) / len(split("train")) == pytest.approx(1 - 0.8**4, abs=0.1)
    assert max(complete.values()) <= 6  # repeats of short pairs fall out and are made up for


def test_rewrites_are_in_seen_words_alone():
    foreign = (words_of(UNSEEN) | words_of(TELEGRAPHIC)) - words_of(SEEN) - {"is"}  # "The background is black."
    for _, rewritten in make_pairs(750):
        assert not foreign & set(re.findall(r"[a-z]+", rewritten.lower())), rewritten


@pytest.mark.parametrize(("lexicon", "other"), [("unseen", TELEGRAPHIC), ("telegraphic", UNSEEN)])
def test_base_prompts_are_in_the_words_of_the_lexicon_asked_for(lexicon: Lexicon, other: dict):
    own, foreign = words_of(LEXICONS[lexicon]), words_of(SEEN) | words_of(other)
    for base, _ in make_pairs(300, lexicons=[lexicon]):
        used = set(re.findall(r"[a-z]+", base.lower()))
        assert used & own
        assert not used & (foreign - own - {"the", "to", "is"})


@pytest.mark.parametrize("lexicon", BASE_STYLES)
def test_a_rewrite_is_its_base_word_for_word(lexicon: Lexicon):
    pairs = make_pairs(300, lexicons=[lexicon])
    assert all(frame(base) == frame(rewritten) for base, rewritten in pairs)
    assert all(base[0].isupper() == rewritten[0].isupper() for base, rewritten in pairs)


def test_unseen_words_come_in_every_sentence_of_their_styles():
    complete = [base for base, _ in make_pairs(800, lexicons=["unseen"]) if None not in astuple(parse(base))]
    assert len({frame(base) for base in complete}) >= sum(len(TEMPLATES[style]) for style in BASE_STYLES["unseen"])


def test_none_to_four_attributes_are_left_open_about_equally_often():
    open_counts = Counter(len(VALUES) - len(parse(base).mentioned()) for base, _ in make_pairs(400))
    assert sorted(open_counts) == list(range(MOST_LEFT_OPEN + 1))
    # the fewer words, the more repeats, and those fall out
    assert all(open_counts[number] / 400 == pytest.approx(0.2, abs=0.06) for number in range(4)), open_counts
    assert open_counts[4] / 400 == pytest.approx(0.15, abs=0.08)


def test_lexicons_and_styles_take_equal_shares():
    pairs = [(base, set(re.findall(r"[a-z]+", base.lower()))) for base, _ in make_pairs(400)]
    unseen = [base for base, words in pairs if not words & (words_of(TELEGRAPHIC) - words_of(UNSEEN))]
    assert len(unseen) / 400 == pytest.approx(0.5, abs=0.1)
    assert sum(base.endswith(".") for base in unseen) / len(unseen) == pytest.approx(0.5, abs=0.1)


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
