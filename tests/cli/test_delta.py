"""`latentloom delta pairs` and `cache`: from prompts to the file that training reads."""

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from latentloom.cli.main import run
from latentloom.delta.cache import read_cache, shard_folder
from latentloom.delta.pairs import PromptPair, read_pairs
from latentloom.micro.lexicon import parse
from latentloom.micro.pairs import make_pairs
from latentloom.tensors import TextEmbeddings
from latentloom.wan.text_encoder import WanTextEncoder

ROWS = [
    ("a red circle", "A small red circle moves left on a black background."),
    ("A red circle!", "a small red circle moves left on a black background"),  # the first once more
    ("blue square", "A large blue square moves up on a white background."),
    ("green", "Green."),
]


@pytest.fixture
def jsonl(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": base, "rewrite": rewritten}) for base, rewritten in ROWS))
    return path


@pytest.fixture
def cache(jsonl: Path, tiny_checkpoint: Path):
    """Runs `latentloom delta cache` on the tiny checkpoint and four rows; later options win."""

    def body(*arguments: object) -> int:
        given = ["--jsonl", jsonl, "--ckpt_root", tiny_checkpoint, "--device", "cpu", *arguments]
        return run(["delta", "cache", *map(str, given)])

    return body


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch):
    """Puts a module of these names in the place of one that needs data which may not be installed."""

    def body(module_name: str, **names: object) -> None:
        module = ModuleType(module_name)
        for name, value in names.items():
            setattr(module, name, value)
        monkeypatch.setitem(sys.modules, module_name, module)

    return body


def refusal(capsys: pytest.CaptureFixture[str]) -> str:
    output = capsys.readouterr()
    lines = output.err.strip().splitlines()
    assert len(lines) == 1, lines
    assert output.out == ""
    return lines[0]


# ---- pairs


