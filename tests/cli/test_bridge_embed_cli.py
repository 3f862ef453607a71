"""`latentloom bridge embed`: from a file of texts to a set that training reads."""

import json
from pathlib import Path

import pytest
from tiny_sentence_encoder import DIM, write_tiny_sentence_encoder

from latentloom.bridge.pairs import read_pairs
from latentloom.cli.main import run


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_sentence_encoder(tmp_path_factory.mktemp("cli") / "e5-tiny")


@pytest.fixture
def embed(tmp_path: Path, encoder: Path):
    """Runs the command on ten texts; later options win."""
    (tmp_path / "t.txt").write_text("".join(f"a red circle {'left ' * number}\n" for number in range(10)))

    def body(*arguments: object, file: str = "t.txt") -> int:
        given = [tmp_path / file, "--out", tmp_path / "set", "--encoder", encoder, "--device", "cpu", *arguments]
        return run(["bridge", "embed", *map(str, given)])

    return body


def refusal(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_a_text_file_becomes_the_documents_format(tmp_path, embed, capsys):
    assert embed() == 0
    assert "10 texts with vectors of 16 channels by e5-tiny, as json" in capsys.readouterr().out
    rows = json.loads((tmp_path / "set" / "pairs.json").read_text())
    assert rows[0].keys() == {"text", "latent_path"}
    pairs = read_pairs("set", tmp_path, latent_dim=DIM, cache=tmp_path / "cache", max_bad_share=0.0)
    assert len(pairs) == 10


def test_shards_of_some_texts_of_a_field_with_the_measurements(tmp_path, embed, capsys):
    rows = [{"text": "x", "gloss": f"a red circle {'left ' * number}"} for number in range(10)]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = ["--text-field", "gloss", "--num", 7, "--seed", 3, "--format", "webdataset", "--rows-per-shard", 4]
    assert embed(*options, "--role", "query", "--json", "-", file="t.jsonl") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["num_pairs"], found["dim"], found["encoder"], found["role"]) == (7, DIM, "e5-tiny", "query")
    assert len(list((tmp_path / "set").glob("*.tar"))) == 2
    pairs = read_pairs("set", tmp_path, latent_dim=None, cache=tmp_path / "cache", max_bad_share=0.0)
    assert len(pairs) == 7
    assert all(text.startswith("a red") for text in pairs.texts)


def test_the_role_decides_the_prefix_and_with_it_the_vectors(tmp_path, embed):
    found = []
    for role in ("query", "passage"):
        assert embed("--role", role, "--out", tmp_path / role) == 0
        found.append(read_pairs(role, tmp_path, latent_dim=None, cache=tmp_path / "cache", max_bad_share=0.0))
    assert float(abs(found[0].vectors - found[1].vectors).max()) > 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--encoder", "nowhere"], "encoder 'nowhere' is no folder; give minilm"),
        (["--seed", "1"], "--seed chooses among the texts, but all are taken"),
        (["--rows-per-shard", "5"], "--rows-per-shard has no effect with --format json"),
        (["--text-field", "gloss"], "--text-field has no effect on"),
    ],
)
def test_mistakes_are_told_in_one_line(embed, capsys, options, message):
    assert embed(*options) == 2
    assert message in refusal(capsys)


def test_a_missing_file_and_a_folder_in_use_are_told_in_one_line(tmp_path, embed, capsys):
    assert embed(file="absent.txt") == 2
    assert "absent.txt does not exist" in refusal(capsys)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "mine").touch()
    assert embed() == 2
    assert "is not empty; give a new folder to --out" in refusal(capsys)
