"""Pairs are recorded side by side: on one trajectory, by window, block and token mean."""

import pytest
import torch

from latentloom.errors import ConfigError
from latentloom.steering.capture import capture_activations
from latentloom.steering.control.record import record_pairs
from latentloom.steering.projection import project
from latentloom.tensors import VideoLatents
from latentloom.wan.clip_size import ClipSize
from latentloom.wan.sampling import SamplingSettings, draw_noise

POSITIVE = ["A small red circle moves left.", "A red square.", "There is a large red cross."]
NEGATIVE = ["A small blue circle moves left.", "A green square.", "There is a large cyan cross."]


def test_the_context_is_the_mean_of_the_projected_tokens_in_every_block(micro_wan):
    positive, negative = micro_wan.encode(POSITIVE), micro_wan.encode(NEGATIVE)
    first, second = record_pairs(micro_wan, positive, negative, [0, 1, 2], "context")
    assert first.shape == second.shape == (3, 1, 6, 128)
    rows = project(micro_wan.transformer, positive)[1].tokens.mean(dim=0)
    torch.testing.assert_close(first[1, 0], rows.expand(6, -1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("site", ["attention_output", "hidden_states"])
def test_equal_sides_are_recorded_equal_and_others_are_not(micro_wan, site):
    text = micro_wan.encode(POSITIVE[:1])
    first, second = record_pairs(micro_wan, text, text, [0], site, [(0.0, 0.1)])
    assert torch.equal(first, second)
    first, second = record_pairs(micro_wan, text, micro_wan.encode(NEGATIVE[:1]), [0], site, [(0.0, 0.1)])
    # the first block's input knows nothing of the prompt yet
    differs = (first - second).abs().amax(dim=-1)[0, 0] > 0
    assert differs.tolist() == [site == "attention_output", True, True, True, True, True]


def test_the_first_step_is_what_a_capture_of_it_says(micro_wan):
    positive, negative = micro_wan.encode(POSITIVE[:1]), micro_wan.encode(NEGATIVE[:1])
    first, second = record_pairs(micro_wan, positive, negative, [7], "hidden_states", [(0.0, 0.05)])
    size, settings = ClipSize.for_model(micro_wan.facts), SamplingSettings.for_model(micro_wan.facts)
    assert settings.steps == 20
    noise = VideoLatents(draw_noise(micro_wan.grid.shape(size), [7]))
    for recorded, text in ((first, positive), (second, negative)):
        captured = capture_activations(micro_wan, noise, 999.0, text, range(6))
        means = torch.stack([captured.values[block].mean(dim=1)[0] for block in range(6)])
        torch.testing.assert_close(recorded[0, 0], means, atol=1e-4, rtol=1e-4)


def test_the_pipeline_is_as_before_and_mistakes_are_told(micro_wan):
    text = micro_wan.encode(POSITIVE)
    with pytest.raises(ConfigError, match="3 and 3 prompts with 2 seeds"):
        record_pairs(micro_wan, text, text, [0, 1], "context")
    with pytest.raises(ConfigError, match="no step of 20 falls into the window"):
        record_pairs(micro_wan, text, text, [0, 1, 2], "hidden_states", [(0.01, 0.04)])
    assert micro_wan.around_call is None
    assert not any(module._forward_pre_hooks for module in micro_wan.transformer.modules())
