"""The verbs of `latentloom embed` that work on files: right numbers, provenance, one line for every mistake."""

import json
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from steering.random_prompts import random_prompts

from latentloom.cli.main import run
from latentloom.steering.embeddings.amplify import amplify
from latentloom.steering.embeddings.arithmetic import add, difference, prompt_norms
from latentloom.steering.embeddings.difference import relative_difference
from latentloom.steering.embeddings.interpolation import interpolate
from latentloom.storage import load_object, save_object
from latentloom.storage.modules import read_origin
from latentloom.tensors import TextEmbeddings

FIRST, SECOND = random_prompts([5], 1, dim=16), random_prompts([3], 2, dim=16)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a test, with two files of embeddings and the one beneath `run`."""
    monkeypatch.chdir(tmp_path)
    save_object("a.safetensors", FIRST, {"prompts": ["gothic"], "encoder": "one", "dtype": "float32"})
    save_object("b.safetensors", SECOND, {"prompts": ["plain"], "encoder": "one", "dtype": "float32"})
    return tmp_path


def embed(*words: str) -> dict[str, Any]:
    """What the command reports, after it has succeeded."""
    assert run(["embed", *words, "--json", "report.json"]) == 0
    return json.loads(Path("report.json").read_text())


def stored(name: str) -> TextEmbeddings:
    return load_object(name, TextEmbeddings)


def record(name: str) -> dict[str, Any]:
    found = read_origin(name).record
    assert found is not None
    return found


@pytest.mark.usefixtures("here")
class TestNumbers:
    def test_diff_is_the_difference(self):
        report = embed(
            "diff", "a.safetensors", "b.safetensors", "--normalize", "--scale", "2", "--out", "d.safetensors"
        )
        torch.testing.assert_close(stored("d.safetensors").tokens, difference(FIRST, SECOND, True, 2).embeddings.tokens)
        assert report["norms"] == pytest.approx([2.0])
        assert [each["norms"][0] for each in report["operands"]] == pytest.approx(
            [prompt_norms(each).item() for each in (FIRST, SECOND)]
        )
        assert report["alignment"] == {"method": "pad", "before": [[5], [3]], "after": [5]}
        expected = relative_difference(FIRST, SECOND).tolist()
        assert report["relative_differences"] == {"between_operands": pytest.approx(expected)}
        report = embed("diff", "a.safetensors", "b.safetensors", "--align", "truncate", "--out", "d.safetensors")
        assert (report["lengths"], report["alignment"]["method"]) == ([3], "truncate")

    def test_add_is_the_sum_by_weight(self):
        report = embed("add", "a.safetensors", "b.safetensors", "--weights", "1,-0.5", "--out", "s.safetensors")
        expected = add(FIRST, SECOND, weights=(1, -0.5)).embeddings
        assert torch.equal(stored("s.safetensors").tokens, expected.tokens)
        apart = [relative_difference(each, expected).tolist() for each in (FIRST, SECOND)]
        assert report["relative_differences"]["to_operands"] == [pytest.approx(each) for each in apart]

    @pytest.mark.parametrize(
        ("operation", "norm"),
        [("add", 3.0), ("weighted_sum", 1.0), ("multiply", 1.0), ("normalize", 1.0)],
    )
    def test_add_has_four_operations_and_takes_more_than_four_files(self, operation: str, norm: float):
        one = TextEmbeddings(torch.eye(1, 16), torch.tensor([1]))
        save_object("one.safetensors", one)
        for count in (3, 5):
            report = embed("add", *["one.safetensors"] * count, "--operation", operation, "--out", "s.safetensors")
            assert report["norms"] == [count if operation == "add" else norm]
            assert report["operation"] == operation

    def test_interpolate_writes_the_whole_sequence(self):
        words = ["interpolate", "a.safetensors", "b.safetensors", "--method", "spherical", "--steps", "4"]
        report = embed(*words, "--out", "i.safetensors")
        sequence = stored("i.safetensors")
        assert torch.equal(sequence.tokens, interpolate(FIRST, SECOND, method="spherical", steps=4).embeddings.tokens)
        assert report["lengths"] == [5, 5, 5, 3]
        expected = [relative_difference(sequence[step], sequence[step + 1]).item() for step in range(3)]
        assert report["relative_differences"]["between_steps"] == [pytest.approx(expected)]
        report = embed(*words, "--no-endpoints", "--out", "i.safetensors")
        assert report["lengths"] == [5, 5, 5, 5]

    def test_interpolate_leads_through_several_files_and_prompts(self):
        save_object("batch.safetensors", random_prompts([2, 4], 3, dim=16))
        files = ["a.safetensors", "batch.safetensors", "b.safetensors"]
        report = embed("interpolate", *files, "--method", "cubic", "--steps", "3", "--out", "i.safetensors")
        assert report["lengths"] == [5, 2, 3, 5, 4, 3]
        assert len(report["relative_differences"]["between_steps"]) == 2

    @pytest.mark.parametrize("method", ["push_apart", "maximize_diff"])
    def test_amplify_reaches_its_target(self, method: Literal["push_apart", "maximize_diff"]):
        words = ["amplify", "a.safetensors", "b.safetensors", "--method", method, "--target", "1.6"]
        report = embed(*words, "--out", "m.safetensors")
        assert report["relative_differences"]["reached"] == pytest.approx([1.6], abs=1e-3)
        expected = amplify(FIRST, SECOND, method, 1.6)
        assert torch.equal(stored("m.safetensors").tokens, expected.first.tokens)
        assert Path("m-second.safetensors").exists() == (method == "push_apart")
        if method == "push_apart":
            assert torch.equal(stored("m-second.safetensors").tokens, expected.second.tokens)
            embed(*words, "--out", "m.safetensors", "--out-second", "other.safetensors")
            assert torch.equal(stored("other.safetensors").tokens, expected.second.tokens)

    def test_amplify_says_when_nothing_had_to_move(self, capsys: pytest.CaptureFixture[str]):
        report = embed("amplify", "a.safetensors", "b.safetensors", "--target", "0.6", "--out", "m.safetensors")
        assert (report["strength"], report["relative_differences"]["moved"]) == ([0.0], [0.0])
        assert "0 of 1 moved" in capsys.readouterr().out
        assert torch.equal(stored("m.safetensors").tokens, FIRST.tokens)


@pytest.mark.usefixtures("here")
class TestProvenance:
    def test_a_result_remembers_its_operands_and_theirs(self):
        embed("diff", "a.safetensors", "b.safetensors", "--out", "style.safetensors")
        embed("add", "a.safetensors", "style.safetensors", "--weights", "1,0.5", "--out", "sum.safetensors")
        made = record("sum.safetensors")
        assert (made["operation"], made["parameters"], made["encoder"]) == ("add", {"weights": [1.0, 0.5]}, "one")
        plain, style = made["operands"]
        assert (plain["file"], plain["prompts"]) == ("a.safetensors", ["gothic"])
        assert (style["operation"], [each["prompts"] for each in style["operands"]]) == (
            "difference",
            [["gothic"], ["plain"]],
        )
        assert made["alignment"]["after"] == [5]

    def test_files_of_two_encoders_do_not_mix_unless_asked_to(self, capsys: pytest.CaptureFixture[str]):
        save_object("other.safetensors", SECOND, {"encoder": "two"})
        words = ["embed", "diff", "a.safetensors", "other.safetensors", "--out", "d.safetensors"]
        assert run(words) == 2
        assert "a.safetensors is of encoder one and other.safetensors of two" in refusal(capsys)
        assert run([*words, "--allow-mixed-encoders"]) == 0
        assert record("d.safetensors")["encoder"] == "one+two"
        assert run(["embed", "add", "a.safetensors", "d.safetensors", "--out", "s.safetensors"]) == 2

    def test_a_file_of_unknown_encoder_is_taken(self):
        save_object("unknown.safetensors", SECOND)
        assert embed("diff", "a.safetensors", "unknown.safetensors", "--out", "d.safetensors")["encoder"] == "one"

    def test_half_precision_stays_half_precision(self):
        save_object("half.safetensors", FIRST.to(dtype=torch.bfloat16), {"encoder": "one"})
        report = embed("add", "half.safetensors", "half.safetensors", "--out", "s.safetensors")
        assert (report["dtype"], stored("s.safetensors").dtype) == ("bfloat16", torch.bfloat16)


def refusal(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.err.startswith("latentloom: ")
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("diff a b --scale NaN", "scale nan; give finite numbers"),
        ("diff a b c", "unexpected extra argument"),
        ("diff a", "Missing argument 'B'"),
        ("diff a missing", "missing.safetensors does not exist"),
        ("diff a notes", "notes.safetensors"),
        ("diff a wide", "operands of widths 16 and 8"),
        ("diff nan b", "nan.safetensors holds NaN or infinite values in 1 of 2 tokens"),
        ("diff a inf", "inf.safetensors holds NaN or infinite"),
        ("diff a empty", "empty.safetensors holds no tokens"),
        ("diff a eight", "eight.safetensors is of float8_e4m3fn"),
        ("diff a b --align stretch", "'stretch' is not one of"),
        ("diff three two", "operands of 3 and 2 prompts"),
        ("add a", "give at least 2"),
        ("add a b --weights 1", "1 weights for 2 operands"),
        ("add a b --weights 1,x", "--weights 1,x is not understood"),
        ("add a b --weights 1,inf", "give finite numbers"),
        ("add a b --operation divide", "'divide' is not one of"),
        ("add a b --operation weighted_sum --weights 0,0", "are all zero"),
        ("interpolate a b --steps 1", "steps=1 is out of range; give 2 to 20"),
        ("interpolate a b --steps 21", "steps=21 is out of range"),
        ("interpolate a", "give two or more"),
        ("interpolate a b --method bezier", "'bezier' is not one of"),
        ("amplify a b --target 0", "target=0.0 is out of range"),
        ("amplify a b --target 60", "it cannot be more than"),
        ("amplify a a --target 0.6", "the two do not differ"),
        ("amplify a b --method maximize_diff --out-second c", "--out-second has no effect"),
        ("amplify a b --out-second out", "are both out.safetensors"),
        ("amplify a b --method shout", "'shout' is not one of"),
    ],
)
def test_mistakes_get_one_line_and_write_nothing(
    words: str, message: str, here: Path, capsys: pytest.CaptureFixture[str]
):
    bad = FIRST.tokens[:2].clone()
    bad[0, 0] = float("nan")
    for name, embeddings in {
        "nan": TextEmbeddings(bad, torch.tensor([2])),
        "inf": TextEmbeddings(bad / 0, torch.tensor([2])),
        "empty": TextEmbeddings(torch.zeros(0, 16), torch.tensor([0])),
        "eight": FIRST.to(dtype=torch.float8_e4m3fn),
        "wide": random_prompts([3], dim=8),
        "two": random_prompts([3, 4], dim=16),
        "three": random_prompts([3, 4, 5], dim=16),
    }.items():
        save_object(f"{name}.safetensors", embeddings)
    Path("notes.safetensors").write_text("no tensors")
    verb, *rest = words.split()
    files = [
        f"{word}.safetensors" if Path(f"{word}.safetensors").exists() or word in "missing c out" else word
        for word in rest
    ]
    assert run(["embed", verb, *files, "--out", "out.safetensors"]) == 2
    assert message in refusal(capsys)
    assert not (here / "out.safetensors").exists()
