"""Words that the DiT has never met: what they mean, clips that teach them, prompts that ask for them."""

import pytest
import torch

from latentloom.errors import ConfigError
from latentloom.micro.attributes import split
from latentloom.micro.captions import caption
from latentloom.micro.draw import write_clips
from latentloom.micro.lexicon import LEXICONS, parse
from latentloom.micro.new_words import attributes_to_teach, meanings_of, word_set


def test_words_mean_what_their_lexicon_says():
    assert meanings_of(["scarlet", "ball", "heads west"]) == {"red": "scarlet", "circle": "ball", "left": "heads west"}


@pytest.mark.parametrize("word", ["red", "nonsense", "moves to the left", "scarlet ball", ""])
def test_a_word_that_is_known_or_means_nothing_cannot_be_taught(word):
    with pytest.raises(ConfigError, match="no word that MicroWan could learn"):
        meanings_of([word])


def test_two_words_for_one_value_are_refused_by_both_names():
    with pytest.raises(ConfigError, match="'ruby' and 'scarlet' both mean 'red'"):
        meanings_of(["scarlet", "ruby"])


def test_the_asked_share_of_clips_shows_a_taught_value_and_its_word():
    generator = torch.Generator().manual_seed(0)
    meanings = meanings_of(["scarlet", "ball"])
    drawn = [attributes_to_teach(meanings, 0.6, split("train"), generator) for _ in range(500)]
    taught = [(attributes, words) for attributes, words in drawn if words]
    assert 0.5 < len(taught) / len(drawn) < 0.7
    for attributes, words in taught:
        ((value, word),) = words.items()
        assert value in attributes.mentioned().values()
        assert word in caption(attributes, "verbose", generator, words=words)


def test_without_new_words_the_drawn_clips_are_the_ones_they_were(tmp_path):
    write_clips(tmp_path / "plain", 4, seed=5)
    write_clips(tmp_path / "none", 4, words=[], word_share=0.9, seed=5)
    for name in ("00000.txt", "00003.txt", "00001.mp4"):
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "none" / name).read_bytes()


def test_prompts_ask_for_held_out_combinations_with_one_new_word_and_otherwise_known_ones():
    questions = word_set("scarlet", 60, seed=3)
    unseen = {phrase for phrases in LEXICONS["unseen"].values() for phrase in phrases} - {"scarlet"}
    assert len(questions) == 60
    for question in questions:
        assert question.asked.colour == "red"
        assert question.asked in split("held_out")
        assert parse(question.prompt) == question.asked
        assert "scarlet" in question.prompt
        assert not any(f" {phrase} " in f" {question.prompt.lower()} " for phrase in unseen)
