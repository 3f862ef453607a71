"""`latentloom delta train`, `eval` and `apply`, and `generate --delta`, from pairs to clips on MicroWan."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from latentloom.cli import delta_eval
from latentloom.cli.main import run
from latentloom.delta.baselines import fit_mean, identity_adapter
from latentloom.delta.files import load_embdelta_adapter, save_adapter
from latentloom.delta.model import apply_deltas
from latentloom.storage import load_object, save_object
from latentloom.storage.modules import read_origin
from latentloom.tensors import TextEmbeddings
from latentloom.wan.pipeline import WanPipeline

QUICK = ["--epochs", "3", "--cap", "1", "--init", "zero", "--rank", "4"]
SMALL = ["--num-frames", "5", "--height", "16", "--width", "32", "--steps", "2", "--device", "cpu"]
DIM = 16  # of the tiny checkpoint


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty pairs, encoded by MicroWan."""
    folder = tmp_path_factory.mktemp("delta")
    assert run(["delta", "pairs", "--num", "40", "--out", str(folder / "p.jsonl")]) == 0
    out = folder / "c.safetensors"
    assert run(["delta", "cache", "--jsonl", str(folder / "p.jsonl"), "--out", str(out), "--device", "cpu"]) == 0
    return out


@pytest.fixture(scope="module")
def trained(cache: Path) -> Path:
    """The folder of a training of three epochs."""
    folder = cache.parent / "run"
    assert run(["delta", "train", "--cache", str(cache), "--out-dir", str(folder), *QUICK]) == 0
    return folder


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with `e.safetensors`, an adapter `a.safetensors` that moves it, and `wide.safetensors`."""
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(5, DIM, generator=generator)
    save_object(Path("e.safetensors"), TextEmbeddings(tokens, torch.tensor([2, 3])), {"model": "tiny"})
    save_adapter(Path("a.safetensors"), fit_mean(*torch.randn(2, 4, DIM, generator=generator)))
    save_adapter(Path("wide.safetensors"), identity_adapter(DIM + 1))
    return tmp_path


def refusal(capsys: pytest.CaptureFixture[str]) -> str:
    output = capsys.readouterr()
    lines = output.err.strip().splitlines()
    assert len(lines) == 1, lines
    assert output.out == ""
    return lines[0]


# ---- train and eval


def test_a_training_can_be_repeated_and_prints_pure_json(cache: Path, trained: Path, capsys):
    capsys.readouterr()
    arguments = ["delta", "train", "--cache", str(cache), "--out-dir", str(trained), *QUICK, "--json", "-"]
    assert run(arguments) == 0
    output = capsys.readouterr()
    report = json.loads(output.out)
    names = ["no adapter", "mean delta", "ridge", "SGD from zero, cap 1"]
    assert [item["name"] for item in report["candidates"]] == names
    assert report["candidates"][-1]["epochs"] == 3
    assert (report["chosen"], report["out_dir"]) == (
        json.loads((trained / "metrics.json").read_text())["chosen"],
        str(trained),
    )
    assert (report["settings"]["cap"], report["settings"]["rank"], report["settings"]["orth"]) == (1.0, 4, True)
    assert report["cache"] == json.loads((trained / "cache.json").read_text())
    assert report["decision"] in output.err
    assert all(name in output.err for name in names)


def test_an_evaluation_measures_pairs_the_dit_and_the_clips(cache, trained, tmp_path: Path, capsys, monkeypatch):
    whole = delta_eval.matching_pipeline

    def hasty(*arguments: Any) -> WanPipeline | None:
        found = whole(*arguments)
        return found and replace(found, facts=replace(found.facts, steps=2))

    monkeypatch.setattr(delta_eval, "matching_pipeline", hasty)
    adapter = trained / "embdelta_adapter.pt"
    arguments = ["delta", "eval", "--cache", str(cache), "--adapter", str(adapter), "--out-dir", str(tmp_path / "new")]
    assert run([*arguments, "--num-prompts", "2", "--json", "-"]) == 0
    output = capsys.readouterr()
    report = json.loads(output.out)
    labels = ["no adapter", "mean delta", "ridge", "adapter"]
    assert report["num_pairs"] == 4
    assert report["test"].startswith("the 4 test pairs of the cache")
    assert list(report["output_change"]) == labels
    assert report["output_change"]["no adapter"] == {"base": 0.0, "rewritten": 0.0}
    assert report["output_change"]["ridge"]["base"] > 0.01
    assert list(report["accuracy"]["sets"]) == labels
    assert report["accuracy"]["sets"]["ridge"]["verbose"]["num_prompts"] == 2
    assert set(report["accuracy"]["recovered"]) == {"unseen synonyms", "telegraphic"}
    assert set(report["accuracy"]["recovered"]["telegraphic"]) == set(labels[1:])
    page = (tmp_path / "new" / "report.html").read_text("utf-8")
    assert "What the DiT answers" in page
    assert "What the clips show" in page
    assert "of the gap" in output.err


def test_without_the_model_that_encoded_the_cache_only_pairs_are_measured(cache, trained, tmp_path, tiny_checkpoint):
    from latentloom.delta.cache import read_cache, write_cache

    pairs = read_cache(cache)
    write_cache(tmp_path / "c.npz", type(pairs)(pairs.base, pairs.rewritten, pairs.pairs, None))
    arguments = ["delta", "eval", "--cache", str(tmp_path / "c.npz"), "--out-dir", str(tmp_path / "eval")]
    arguments += ["--adapter", str(trained / "embdelta_adapter.safetensors")]
    assert run([*arguments, "--json", str(tmp_path / "out.json")]) == 0
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["num_pairs"] == 4
    assert not {"output_change", "accuracy"} & set(report)


@pytest.mark.parametrize(
    ("verb", "arguments", "message"),
    [
        ("train", ["--cap", "much"], "--cap much is not understood; give a number above 0 such as 0.22, or auto"),
        ("train", ["--cap", "0"], "cap"),
        ("train", ["--cap", "nan"], "cap"),
        ("train", ["--lr", "-1"], "lr"),
        ("train", ["--val-frac", "0.99"], "40 pairs with val_frac=0.99"),
        ("train", ["--init", "random"], "random"),
        ("train", ["--cache", "none.npz"], "none.npz"),
        ("train", ["--out-dir", "{run}"], "holds a run with other settings; give another --out_dir"),
        ("eval", ["--adapter", "none.pt"], "none.pt"),
        ("eval", ["--adapter", "wide.safetensors"], "17"),
        ("eval", ["--num-prompts", "-1"], "num-prompts"),
    ],
)
def test_a_mistake_about_training_is_one_line(
    inputs, cache, trained, capsys, verb: str, arguments: list[str], message: str
):
    capsys.readouterr()
    before = sorted(inputs.iterdir())
    given = ["--cache", str(cache), "--out-dir", "new"]
    if verb == "eval":
        given += ["--adapter", str(trained / "embdelta_adapter.safetensors")]
    given += [argument.format(run=trained) for argument in arguments]
    assert run(["delta", verb, *given]) == 2
    assert message in refusal(capsys)
    assert sorted(inputs.iterdir()) == before


def test_a_checkpoint_that_did_not_encode_the_cache_is_refused(inputs, cache, trained, tiny_checkpoint, capsys):
    arguments = ["--adapter", str(trained / "embdelta_adapter.pt"), "--out-dir", "new"]
    assert run(["delta", "eval", "--cache", str(cache), *arguments, "--ckpt-root", str(tiny_checkpoint)]) == 2
    assert "did not encode this cache; give the checkpoint that did" in capsys.readouterr().err
    assert not Path("new").exists()


# ---- apply


def test_applying_writes_what_the_adapters_give(inputs: Path, capsys):
    arguments = ["--adapter", "a.safetensors", "--adapter", "a.safetensors", "--strength", "1", "--strength", "0.5"]
    assert run(["delta", "apply", "e.safetensors", *arguments, "--out", "new/o.safetensors", "--json", "-"]) == 0
    report = json.loads(capsys.readouterr().out)
    before, after = (load_object(Path(name), TextEmbeddings) for name in ("e.safetensors", "new/o.safetensors"))
    adapter = load_embdelta_adapter("a.safetensors")
    torch.testing.assert_close(after.tokens, apply_deltas(before, [adapter, adapter], [1.0, 0.5]).tokens)
    assert not torch.allclose(after.tokens, before.tokens)
    shares = (after.tokens - before.tokens).norm(dim=1) / before.tokens.norm(dim=1)
    assert report["mean_relative_change"] == pytest.approx(shares.mean().item(), rel=1e-5)
    applied = [{"file": "a.safetensors", "strength": 1.0}, {"file": "a.safetensors", "strength": 0.5}]
    assert report["delta"] == applied
    assert read_origin(Path("new/o.safetensors")).record == {"model": "tiny", "delta": applied}


def test_a_strength_of_zero_changes_nothing(inputs: Path):
    arguments = ["--adapter", "a.safetensors", "--strength", "0", "--out", "o.safetensors"]
    assert run(["delta", "apply", "e.safetensors", *arguments]) == 0
    before, after = (load_object(Path(name), TextEmbeddings) for name in ("e.safetensors", "o.safetensors"))
    assert torch.equal(after.tokens, before.tokens)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--strength", "1", "--strength", "2"], "2 strengths for 1 adapters; give one for all, or one each"),
        (["--strength", "nan"], "give finite numbers, 1 is as trained"),
        (["--strength", "inf"], "give finite numbers"),
        (["--strength", "much"], "much"),
        (["--adapter", "wide.safetensors"], "17"),
        (["--adapter", "none.safetensors"], "none.safetensors"),
        (["--adapter", "e.safetensors"], "give an adapter that `latentloom delta train` wrote"),
        (["--out", "e.safetensors/o"], "cannot write"),
    ],
)
def test_a_mistake_about_applying_is_one_line(inputs: Path, capsys, arguments: list[str], message: str):
    before = sorted(inputs.iterdir())
    assert run(["delta", "apply", "e.safetensors", "--adapter", "a.safetensors", *arguments]) == 2
    assert message in refusal(capsys)
    assert sorted(inputs.iterdir()) == before


# ---- generate


def test_a_clip_with_an_adapter_is_another_and_at_strength_zero_the_same(inputs: Path, tiny_checkpoint, capsys):
    def clip(name: str, *options: str) -> bytes:
        given = ["generate", "a red circle", "--ckpt-root", str(tiny_checkpoint), *SMALL, *options]
        assert run([*given, "--seed", "4", "--out", name]) == 0
        return Path(name).read_bytes()

    plain = clip("plain.png")
    assert clip("off.png", "--delta", "a.safetensors", "--delta-strength", "0") == plain
    capsys.readouterr()
    moved = clip("on.png", "--delta", "a.safetensors", "--json", "-")
    assert json.loads(capsys.readouterr().out)["delta"] == [{"file": "a.safetensors", "strength": 1.0}]
    assert moved != plain
    assert clip("again.png", "--delta", "a.safetensors", "--delta-strength", "1") == moved


def test_a_clip_from_applied_embeddings_is_that_of_the_option(inputs: Path, tiny_checkpoint):
    root = ["--ckpt-root", str(tiny_checkpoint)]
    assert run(["embed", "a red circle", *root, "--device", "cpu", "--out", "p.safetensors"]) == 0
    assert run(["delta", "apply", "p.safetensors", "--adapter", "a.safetensors", "--out", "o.safetensors"]) == 0
    assert run(["generate", "--embeddings", "o.safetensors", *root, *SMALL, "--seed", "4", "--out", "one.png"]) == 0
    given = ["generate", "a red circle", "--delta", "a.safetensors", *root, *SMALL]
    assert run([*given, "--seed", "4", "--out", "other.png"]) == 0
    assert Path("one.png").read_bytes() == Path("other.png").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--delta-strength", "1"], "--delta-strength was given without --delta"),
        (["--delta", "a.safetensors", "--delta-strength", "1", "--delta-strength", "2"], "2 strengths for 1 adapters"),
        (["--delta", "a.safetensors", "--delta-strength", "nan"], "give finite numbers"),
        (["--delta", "wide.safetensors"], "17"),
        (["--delta", "none.safetensors"], "none.safetensors"),
    ],
)
def test_a_mistake_about_an_adapter_of_a_clip_is_one_line(
    inputs: Path, tiny_checkpoint, capsys, arguments: list[str], message: str
):
    before = sorted(inputs.iterdir())
    root = ["--ckpt-root", str(tiny_checkpoint)]
    assert run(["generate", "a red circle", *root, *SMALL, *arguments]) == 2
    assert message in refusal(capsys)
    assert sorted(inputs.iterdir()) == before
