"""Captions are cut down to keywords: whole words, the longest first, in training only."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from finetune_runs import ENCODER, MemoryStore, settings
from hypothesis import given
from hypothesis import strategies as st

from latentloom.finetune.batches import BatchPlan
from latentloom.finetune.captions import keywords_in, trim_caption, trim_probability
from latentloom.finetune.config import CaptionAugConfig
from latentloom.finetune.micro_batches import MicroBatchMaker
from latentloom.finetune.objective import NoiseLevels
from latentloom.finetune.stages.row import wiring_for
from latentloom.wan.checkpoints import load_tokenizer


def trimming(*keywords: str, **changes: object) -> CaptionAugConfig:
    return CaptionAugConfig.model_validate({"enable": True, "trim_prob": 1.0, "keywords": keywords, **changes})


@pytest.mark.parametrize(
    ("caption", "found"),
    [
        ("a red circle", ["red"]),
        ("a REDDISH circle, infrared", []),
        ("Red, then red again and RED.", ["Red", "red", "RED"]),
        ("red red red", ["red"]),
        ("a hot air balloon and a balloon", ["hot air balloon", "balloon"]),
        ("the balloon (red)", ["balloon", "red"]),
        ("a red-hot balloon", ["red", "balloon"]),
        ("a C++ programme, C+", ["C++"]),
        ("", []),
    ],
)
def test_keywords_are_found_as_whole_words_in_the_order_of_the_caption(caption: str, found: list[str]) -> None:
    assert keywords_in(caption, trimming("balloon", "red", "hot air balloon", "C++")) == found


def test_capitals_count_when_asked() -> None:
    config = trimming("Red", case_insensitive=False)
    assert keywords_in("red Red RED", config) == ["Red"]
    assert trim_caption("a red circle", config, 0.0) == "a red circle"


def test_all_keywords_or_one_of_them() -> None:
    caption = "a small red circle, blue"
    assert trim_caption(caption, trimming("blue", "red", single_token=False), 0.9) == "red, blue"
    assert [trim_caption(caption, trimming("blue", "red"), draw) for draw in (0.0, 0.49, 0.5, 0.999)] == [
        "red",
        "red",
        "blue",
        "blue",
    ]


@given(st.text(), st.lists(st.text(min_size=1), min_size=1, max_size=4), st.floats(0, 1, exclude_max=True))
def test_any_caption_becomes_one_of_its_keywords_or_stays(caption: str, keywords: list[str], draw: float) -> None:
    config = trimming(*keywords)
    trimmed = trim_caption(caption, config, draw)
    found = keywords_in(caption, config)
    assert trimmed in found if found else trimmed == caption
    assert trimmed in caption


@given(st.floats(0, 1), st.floats(0, 1))
def test_the_schedule_ends_at_nothing(probability: float, progress: float) -> None:
    constant = trimming("red", trim_prob=probability)
    linear = trimming("red", trim_prob=probability, trim_prob_schedule="linear")
    assert trim_probability(constant, progress) == probability
    assert trim_probability(linear, 0.0) == probability
    assert trim_probability(linear, 1.0) == 0.0
    assert 0 <= trim_probability(linear, progress) <= probability
    assert trim_probability(linear.model_copy(update={"enable": False}), progress) == 0.0


@pytest.fixture
def maker(tiny_checkpoint: Path) -> MicroBatchMaker:
    """Micro-batches of the three captions, in which every `red` and `green circle` is trimmed half of the time."""
    trims = {"enable": True, "trim_prob": 0.5, "keywords": ["red", "green circle"]}
    config = settings(ENCODER, {"model": {"caption_aug": trims}})
    return MicroBatchMaker(
        store=MemoryStore(24),
        wiring=wiring_for(config, torch.device("cpu")),
        model=config.model,
        levels=NoiseLevels(),
        tokenizer=load_tokenizer(tiny_checkpoint),
        dtype=torch.float32,
        patch=(1, 2, 2),
        seed=0,
    )


def texts_of(maker: MicroBatchMaker, batches) -> Counter[str]:
    """The prompts of micro-batches, read back from their tokens."""
    counts: Counter[str] = Counter()
    assert maker.tokenizer is not None
    for inputs, _ in batches:
        values = maker.wiring.given.unpack(inputs)
        for ids, length in zip(values["ids"], values["lengths"], strict=True):
            pieces = maker.tokenizer.convert_ids_to_tokens(ids[: int(length) - 1].tolist())
            counts["".join(pieces).replace("▁", " ").strip()] += 1
    return counts


def test_training_reads_trimmed_captions_and_evaluation_never_does(maker: MicroBatchMaker) -> None:
    store = maker.store
    plan = BatchPlan(store.sizes, range(24), 2, 2, 1, 0)
    steps = 4 * plan.steps_per_epoch
    trained = texts_of(maker, (batch for step in range(steps) for batch in maker.training(plan, step, steps)))
    seen = {store[item].caption for item in range(24)}
    assert set(trained) == {*seen, "red", "green circle"}
    assert 0.3 < trained["red"] / (trained["red"] + trained["a red circle moves left"]) < 0.7
    assert trained["a small blue square moves up on black"] == 32
    evaluated = texts_of(maker, maker.evaluation(range(24), 5, 0.5))
    assert evaluated == Counter(dict.fromkeys(seen, 8))


def test_a_step_is_the_same_whenever_it_is_computed(maker: MicroBatchMaker) -> None:
    plan = BatchPlan(maker.store.sizes, range(24), 2, 2, 2, 0)
    whole = list(maker.training(plan, 3, 20))
    shares = [batch for rank in range(2) for batch in maker.training(plan, 3, 20, rank, 2)]
    for first, second in zip(whole, shares, strict=True):
        for one, other in zip((*first[0], *first[1]), (*second[0], *second[1]), strict=True):
            assert torch.equal(one, other)
