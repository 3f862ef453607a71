"""The refiner of storyboards that comes with the package: it keeps keyframes and completes what the prompt says."""

import json
import re

import pytest
import torch

from latentloom.cli.shipped_refiner import shipped_refiner
from latentloom.drifting.clips.refiner_files import load_clip_refiner
from latentloom.micro.completion import evaluate_completions
from latentloom.storage import read_module
from latentloom.wan.checkpoints import load_text_encoder, load_tokenizer
from latentloom.wan.shipped import micro_wan_weights
from latentloom.wan.text_encoder import WanTextEncoder

NUM_CLIPS = 8


@pytest.fixture(scope="module")
def completions():
    refiner, config = load_clip_refiner(shipped_refiner())
    root = micro_wan_weights()
    encoder = WanTextEncoder(load_text_encoder(root), load_tokenizer(root))
    return evaluate_completions(refiner, config, encoder, NUM_CLIPS, seed=7)


def test_both_keyframes_come_back_bit_for_bit(completions):
    assert completions.num_kept == completions.num_clips == NUM_CLIPS


def test_completed_clips_show_what_the_prompt_says(completions):
    read = completions.to_json()["read"]
    assert read["refiner"]["accuracy"]["all"]["right"] >= NUM_CLIPS - 1
    middle, faded = (
        read[f"{name}, middle frame"]["accuracy"]["all"]["right"] for name in ("refiner", "linear interpolation")
    )
    assert middle > faded


def test_the_file_names_no_place_of_the_machine_it_was_made_on():
    stored = read_module(shipped_refiner())
    text = json.dumps([stored.config, stored.record])
    assert not re.search(r"(^|[\s\"'])/", text)
    assert "datasets/world/train" in text
    assert stored.tensors["network.position"].dtype == torch.float16
