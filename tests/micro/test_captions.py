"""A caption says exactly the attributes it is asked to say, in the words of its lexicon, as tidy text."""

import re
from collections import Counter
from functools import cache

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from latentloom.micro.attributes import VALUES, Attributes, split
from latentloom.micro.captions import (
    READING_LEXICONS,
    TEMPLATES,
    TRAINING_STYLES,
    caption,
    grammar_words,
    reading_text,
    training_caption,
)
from latentloom.micro.lexicon import BARE_MOTIONS, LEXICONS, SEEN, TELEGRAPHIC, UNSEEN, lexicon_words, parse

ANY_ATTRIBUTES = st.builds(Attributes, **{name: st.none() | st.sampled_from(values) for name, values in VALUES.items()})
STYLES = st.sampled_from(list(TEMPLATES))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@cache
def training_captions() -> list[tuple[Attributes, str]]:
    """What a clip shows and its caption, four times for each training clip."""
    source = generator(1)
    return [(item, training_caption(item, source)) for item in split("train") * 4]


@cache
def reading_texts() -> list[tuple[Attributes, str]]:
    """What a clip would show and a text of it, four times for each training clip."""
    source = generator(1)
    return [(item, reading_text(item, source)) for item in split("train") * 4]


def lexicons_in(text: str) -> set[str]:
    """The lexicons that the words for the mentioned attributes are from."""
    said = f" {' '.join(re.findall(r'[a-z]+', text.lower()))} "
    values = parse(text).mentioned().values()
    words = {name: [phrase for value in values for phrase in lexicon[value]] for name, lexicon in LEXICONS.items()}
    words["seen"] += [BARE_MOTIONS[value] for value in values if value in BARE_MOTIONS]
    return {name for name, phrases in words.items() if any(f" {phrase} " in said for phrase in phrases)}


def assert_tidy(text: str) -> None:
    assert not re.search(r"[{}]|\s\s|\s[,.]|,,|\.\.|, ?\.|\ba [aeiou]|\ban [^aeiou]", text, re.IGNORECASE), text
    assert text == text.strip(" ,"), text
    assert " of size" not in text, text  # left over where the size is open


@given(attributes=ANY_ATTRIBUTES, style=STYLES, lexicon=st.none() | st.sampled_from(list(LEXICONS)), seed=st.integers())
@example(Attributes(), "verbose", None, 0)
@example(Attributes(), "terse", None, 1)
def test_a_caption_reads_back_as_exactly_the_attributes_it_mentions(attributes, style, lexicon, seed):
    for draw in range(6):  # several templates and words for each
        text = caption(attributes, style, generator((seed + draw) % 2**63), lexicon)
        assert parse(text) == attributes, text
        assert_tidy(text)
        assert (text[:1].isupper() and text.endswith(".")) == (style == "verbose")


@pytest.mark.parametrize("style", TEMPLATES)
def test_every_template_is_tidy_whatever_is_left_open(style):
    complete = Attributes("green", "triangle", "large", "up", "gray")
    seen = set()
    for mask in range(32):
        item = complete.without(*(name for at, name in enumerate(VALUES) if mask >> at & 1))
        for seed in range(12):
            text = caption(item, style, generator(seed))
            assert_tidy(text)
            assert parse(text) == item
            seen.add(text)
    assert len(seen) > 60


def test_the_same_generator_writes_the_same_caption():
    item = split("train")[100]
    texts = [[training_caption(item, source) for _ in range(20)] for source in (generator(4), generator(4))]
    assert texts[0] == texts[1]
    assert len(set(texts[0])) > 10


def test_a_seed_gives_the_captions_that_the_shipped_weights_were_trained_on():
    source = generator(0)
    assert [training_caption(item, source) for item in split("train")[::75]] == [
        "The video shows a little crimson object that moves to the left against a dark backdrop.",
        "",
        "a big emerald wedge moves up, bright background",
        "blue square that stays still on gray",
        "gray, right, little golden box",
        "large golden cross that falls on gray",
        "bright background, large purple wedge drifts rightward",
        "",
    ]


def test_known_captions():
    item, source = Attributes("blue", "circle", "small", "left", "black"), generator(0)
    assert {caption(item, "telegraphic", source) for _ in range(50)} == {
        "sm blu circ lft blk",
        "circ blu sm lft blk",
        "blk lft blu circ sm",
    }
    texts = {caption(item, "verbose", source) for _ in range(4000)}
    assert "A small blue circle moves to the left on a black background." in texts
    assert "There is a little disc, azure in color, which drifts leftward. The background is dark." in texts
    texts = {caption(item.without("background", "colour"), "verbose", source) for _ in range(1000)}
    assert "The scene has one small circle slides left." in texts
    assert "There is a small circle which slides left." in texts
    assert caption(Attributes(), "terse", source) == "object"


def test_captions_for_training_use_no_unseen_and_no_telegraphic_word():
    used = {word for _, text in training_captions() for word in re.findall(r"[a-z]+", text.lower())}
    foreign = {
        word for lexicon in (UNSEEN, TELEGRAPHIC) for words in lexicon.values() for word in " ".join(words).split()
    }
    assert foreign & used == {"is"}  # of "is frozen", and of "The background is"
    texts = [f" {text.lower()} " for _, text in training_captions()]
    assert not any(" is frozen" in text for text in texts)


