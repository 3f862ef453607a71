"""Arithmetic nodes: the numbers of the library in the host's own texts, and a record only where one was asked for."""

import pytest
import torch
from comfy_nodes.hosts import BY_ID, Rig, assert_same_state, state_of

from latentloom.comfy.execute import execute
from latentloom.comfy.hosts import host_named
from latentloom.comfy.store import encoder_name, open_store
from latentloom.errors import ConfigError, ShapeError
from latentloom.steering.embeddings.arithmetic import add, prompt_norms
from latentloom.steering.embeddings.difference import relative_difference
from latentloom.steering.embeddings.interpolation import interpolate
from latentloom.tensors import TextEmbeddings

DIFFERENCE, ARITHMETIC = "WanVideoVectorDifference", "WanVideoVectorArithmetic"
INTERPOLATION, AMPLIFIER = "WanVideoVectorInterpolation", "WanVideoEmbeddingAmplifier"
RED, GREEN = "A small red circle moves to the left.", "A large green cross moves up on a white background."
BLUE = "A blue square."


@pytest.fixture(autouse=True)
def _own_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LATENTLOOM_STORE", raising=False)


def encoded(rig: Rig, prompt: str) -> TextEmbeddings:
    return rig.pipeline.encode([prompt])


def assert_same(one: TextEmbeddings, other: TextEmbeddings) -> None:
    assert torch.equal(one.lengths, other.lengths)
    assert torch.equal(one.tokens, other.tokens)


def shown(rig: Rig, node: str, **inputs) -> str:
    return rig.run_and_show(node, **inputs)[1]["text"][0]


def test_a_step_beyond_the_last_is_refused_before_anything_runs():
    check = BY_ID["WanVideoVectorInterpolation"].check
    assert check is not None
    assert check(5, 4) is None
    assert check(5) is None
    assert "give 0 to 4" in str(check(5, 5))


def test_a_style_is_subtracted_and_added_as_the_document_does(rig):
    style = rig.run(DIFFERENCE, text_embeds_a=rig.text(RED), text_embeds_b=rig.text(BLUE))[0]
    made = rig.run(ARITHMETIC, base_embeds=rig.text(GREEN), operation="add", operand_1=style, weight_1=0.5)[0]
    red, blue, green = (encoded(rig, prompt) for prompt in (RED, BLUE, GREEN))
    rows = [each.padded(512) for each in (green, red, blue)]
    assert torch.allclose(rig.embeddings(made).padded(512), rows[0] + 0.5 * (rows[1] - rows[2]), atol=1e-6)


def test_a_normalized_difference_has_the_scale_as_its_norm(rig):
    made = rig.run(DIFFERENCE, text_embeds_a=rig.text(RED), text_embeds_b=rig.text(BLUE), normalize=True, scale=2.5)[0]
    assert prompt_norms(rig.embeddings(made)).item() == pytest.approx(2.5, rel=1e-5)


def test_each_operand_counts_with_its_own_weight(rig):
    made = rig.run(
        ARITHMETIC,
        base_embeds=rig.text(RED),
        operation="add",
        operand_1=rig.text(GREEN),
        weight_1=0.25,
        operand_3=rig.text(BLUE),
        weight_2=9.0,  # of no operand
        weight_3=-2.0,
    )[0]
    assert_same(
        rig.embeddings(made),
        add(*(encoded(rig, prompt) for prompt in (RED, GREEN, BLUE)), weights=[1, 0.25, -2]).embeddings,
    )


@pytest.mark.parametrize("operation", ["add", "weighted_sum", "multiply", "normalize"])
def test_operations_are_what_their_names_say(rig, operation):
    red, green = (encoded(rig, prompt).padded(512) for prompt in (RED, GREEN))
    inputs = {"base_embeds": rig.text(RED), "operation": operation, "operand_1": rig.text(GREEN), "weight_1": -3.0}
    made = rig.embeddings(rig.run(ARITHMETIC, **inputs)[0]).padded(512)
    total = red - 3 * green
    expected = {
        "add": total,
        "weighted_sum": total / 4,
        "multiply": red * (-3 * green),
        "normalize": total / total.norm(),
    }
    assert torch.allclose(made, expected[operation], atol=1e-5)


