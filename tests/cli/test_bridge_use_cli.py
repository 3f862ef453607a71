"""`latentloom bridge encode`, `decode` and `interpolate` give what the library gives, and mistakes take one line."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from bridge_scenes import DIM, scene_encoder
from tiny_backbones import write_tiny_backbone

from latentloom.bridge.backbone import load_backbone
from latentloom.bridge.checkpoint import export_bridge, load_bridge
from latentloom.bridge.config import LoraConfig, ModelConfig
from latentloom.bridge.decoding import DecodingConfig, decode
from latentloom.bridge.interpolate import interpolate_texts
from latentloom.bridge.model import LatentBridge
from latentloom.bridge.records import EncoderRecord
from latentloom.bridge.rerank import decode_best_of
from latentloom.bridge.sentence_encoders import SentenceEncoder, load_sentence_encoder
from latentloom.bridge.vector_files import read_vectors
from latentloom.bridge.window_decoding import WindowConfig, decode_in_windows
from latentloom.cli.main import run
from latentloom.tensors import SentenceVector

TEXTS = ["a red cat in the sky", "a blue boat"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with the export of a random bridge, its encoder and one of another width beside it."""
    root = tmp_path_factory.mktemp("bridge")
    settings = ModelConfig(
        pretrained_model_name_or_path=str(write_tiny_backbone(root / "backbone", "wedlm")), lora=LoraConfig(rank=0)
    )
    backbone = load_backbone(settings, device=torch.device("cpu"), dtype=torch.float32)
    for name, dim in (("encoder", DIM), ("wide", DIM + 1)):
        scene_encoder(backbone, dim).model.save(str(root / name))
    torch.manual_seed(0)
    export_bridge(root, 7, LatentBridge(backbone, settings, DIM), {})
    return root


@pytest.fixture(scope="module")
def bridge(folder: Path) -> LatentBridge:
    return load_bridge(folder, dtype="fp32")


@pytest.fixture(scope="module")
def encoder(folder: Path) -> SentenceEncoder:
    return load_sentence_encoder(folder / "encoder")


def use(verb: str, folder: Path, *arguments: object) -> int:
    """Exit code of a command on the bridge in float32, with short texts where it makes some."""
    short = () if verb == "encode" else ("--max-new-tokens", 6)
    given = [verb, "--bridge", folder, "--dtype", "fp32", *short, *arguments]
    return run(["bridge", *map(str, given)])


@pytest.fixture
def vectors_file(tmp_path: Path, encoder: SentenceEncoder) -> Path:
    np.save(tmp_path / "two.npy", encoder.encode(TEXTS).values.numpy())
    return tmp_path / "two.npy"


@pytest.mark.parametrize("ending", [".safetensors", ".npy", ".jsonl"])
def test_encoded_vectors_are_the_bridges_in_every_format(folder, bridge, tmp_path, capsys, ending) -> None:
    (tmp_path / "texts.txt").write_text(f"{TEXTS[1]}\n")
    out = tmp_path / f"vectors{ending}"
    assert use("encode", folder, TEXTS[0], "--texts", tmp_path / "texts.txt", "--out", out, "--json", "-") == 0
    vectors, texts = read_vectors(out)
    torch.testing.assert_close(vectors.values, bridge.encode(TEXTS).values)
    assert texts == (None if ending == ".npy" else TEXTS)
    assert json.loads(capsys.readouterr().out)["texts"] == TEXTS


def test_greedy_texts_of_a_file_are_the_librarys(folder, bridge, encoder, vectors_file, tmp_path, capsys) -> None:
    assert use("decode", folder, "--vectors", vectors_file, "--out", tmp_path / "texts.jsonl", "--prompt", "the") == 0
    expected = decode(bridge, encoder.encode(TEXTS), DecodingConfig(max_new_tokens=6), prompts="the")
    rows = [json.loads(line) for line in (tmp_path / "texts.jsonl").read_text().splitlines()]
    assert rows == [{"vector": row, "place": 0, "text": texts[0]} for row, texts in enumerate(expected)]
    assert "the" in capsys.readouterr().out