def test_captions_for_training_use_every_seen_word():
    used = {word for _, text in training_captions() for word in re.findall(r"[a-z]+", text.lower())}
    assert {word for words in SEEN.values() for word in " ".join(words).split()} <= used


def test_captions_for_training_say_nothing_that_the_clip_does_not_show():
    for item, text in training_captions():
        assert_tidy(text)
        assert parse(text).mentioned().items() <= item.mentioned().items(), text


def test_a_tenth_of_the_captions_is_empty_and_a_tenth_of_each_attribute_is_left_out():
    captions = [parse(text) for _, text in training_captions() if text]
    empty = sum(not text for _, text in training_captions()) / len(training_captions())
    assert empty == pytest.approx(0.1, abs=0.025)
    mentions = Counter(name for item in captions for name in item.mentioned())
    for name in VALUES:
        assert 1 - mentions[name] / len(captions) == pytest.approx(0.1, abs=0.025), name


def test_dropout_rates_of_zero_and_one_are_exact():
    source = generator(2)
    for item in split("train")[::20]:
        assert parse(training_caption(item, source, caption_dropout=0.0, attribute_dropout=0.0)) == item
        assert parse(training_caption(item, source, caption_dropout=0.0, attribute_dropout=1.0)) == Attributes()
        assert training_caption(item, source, caption_dropout=1.0) == ""


def test_a_text_to_read_is_in_the_words_of_one_lexicon_and_says_nothing_else():
    for item, text in reading_texts():
        assert len(lexicons_in(text)) == 1, text
        assert_tidy(text)
        assert parse(text).mentioned().items() <= item.mentioned().items(), text


def test_the_texts_to_read_are_in_all_lexicons_by_their_shares_and_use_every_word():
    texts = [text for _, text in reading_texts()]
    counts = Counter(name for text in texts for name in lexicons_in(text))
    assert {name: counts[name] / len(texts) for name in LEXICONS} == pytest.approx(READING_LEXICONS, abs=0.03)
    used = {word for text in texts for word in re.findall(r"[a-z]+", text.lower())}
    assert set(lexicon_words()) <= used


def test_half_of_the_texts_to_read_is_shortened_to_any_number_of_attributes_from_one():
    counts = Counter(len(parse(text).mentioned()) for _, text in reading_texts())
    shares = {num: count / len(reading_texts()) for num, count in sorted(counts.items())}
    assert shares == pytest.approx({1: 0.1, 2: 0.1, 3: 0.1, 4: 0.1, 5: 0.6}, abs=0.03)


def test_no_attribute_is_left_out_of_a_shortened_text_more_often_than_another():
    short = [said for said in (parse(text).mentioned() for _, text in reading_texts()) if len(said) < 5]
    counts = Counter(name for said in short for name in said)
    assert {name: counts[name] / len(short) for name in VALUES} == pytest.approx(dict.fromkeys(VALUES, 0.5), abs=0.06)


def test_the_same_generator_writes_the_same_texts_to_read():
    item = split("train")[100]
    texts = [[reading_text(item, source) for _ in range(20)] for source in (generator(4), generator(4))]
    assert texts[0] == texts[1]
    assert len(set(texts[0])) > 10


def test_the_styles_take_their_shares_of_the_training_captions():
    texts = [text for _, text in training_captions() if text]
    verbose = sum(text.endswith(".") for text in texts) / len(texts)
    assert verbose == pytest.approx(TRAINING_STYLES["verbose"], abs=0.035)
    assert sum(TRAINING_STYLES.values()) == pytest.approx(1.0)
    assert "telegraphic" not in TRAINING_STYLES


def test_every_lexicon_names_every_value():
    values = {value for values in VALUES.values() for value in values}
    assert all(set(lexicon) == values for lexicon in LEXICONS.values())


def test_no_word_means_two_things():
    names = {value: name for name, values in VALUES.items() for value in values}
    phrases = [(phrase, value) for lexicon in LEXICONS.values() for value, words in lexicon.items() for phrase in words]
    assert len({phrase for phrase, _ in phrases}) == len(phrases)
    for phrase, value in [*phrases, *((word, value) for value, word in BARE_MOTIONS.items())]:
        assert parse(phrase).mentioned() == {names[value]: value}, phrase


@pytest.mark.parametrize("template", [template for templates in TEMPLATES.values() for template in templates])
def test_a_template_means_nothing_by_itself(template):
    assert parse(re.sub(r"\{\w+\}", " ", template)) == Attributes()


def test_grammar_and_lexicons_hold_every_word_of_every_caption():
    known = {*lexicon_words(), *grammar_words(), "an"}
    source = generator(3)
    for item in split("held_out"):
        for style in TEMPLATES:
            for lexicon in LEXICONS:
                assert set(re.findall(r"[a-z]+", caption(item, style, source, lexicon).lower())) <= known


@pytest.mark.parametrize("prompt", ["", "a", "redder squared", "\x00", "😀 \n\t", "Background", "bright" * 1000])
def test_a_prompt_of_other_words_mentions_nothing(prompt):
    assert parse(prompt) == Attributes()


def test_case_punctuation_and_line_breaks_do_not_matter():
    expected = Attributes("red", "square", "large", "down", "white")
    assert parse("A BIG,crimson\nbox... (falls) on-white!") == expected
