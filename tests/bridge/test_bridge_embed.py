"""Texts out of files, their vectors, and sets that read back bit for bit."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from tiny_sentence_encoder import DIM, write_tiny_sentence_encoder

from latentloom.bridge.config import BridgeConfig
from latentloom.bridge.embed import embed_texts, texts_of, write_embedded
from latentloom.bridge.pairs import read_pairs
from latentloom.bridge.run_data import run_encoder_name, run_pairs
from latentloom.bridge.sentence_encoders import SentenceEncoder, load_sentence_encoder
from latentloom.errors import ConfigError, FileError

COLOURS, SHAPES = ["red", "blue", "größe \u2028 ünd", '"quoted"'], ["circle", "square", "dog"]
TEXTS = [f"a {colour} {shape} moves {'left ' * times}" for colour in COLOURS for shape in SHAPES for times in range(3)]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> SentenceEncoder:
    return load_sentence_encoder(write_tiny_sentence_encoder(tmp_path_factory.mktemp("embed") / "tiny"), "cpu")


@pytest.mark.parametrize("format_name", ["json", "jsonl", "safetensors", "webdataset"])
def test_a_set_that_is_written_reads_back_bit_for_bit(tmp_path, encoder, format_name, monkeypatch):
    monkeypatch.setattr("latentloom.bridge.embed.TEXTS_AT_ONCE", 10)
    write_embedded(tmp_path / "set", TEXTS, encoder, format_name=format_name, rows_per_shard=15)
    pairs = read_pairs("set", tmp_path, latent_dim=DIM, cache=tmp_path / "cache", max_bad_share=0.0)
    vectors = np.concatenate([encoder.encode(TEXTS[start : start + 10]).values for start in range(0, 36, 10)])
    assert list(pairs.texts) == TEXTS
    assert pairs.vectors.tobytes() == vectors.tobytes()
    about = json.loads((tmp_path / "set" / "encoder.json").read_text())
    assert about["num_pairs"] == 36
    assert (about["encoder"], about["fingerprint"]) == ("tiny", encoder.fingerprint)
    shards = {"safetensors": 3, "webdataset": 3}.get(format_name, 0)
    assert len([*(tmp_path / "set").glob("pairs-*.tar"), *(tmp_path / "set").glob("pairs-*.safetensors")]) == shards


def test_a_run_on_a_set_knows_the_encoder_that_made_it(tmp_path, encoder):
    write_embedded(tmp_path / "set", TEXTS, encoder, format_name="webdataset", rows_per_shard=20)
    for source in ("set", "set/pairs-{00000..00001}.tar"):
        data = {"data_root": tmp_path, "train_json": source, "held_out": 3}
        config = BridgeConfig.model_validate({"data": data, "logging": {"save_dir": tmp_path / "runs"}})
        assert run_pairs(config).encoder == encoder.record
        assert run_encoder_name(config) == encoder.source
    about = tmp_path / "set" / "encoder.json"
    stated = json.loads(about.read_text())
    for changed in ({**stated, "source": "/nowhere/tiny"}, {"encoder": "tiny", "fingerprint": "0"}, ["tiny"]):
        about.write_text(json.dumps(changed))
        assert run_encoder_name(config) is None


def test_a_set_is_there_whole_or_not_at_all(tmp_path, encoder, monkeypatch):
    def fails(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("latentloom.bridge.embed.write_json", fails)
    with pytest.raises(KeyboardInterrupt):
        write_embedded(tmp_path / "set", TEXTS, encoder)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_is_left_alone(tmp_path, encoder):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "mine").touch()
    with pytest.raises(FileError, match="is not empty"):
        write_embedded(tmp_path / "set", TEXTS, encoder)
    assert (tmp_path / "set" / "mine").exists()


def test_vectors_that_are_kept_are_those_that_are_made(tmp_path, encoder, monkeypatch):
    made = embed_texts(TEXTS, encoder)
    kept = embed_texts(TEXTS, encoder, cache=tmp_path)
    assert kept.fingerprint == made.fingerprint
    assert np.array_equal(kept.vectors, made.vectors)
    assert list(kept.texts) == TEXTS
    with monkeypatch.context() as patched:
        patched.setattr(SentenceEncoder, "encode", None)  # it is not asked a second time
        again = embed_texts(TEXTS, encoder, cache=tmp_path)
    assert np.array_equal(again.vectors, made.vectors)
    assert embed_texts(TEXTS[1:], encoder, cache=tmp_path).fingerprint != made.fingerprint
    with pytest.raises(ConfigError, match="no text"):
        embed_texts([], encoder)


def test_texts_of_a_file_are_its_lines_without_blanks_and_repetitions(tmp_path, caplog):
    path = tmp_path / "t.txt"
    path.write_bytes("\ufeffone\r\n\n two \none\n   \nthree\u2028is one line".encode())
    with caplog.at_level(logging.INFO, logger="latentloom"):
        assert texts_of(path) == ["one", "two", "three\u2028is one line"]
    assert "1 of 4 texts are repetitions" in caplog.text


def test_texts_of_json_lines_stand_under_a_field(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "one", "gloss": "two\\nlines"}\n\n{"text": "", "gloss": "three"}\n')
    assert texts_of(path) == ["one"]
    assert texts_of(path, "gloss") == ["two\nlines", "three"]
    with pytest.raises(FileError, match=r"line 1 has no text under 'other' but 'text', 'gloss'"):
        texts_of(path, "other")


def test_some_texts_are_drawn_by_the_seed_in_the_order_of_the_file(tmp_path):
    path = tmp_path / "t.txt"
    path.write_text("\n".join(f"text {number:03d}" for number in range(200)))
    drawn = texts_of(path, num=50, seed=1)
    assert len(drawn) == 50
    assert drawn == sorted(drawn) == texts_of(path, num=50, seed=1)
    assert drawn != texts_of(path, num=50, seed=2)
    assert len(texts_of(path, num=500)) == 200


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.txt", b" \n\n", "holds no text"),
        ("t.txt", b"good\nb\xffd\n", "line 2 is not UTF-8"),
        ("t.jsonl", b'{"text": "x"}\nno json', "line 2 is not JSON"),
        ("t.jsonl", b"[1]", "line 1 has no text under 'text' but a list"),
        ("t.jsonl", b'{"text": "a\\ud800"}', "line 1 holds half of a surrogate pair"),
    ],
)
def test_files_without_texts_are_refused_in_one_line(tmp_path: Path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FileError, match=message) as error:
        texts_of(tmp_path / name)
    assert "\n" not in str(error.value)