def test_the_node_shows_how_lengths_were_aligned_and_the_norms(rig):
    lengths = [int(encoded(rig, prompt).lengths) for prompt in (RED, BLUE)]
    text = shown(rig, ARITHMETIC, base_embeds=rig.text(RED), operation="add", operand_1=rig.text(BLUE))
    assert f"{lengths[0]} and {lengths[1]} tokens padded with zeros to {max(lengths)}" in text
    assert f"norms {prompt_norms(encoded(rig, RED)).item():.4g}; " in text
    assert "no operand is linked" in shown(rig, ARITHMETIC, base_embeds=rig.text(RED), operation="add")


@pytest.mark.parametrize("method", ["linear", "spherical", "cubic"])
def test_the_steps_are_those_of_the_library_and_the_ends_are_the_prompts(rig, method):
    inputs = {"start_embeds": rig.text(RED), "end_embeds": rig.text(GREEN), "method": method, "steps": 4}
    expected = interpolate(encoded(rig, RED), encoded(rig, GREEN), method=method, steps=4).embeddings
    steps = [rig.embeddings(rig.run(INTERPOLATION, **inputs, position=position)[0]) for position in range(4)]
    for position, step in enumerate(steps):
        assert_same(step, expected[[position]])
    assert_same(steps[0], encoded(rig, RED))
    assert_same(steps[3], encoded(rig, GREEN))
    inner = rig.run(INTERPOLATION, **inputs, position=0, include_endpoints=False)[0]
    assert not torch.equal(rig.embeddings(inner).padded(512), steps[0].padded(512))


def test_all_steps_are_prompts_of_one_text(rig):
    inputs = {"start_embeds": rig.text(RED), "end_embeds": rig.text(GREEN), "position": -1}
    (sequence,), messages = rig.run_and_show(INTERPOLATION, **inputs)
    assert_same(rig.embeddings(sequence), interpolate(encoded(rig, RED), encoded(rig, GREEN)).embeddings)
    if rig.host == "native":  # one entry, whose rows go to the clips of a batch
        assert [list(rows.shape) for rows, _ in sequence] == [[5, 512, encoded(rig, RED).dim]]
    else:
        assert len(sequence["prompt_embeds"]) == 5
        assert "needs 17 frames or more" in messages["text"][0]
    # and a sequence is an operand as well
    more = rig.run(ARITHMETIC, base_embeds=rig.text(RED), operation="add", operand_1=sequence)[0]
    assert len(rig.embeddings(more)) == 5


def test_without_a_word_one_host_gets_one_prompt_and_the_other_the_sequence(rig):
    made = rig.embeddings(rig.run(INTERPOLATION, start_embeds=rig.text(RED), end_embeds=rig.text(GREEN))[0])
    assert len(made) == (1 if rig.host == "native" else 5)
    # the same where a saved workflow does not have the widget
    node = rig.node(INTERPOLATION)
    settings = {"steps": 5, "method": "linear", "include_endpoints": True}
    old = execute(node, {"start_embeds": rig.text(RED), "end_embeds": rig.text(GREEN), **settings}, None)[0][0]
    assert_same(rig.embeddings(old), made)


def test_a_position_beyond_the_steps_is_refused(rig):
    with pytest.raises(ConfigError, match="position=5 of 5 steps; give 0 to 4, or -1 for all"):
        rig.run(INTERPOLATION, start_embeds=rig.text(RED), end_embeds=rig.text(GREEN), position=5)