def test_pairs_are_those_of_the_lexicons(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "new" / "p.jsonl"
    assert run(["delta", "pairs", "--num", "40", "--seed", "3", "--out", str(out), "--json", "-"]) == 0
    found = read_pairs(out)
    assert [(pair.base, pair.rewritten) for pair in found.pairs] == make_pairs(40, seed=3)
    report = json.loads(capsys.readouterr().out)
    assert report == {
        "file": str(out),
        "num_pairs": 40,
        "source": "MicroWan, unseen and telegraphic",
        "duplicates": [],
        "unchanged": [],
    }


def test_without_options_there_are_750_pairs_under_the_documents_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert run(["delta", "pairs"]) == 0
    assert len(read_pairs("reports/embdelta_v2/pairs.jsonl").pairs) == 750


def test_one_lexicon_can_be_asked_for(tmp_path: Path):
    assert run(["delta", "pairs", "--num", "9", "--lexicons", "telegraphic", "--out", str(tmp_path / "p.jsonl")]) == 0
    for pair in read_pairs(tmp_path / "p.jsonl").pairs:
        assert not pair.base.endswith(".")
        assert parse(pair.base) == parse(pair.rewritten)


def test_a_text_file_becomes_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    text, out = tmp_path / "mine.txt", tmp_path / "p.jsonl"
    text.write_text("boat -> A boat on a lake.\ntree\tA tall tree.\nBoat → a boat on a lake\nsky -> Sky\n", "utf-8")
    assert run(["delta", "pairs", "--text", str(text), "--out", str(out)]) == 0
    pairs = [PromptPair("boat", "A boat on a lake."), PromptPair("tree", "A tall tree.")]
    assert read_pairs(out).pairs == pairs
    shown = capsys.readouterr().out
    assert "2 pairs from" in shown
    assert "1 repeated (line 3)" in shown
    assert "1 unchanged by their rewrite (line 4)" in shown
    assert run(["delta", "pairs", "--text", str(text), "--num", "1", "--seed", "0", "--out", str(out)]) == 0
    assert read_pairs(out).pairs[0] in pairs
    assert len(read_pairs(out).pairs) == 1


def test_wordnet_gives_terms_and_glosses(tmp_path: Path, stand_in, capsys: pytest.CaptureFixture[str]):
    asked = []

    def read_wordnet(path: Path | None, fields: frozenset[int]) -> list[tuple[str, str]]:
        asked.append((path, fields))
        return [(f"term {row}", f"the gloss of number {row}") for row in range(900)]

    stand_in("latentloom.delta.wordnet", read_wordnet=read_wordnet, NEUTRAL=frozenset({5}))
    chosen = []
    for name, options in [
        ("a", ["--wordnet"]),
        ("b", ["--wordnet", "--seed", "0"]),
        ("c", ["--wordnet-path", "dict", "--seed", "1"]),
    ]:
        assert run(["delta", "pairs", *options, "--out", str(tmp_path / name)]) == 0
        chosen.append(read_pairs(tmp_path / name).pairs)
    assert asked == [(None, {5}), (None, {5}), (Path("dict"), {5})]
    assert [len(pairs) for pairs in chosen] == [750] * 3
    assert chosen[0] == chosen[1] != chosen[2]
    numbers = [int(pair.base.split()[1]) for pair in chosen[0]]
    assert numbers == sorted(numbers)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lexicons", "seen"], "unknown lexicon 'seen' of base prompts; choose from unseen, telegraphic"),
        (["--lexicons", ""], "unknown lexicon ''"),
        (["--num", "0"], "num"),
        (["--num", "1000000"], "give 1 to 100000"),
        (["--seed", "-1"], "seed"),
        (["--text", "none.txt"], "none.txt does not exist"),
        (["--text", "bad.txt"], "bad.txt line 2 has no separator"),
        (["--text", "good.txt", "--num", "5"], "--num 5 was given and good.txt has 1 pairs"),
        (["--text", "good.txt", "--seed", "5"], "give --num too, or drop --seed"),
        (["--text", "good.txt", "--wordnet"], "are three sources of pairs"),
        (["--wordnet", "--lexicons", "unseen"], "are three sources of pairs"),
        (["--out", "."], "is not a file"),
        (["--words", "1"], "--words"),
    ],
)
def test_a_mistake_about_pairs_is_one_line(
    tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
):
    monkeypatch.chdir(tmp_path)
    Path("bad.txt").write_text("a -> b\nc\n")
    Path("good.txt").write_text("a -> b\n")
    assert run(["delta", "pairs", *arguments]) == 2
    assert message in refusal(capsys)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.txt", "good.txt"]


# ---- cache


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_a_cache_holds_what_the_encoder_says_to_either_side(cache, tmp_path: Path, capsys, suffix: str):
    out = tmp_path / "new" / f"c{suffix}"
    assert cache("--out", out, "--json", "-") == 0
    output = capsys.readouterr()
    report = json.loads(output.out)
    found = read_cache(out)
    assert found.pairs == [PromptPair(*ROWS[0]), PromptPair(*ROWS[2])]
    assert found.base.dtype == torch.float32
    means = {"base": found.base.lengths.float().mean(), "rewritten": found.rewritten.lengths.float().mean()}
    assert report["mean_lengths"] == pytest.approx({name: mean.item() for name, mean in means.items()})
    assert (report["num_pairs"], report["duplicates"], report["unchanged"]) == (2, [2], [4])
    assert (report["dim"], report["dtype"], report["bytes"]) == (16, "float32", out.stat().st_size)
    assert report["encoder"] == found.encoder
    assert set(report["seconds"]) == {"load", "encoding"}
    assert "1 repeated (line 2)" in output.err
    assert "1 unchanged by their rewrite (line 4)" in output.err


def test_the_stored_tokens_are_those_of_embed(cache, tiny_checkpoint: Path, tmp_path: Path):
    from latentloom.storage import load_object

    assert cache("--out", tmp_path / "c.npz") == 0
    options = ["--ckpt-root", str(tiny_checkpoint), "--device", "cpu", "--out", str(tmp_path / "e.safetensors")]
    assert run(["embed", ROWS[0][1], ROWS[2][1], *options]) == 0
    embedded = load_object(tmp_path / "e.safetensors", TextEmbeddings)
    found = read_cache(tmp_path / "c.npz").rewritten
    assert torch.equal(found.lengths, embedded.lengths)
    assert torch.equal(found.tokens, embedded.tokens)