def test_drawn_texts_follow_the_seed_and_are_embedded_again(folder, bridge, encoder, capsys) -> None:
    options = ["--text", TEXTS[0], "--encoder", folder / "encoder", "--mode", "sample", "--n", 3, "--seed", 5]
    assert use("decode", folder, *options, "--temperature", 1.5, "--top-p", 0.9, "--json", "-") == 0
    found = json.loads(capsys.readouterr().out)["texts"]
    config = DecodingConfig(mode="sample", num_samples=3, temperature=1.5, top_p=0.9, max_new_tokens=6)
    wanted = encoder.encode(TEXTS[:1])
    expected = decode(bridge, wanted, config, torch.Generator().manual_seed(5))[0]
    assert [row["text"] for row in found] == expected
    cosines = wanted.cosine(encoder.encode(expected)).tolist()
    assert [row["cosine"] for row in found] == pytest.approx(cosines, abs=1e-5)
    assert {row["source"] for row in found} == {TEXTS[0]}


def test_best_of_n_lists_the_nearest_text_first(folder, bridge, encoder, vectors_file, capsys) -> None:
    options = ["--vectors", vectors_file, "--encoder", folder / "encoder", "--mode", "best-of-n", "--n", 4]
    assert use("decode", folder, *options, "--json", "-") == 0
    found = json.loads(capsys.readouterr().out)["texts"]
    config = DecodingConfig(mode="sample", num_samples=4, max_new_tokens=6)
    best = decode_best_of(bridge, encoder.encode(TEXTS), encoder, config, torch.Generator().manual_seed(0))
    assert [row["text"] for row in found if row["place"] == 0] == best.texts
    for vector in (0, 1):
        cosines = [row["cosine"] for row in found if row["vector"] == vector]
        assert cosines == sorted(cosines, reverse=True)
        assert len(cosines) == 4


def test_windows_are_decoded_with_the_mask_token_that_is_named(folder, bridge, encoder, vectors_file, capsys) -> None:
    options = ["--window", 3, "--entropy-threshold", 5.8, "--mask-token", "<|im_start|>"]
    assert use("decode", folder, "--vectors", vectors_file, *options, "--json", "-") == 0
    found = json.loads(capsys.readouterr().out)
    config = WindowConfig(window=3, entropy_threshold=5.8, mask_token="<|im_start|>", max_new_tokens=6)
    expected = decode_in_windows(bridge, encoder.encode(TEXTS), config)
    assert [row["text"] for row in found["texts"]] == expected.texts
    assert found["num_passes"] == expected.num_passes


@pytest.mark.parametrize("method", ["spherical", "linear"])
def test_interpolation_decodes_every_step(folder, bridge, encoder, vectors_file, capsys, method) -> None:
    ends = encoder.encode(TEXTS)
    expected = interpolate_texts(bridge, ends[0:1], ends[1:2], 4, method, DecodingConfig(max_new_tokens=6))
    named = ["--from-text", TEXTS[0], "--to-text", TEXTS[1], "--encoder", folder / "encoder"]
    for source in (named, ["--vectors", vectors_file]):
        assert use("interpolate", folder, *source, "--steps", 4, "--method", method, "--json", "-") == 0
        found = json.loads(capsys.readouterr().out)["steps"]
        assert [row["text"] for row in found] == expected.texts
        assert [row["share"] for row in found] == pytest.approx([0, 1 / 3, 2 / 3, 1])


TEXT = ["--text", "a cat"]
MISTAKES = [
    ("decode", [], "give either vectors as --vectors FILE or texts as --text TEXT"),
    ("decode", ["--vectors", "{tmp}/none.npy"], "there is no such file"),
    ("decode", ["--vectors", "{tmp}/wide.npy"], f"vectors of {DIM + 1} channels, and this bridge was trained on {DIM}"),
    ("decode", ["--vectors", "{tmp}/pickled.npy"], "is not a .npy file of numbers"),
    ("decode", ["--vectors", "{tmp}/nan.npy"], "holds numbers that are not finite"),
    ("decode", ["--vectors", "{tmp}/whole.npy"], "int64 of shape [3]; give floating-point numbers"),
    ("decode", ["--vectors", "{tmp}/notes.txt"], "is no file of vectors"),
    ("decode", [*TEXT, "--encoder", "{tmp}/none"], "is no folder; give minilm, or the folder of"),
    ("decode", [*TEXT, "--encoder", "{folder}/wide"], f"makes vectors of {DIM + 1} channels, and this bridge was"),
    ("decode", [*TEXT, "--seed", "1"], "--seed has no effect with --mode greedy"),
    ("decode", [*TEXT, "--mask-token", "x"], "--mask-token has no effect without --window"),
    ("decode", [*TEXT, "--window", "4", "--mode", "best-of-n"], "--window makes one text per vector"),
    ("decode", ["--vectors", "{tmp}/right.npy", "--window", "4"], "has no mask token"),
    ("encode", [], "no text was given"),
    ("encode", ["a cat", "--out", "{tmp}/vectors.txt"], "names no format that vectors are written in"),
    ("interpolate", ["--from-text", "a cat"], "give both --from-text and --to-text"),
    ("interpolate", ["--vectors", "{tmp}/wide.npy"], "holds 1 vectors; give a file of exactly two"),
]