def test_a_position_of_two_pairs_of_prompts_is_one_prompt_of_each_pair(rig):
    starts = rig.run(INTERPOLATION, start_embeds=rig.text(RED), end_embeds=rig.text(BLUE), steps=2, position=-1)[0]
    made = rig.run(INTERPOLATION, start_embeds=starts, end_embeds=rig.text(GREEN), steps=3, position=0)[0]
    assert_same(rig.embeddings(made), rig.embeddings(starts))


@pytest.mark.parametrize("mode", ["push_apart", "maximize_diff", "orthogonalize"])
def test_the_target_is_met_and_said(rig, mode):
    inputs = {"main_embeds": rig.text(RED), "injection_embeds": rig.text(GREEN), "amplification_mode": mode}
    injection, info, main = rig.run(AMPLIFIER, **inputs, target_difference=141.0)
    reached = relative_difference(rig.embeddings(injection), rig.embeddings(main)).item()
    assert reached == pytest.approx(1.41, rel=1e-3)
    assert f"{reached:.1%} apart" in info
    assert f"before: {relative_difference(encoded(rig, GREEN), encoded(rig, RED)).item():.1%} apart" in info
    assert "of the values differ by more than 0.01" in info
    norms = [rig.embeddings(injection).tokens.norm(dim=1), encoded(rig, GREEN).tokens.norm(dim=1)]
    assert torch.allclose(*norms, rtol=1e-4)
    moved = not torch.equal(rig.embeddings(main).tokens, encoded(rig, RED).tokens)
    assert moved == (mode == "push_apart")


@pytest.mark.parametrize("target", [0.0, 60.0])
def test_prompts_that_differ_enough_stay_as_they_are(rig, target):
    injection, info, main = rig.run(
        AMPLIFIER, main_embeds=rig.text(RED), injection_embeds=rig.text(GREEN), target_difference=target
    )
    assert_same(rig.embeddings(injection), encoded(rig, GREEN))
    assert_same(rig.embeddings(main), encoded(rig, RED))
    assert "apart" in info


def test_what_cannot_be_done_is_one_line(rig):
    with pytest.raises(ConfigError, match="the two do not differ") as same:
        rig.run(AMPLIFIER, main_embeds=rig.text(RED), injection_embeds=rig.text(RED))
    with pytest.raises(ConfigError, match="weights") as weights:
        rig.run(
            ARITHMETIC,
            base_embeds=rig.text(RED),
            operation="add",
            operand_1=rig.text(RED),
            weight_1=float("nan"),
        )
    nothing = rig.run(DIFFERENCE, text_embeds_a=rig.text(RED), text_embeds_b=rig.text(RED))[0]
    with pytest.raises(ShapeError, match="holds no tokens") as empty:
        rig.run(DIFFERENCE, text_embeds_a=nothing, text_embeds_b=rig.text(RED))
    assert all("\n" not in str(raised.value) for raised in (same, weights, empty))


def test_inputs_stay_and_everything_else_of_the_first_text_is_kept(rig):
    first, second = rig.text(RED, negative="blurred"), rig.text(GREEN)
    before = state_of([first, second])
    made = [
        rig.run(DIFFERENCE, text_embeds_a=first, text_embeds_b=second)[0],
        rig.run(ARITHMETIC, base_embeds=first, operation="add", operand_1=second)[0],
        rig.run(INTERPOLATION, start_embeds=first, end_embeds=second, position=1)[0],
        rig.run(AMPLIFIER, main_embeds=second, injection_embeds=first, target_difference=140.0)[0],
    ]
    assert_same_state([first, second], before)
    for text in made:
        if rig.host == "native":
            assert text[0][1] == first[0][1]
        else:
            assert torch.equal(text["negative_prompt_embeds"][0], first["negative_prompt_embeds"][0])