def test_the_stored_dtype_can_be_chosen(cache, tmp_path: Path):
    for dtype in ("float32", "bfloat16"):
        assert cache("--out", tmp_path / f"{dtype}.npz", "--dtype", dtype) == 0
    wide, narrow = (read_cache(tmp_path / f"{dtype}.npz") for dtype in ("float32", "bfloat16"))
    assert narrow.base.dtype == torch.bfloat16
    assert torch.equal(narrow.base.tokens, wide.base.tokens.bfloat16())


def test_an_interrupted_run_is_taken_up_and_ends_in_the_same_file(cache, tmp_path: Path, monkeypatch):
    assert cache("--out", tmp_path / "whole.npz", "--shard-size", 1) == 0
    calls, encode = [], WanTextEncoder.encode

    def stopping(self: WanTextEncoder, prompts: list[str]) -> TextEmbeddings:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(prompts)
        return encode(self, prompts)

    monkeypatch.setattr(WanTextEncoder, "encode", stopping)
    out = tmp_path / "c.npz"
    assert cache("--out", out, "--shard-size", 1) == 130
    assert len(list(shard_folder(out).iterdir())) == 1
    calls.clear()
    assert cache("--out", out, "--shard-size", 1) == 0
    assert calls == [[ROWS[2][0]], [ROWS[2][1]]]
    assert out.read_bytes() == (tmp_path / "whole.npz").read_bytes()
    assert not shard_folder(out).exists()


def test_without_options_microwan_and_the_documents_folder_are_used(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(["delta", "pairs", "--num", "20"]) == 0
    assert run(["delta", "cache", "--device", "cpu"]) == 0
    found = read_cache("reports/embdelta_v2/cache/pairs.npz")
    assert (len(found), found.base.dtype) == (20, torch.float32)
    assert not torch.equal(found.base.lengths, found.rewritten.lengths)


def test_minilm_can_encode_instead(jsonl: Path, tmp_path: Path, stand_in, capsys: pytest.CaptureFixture[str]):
    class MiniLM:
        model = SimpleNamespace(dtype=torch.float32)

        @classmethod
        def load(cls, device: str | None) -> "MiniLM":
            assert device == "cpu"
            return cls()

        def encode(self, prompts: list[str]) -> TextEmbeddings:
            return TextEmbeddings(torch.ones(len(prompts), 3), torch.ones(len(prompts), dtype=torch.long))

        def fingerprint(self) -> str:
            return "small"

    stand_in("latentloom.delta.minilm", MiniLM=MiniLM)
    options = ["--encoder", "minilm", "--device", "cpu", "--out", str(tmp_path / "c.npz")]
    assert run(["delta", "cache", "--jsonl", str(jsonl), *options, "--json", "-"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["encoder"], report["dim"], report["dtype"]) == ("small", 3, "float32")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--jsonl", "none.jsonl"], "none.jsonl does not exist; write it with `latentloom delta pairs`"),
        (["--jsonl", "bad.jsonl"], "bad.jsonl line 1 has 'base' but no rewritten prompt"),
        (["--jsonl", "."], "is a folder"),
        (["--out", "c.pt"], "stored as .npz or .safetensors"),
        (["--out", "bad.jsonl/c.npz"], "cannot write"),
        (["--dtype", "float16"], "float16"),
        (["--shard-size", "0"], "shard-size"),
        (["--encoder", "minilm"], "--ckpt-root was given with --encoder minilm"),
        (["--ckpt-root", "nowhere"], "nowhere does not exist; give a checkpoint's folder or file"),
        (["--device", "abacus"], "abacus"),
    ],
)
def test_a_mistake_about_a_cache_is_one_line(
    cache, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
):
    monkeypatch.chdir(tmp_path)
    Path("bad.jsonl").write_text('{"base": "a"}\n')
    before = sorted(tmp_path.iterdir())
    assert cache(*arguments) == 2
    assert message in refusal(capsys)
    assert sorted(tmp_path.iterdir()) == before