@pytest.mark.parametrize(("verb", "arguments", "line"), MISTAKES)
def test_a_mistake_is_said_in_one_line(folder, tmp_path, capsys, verb, arguments, line) -> None:
    np.save(tmp_path / "right.npy", np.ones(DIM, dtype=np.float32))
    np.save(tmp_path / "wide.npy", np.ones(DIM + 1, dtype=np.float32))
    np.save(tmp_path / "nan.npy", np.full(DIM, np.nan, dtype=np.float32))
    np.save(tmp_path / "whole.npy", np.arange(3))
    np.save(tmp_path / "pickled.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "notes.txt").write_text("a cat")
    assert use(verb, folder, *(part.format(tmp=tmp_path, folder=folder) for part in arguments)) == 2
    error = capsys.readouterr().err.strip()
    assert line in error
    assert "\n" not in error


@pytest.fixture
def stated(folder, encoder, tmp_path) -> Callable[..., Path]:
    """The export in a folder of its own, changed in what it says about itself."""

    def state(record: EncoderRecord | None, task: str = "joint") -> Path:
        bridge = load_bridge(folder, dtype="fp32")
        bridge.vector_encoder = record
        return export_bridge(tmp_path, 7, bridge, {"task": task})

    return state


def test_texts_are_embedded_by_the_encoder_that_made_the_training_vectors(folder, stated, encoder, capsys) -> None:
    path = stated(encoder.record)
    for verb, options in (("decode", TEXT), ("interpolate", ["--from-text", TEXTS[0], "--to-text", TEXTS[1]])):
        found = []
        for named in ([], ["--encoder", folder / "encoder"]):
            assert use(verb, path, *options, *named, "--json", "-") == 0
            shown = capsys.readouterr()
            assert "warning" not in shown.err
            found.append({key: value for key, value in json.loads(shown.out).items() if key != "seconds"})
        assert found[0] == found[1]


def test_another_encoder_of_the_same_width_is_warned_of(folder, stated, encoder, capsys) -> None:
    path = stated(encoder.record.model_copy(update={"fingerprint": "f" * 16}))
    assert use("decode", path, *TEXT, "--encoder", folder / "encoder") == 0
    line = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: "))
    assert f"trained on vectors of encoder {'f' * 16}, and encoder {encoder.fingerprint} is another" in line


def test_an_encoder_that_is_not_here_is_asked_for(stated, encoder, capsys) -> None:
    path = stated(EncoderRecord(name="e5", fingerprint="f" * 16, source="/nowhere/e5"))
    assert use("decode", path, *TEXT) == 2
    assert "made by e5, which is not at /nowhere/e5; give its folder as --encoder" in capsys.readouterr().err


def test_a_direction_that_was_not_trained_is_said_in_one_line(folder, stated, vectors_file, tmp_path, capsys) -> None:
    cases = {
        "l2t": [("encode", ["a cat", "--out", tmp_path / "out.npy"])],
        "t2l": [("decode", ["--vectors", vectors_file]), ("interpolate", ["--vectors", vectors_file])],
    }
    for task, uses in cases.items():
        path = stated(None, task)
        for verb, arguments in uses:
            assert use(verb, path, *arguments) == 2
            error = capsys.readouterr().err.strip()
            assert f"trained with task = '{task}' and makes no" in error
            assert "\n" not in error


def test_a_missing_bridge_is_said_in_one_line(tmp_path, capsys) -> None:
    assert use("encode", tmp_path / "none.safetensors", "a cat", "--out", tmp_path / "vectors.npy") == 2
    error = capsys.readouterr().err.strip()
    assert "none.safetensors" in error
    assert "\n" not in error


def test_brackets_in_texts_are_shown_as_they_are(capsys) -> None:
    from latentloom.cli.bridge_use import print_texts

    print_texts(["text"], [["a [red] cat [/bold]"]])
    assert "a [red] cat [/bold]" in capsys.readouterr().out


def test_vectors_of_one_dimension_are_one_vector(tmp_path) -> None:
    np.save(tmp_path / "one.npy", np.arange(4, dtype=np.float64))
    vectors, texts = read_vectors(tmp_path / "one.npy")
    torch.testing.assert_close(vectors.values, SentenceVector(torch.arange(4.0)[None]).values)
    assert texts is None