def test_half_precision_comes_back_as_it_was_given(rig):
    text = rig.text(RED)
    half = (
        [[text[0][0].half(), text[0][1]]]
        if rig.host == "native"
        else {**text, "prompt_embeds": [text["prompt_embeds"][0].half()]}
    )
    made = rig.run(INTERPOLATION, start_embeds=half, end_embeds=half)[0]
    assert rig.embeddings(made).dtype == torch.float16


@pytest.mark.parametrize("rig", ["native"], indirect=True)
class TestTracking:
    """On one host: what is written is the same for both, but for the encoder's name."""

    def test_the_hosts_have_encoders_of_their_own(self, rig):
        assert encoder_name(host_named("native"), 4096) == "comfyui-native:4096"
        assert encoder_name(host_named("wrapper"), 4096) == "wan-video-wrapper:4096"

    def test_nothing_is_written_unasked(self, rig):
        rig.run(DIFFERENCE, text_embeds_a=rig.text(RED), text_embeds_b=rig.text(GREEN))
        rig.run(ARITHMETIC, base_embeds=rig.text(RED), operation="add", operand_1=rig.text(GREEN))
        rig.run(INTERPOLATION, start_embeds=rig.text(RED), end_embeds=rig.text(GREEN))
        assert not open_store().path.parent.exists()

    def test_operands_result_and_settings_are_recorded(self, rig):
        inputs = {"text_embeds_a": rig.text(RED), "text_embeds_b": rig.text(GREEN), "scale": 0.5, "store_in_db": True}
        text = shown(rig, DIFFERENCE, **inputs)
        store = open_store()
        (operation,) = store.operations()
        assert operation.kind == "difference"
        assert operation.parameters == {"normalize": False, "scale": 0.5}
        assert operation.seconds > 0
        kept = [item.embeddings for item in store.get_many([*operation.inputs, *operation.outputs])]
        red, green = (encoded(rig, prompt).to(dtype=torch.float16) for prompt in (RED, GREEN))
        assert_same(kept[0], red)
        assert_same(kept[1], green)
        made = rig.embeddings(rig.run(DIFFERENCE, **{**inputs, "store_in_db": False})[0])
        assert torch.allclose(kept[2].tokens.float(), made.tokens, atol=1e-2)
        assert f"stored as operation 1 ({operation.inputs[0][:8]}, " in text
        assert {entry.encoder for entry in store.entries()} == {f"comfyui-native:{red.dim}"}

    def test_the_whole_sequence_is_kept_though_one_step_goes_out(self, rig):
        inputs = {"start_embeds": rig.text(RED), "end_embeds": rig.text(GREEN), "steps": 4, "position": 1}
        rig.run(INTERPOLATION, **inputs, store_in_db=True)
        (operation,) = open_store().operations()
        assert (operation.kind, len(operation.inputs), len(operation.outputs)) == ("interpolate", 2, 4)
        assert operation.outputs[0] == operation.inputs[0]  # the same content is one row
        assert operation.parameters == {"steps": 4, "method": "linear", "include_endpoints": True}

    def test_a_step_of_arithmetic_finds_what_the_step_before_stored(self, rig):
        style = rig.run(DIFFERENCE, text_embeds_a=rig.text(RED), text_embeds_b=rig.text(GREEN), store_in_db=True)[0]
        rig.run(
            ARITHMETIC, base_embeds=rig.text(BLUE), operation="add", operand_1=style, weight_1=0.5, store_in_db=True
        )
        last, first = open_store().operations()
        assert last.inputs[1] == first.outputs[0]
        assert last.parameters == {"weights": [1.0, 0.5]}

    def test_the_store_is_that_of_the_variable_where_it_is_set(self, rig, tmp_path, monkeypatch):
        monkeypatch.setenv("LATENTLOOM_STORE", str(tmp_path / "mine.duckdb"))
        rig.run(DIFFERENCE, text_embeds_a=rig.text(RED), text_embeds_b=rig.text(GREEN), store_in_db=True)
        assert (tmp_path / "mine.duckdb").is_file()
        assert not (tmp_path / "user").exists()
