"""`latentloom drift quantize` and `evaluate-representation`: from shards to classes, figures and a page."""

import json

import pytest
import torch

from latentloom.cli.main import run
from latentloom.drifting.clips.clip_sample import ClipSample
from latentloom.drifting.clips.condition import fit_condition_encoder
from latentloom.drifting.clips.shard_index import ShardIndex
from latentloom.drifting.clips.shard_stream import stream_shards
from latentloom.drifting.clips.shard_writer import ShardWriter
from latentloom.drifting.mae import LatentMae, MaeShape, save_mae
from latentloom.drifting.representation.codebook import load_codebook
from latentloom.drifting.representation.quantize import quantize_clips
from latentloom.errors import ConfigError
from latentloom.runs.record import RunRecord

SHAPE = (3, 5, 8, 8)
WORDS = ("a red fox", "a blue whale", "two parrots", "an old tree")


def sample(number, num_kinds=4):
    own, shared = torch.Generator().manual_seed(500 + number), torch.Generator().manual_seed(number % num_kinds)
    colour = torch.rand(3, 1, 1, 1, generator=shared) * 1.6 - 0.8
    values = (colour + 0.1 * torch.randn(SHAPE, generator=own)).clamp(-1, 1)
    text = 3 * torch.randn(1, 6, generator=shared) + 0.1 * torch.randn(3, 6, generator=own)
    return ClipSample(f"{number:06d}", values, text, WORDS[number % 4], None)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Sixty clips of four kinds in pixel space, in three shards."""
    folder = tmp_path_factory.mktemp("shards") / "clips"
    write(folder, [sample(number) for number in range(60)])
    return folder


def write(folder, samples):
    with ShardWriter(folder, space="pixel", clips_per_shard=25, source="made up") as writer:
        for one in samples:
            writer.write(one.key, one.values, text=one.text, prompt=one.prompt)


@pytest.fixture(scope="module")
def codebook(shards, tmp_path_factory):
    path = tmp_path_factory.mktemp("codebook") / "codebook.safetensors"
    assert run(["drift", "quantize", "--data-root", str(shards), "--out", str(path), "--num-classes", "4"]) == 0
    return path


def test_clips_of_a_kind_get_one_class(codebook, shards):
    loaded = load_codebook(codebook)
    labels = loaded.classify(list(stream_shards(shards)))
    kinds = torch.arange(60) % 4
    assert len(torch.stack([kinds, labels], dim=1).unique(dim=0)) == 4
    assert loaded.counts is not None
    assert loaded.counts.tolist() == [15] * 4
    assert loaded.record["decision"] == "4 classes, as asked"
    assert loaded.record["num_clips"] == 60
    assert loaded.record["data_root"] == str(shards)


def test_the_fallback_is_taken_by_the_rule_and_recorded(shards, tmp_path, capsys):
    # 40 classes of 60 clips: many of them have a single member
    out, measured = tmp_path / "codebook.safetensors", tmp_path / "measured.json"
    line = ["--num-classes", "40", "--fallback", "4", "--json", str(measured)]
    assert run(["drift", "quantize", "--data-root", str(shards), "--out", str(out), *line]) == 0
    loaded, found = load_codebook(out), json.loads(measured.read_text())
    assert loaded.num_classes == 4
    assert found["decision"].startswith("4 classes, not 40: ")
    assert "have at most 1 member, more than 2%" in found["decision"]
    assert set(found["occupancy"]) == {"40", "4"}
    assert found["occupancy"]["40"]["near_empty_share"] > 0.02
    assert loaded.record["decision"] == found["decision"]
    assert "4 classes, not 40" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num-classes", "61"], "61 classes for 60 clips"),
        (["--num-classes", "8", "--fallback", "8"], "a fallback of 8 classes for 8"),
        (["--num-classes", "30", "--sample", "20"], "30 classes for 20 clips in the sample of 60"),
    ],
)
def test_too_many_classes_are_refused_in_one_line(shards, tmp_path, capsys, options, message):
    out = tmp_path / "codebook.safetensors"
    assert run(["drift", "quantize", "--data-root", str(shards), "--out", str(out), *options]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_all_clips_are_counted_also_when_few_are_sampled(shards):
    quantized = quantize_clips(stream_shards(shards), 4, sample_size=30)
    assert quantized.codebook.record["num_fitted"] == 30
    assert quantized.codebook.counts is not None
    assert int(quantized.codebook.counts.sum()) == 60
    assert quantized.tried[4].num_samples == 60


def test_equal_seeds_give_equal_codebooks(shards):
    first, again = (quantize_clips(stream_shards(shards), 7, sample_size=40, seed=5) for _ in range(2))
    assert torch.equal(first.codebook.centroids, again.codebook.centroids)
    assert first.codebook.encoder.fingerprint == again.codebook.encoder.fingerprint


def test_a_single_class_is_allowed_and_never_poor(shards):
    quantized = quantize_clips(stream_shards(shards), 1)
    assert quantized.codebook.num_classes == 1
    assert quantized.decision == "1 classes, as asked"
    with pytest.raises(ConfigError, match="fallback of 2 classes for 1"):
        quantize_clips(stream_shards(shards), 1, 2)


def test_index_and_stream_give_the_same_vectors(shards):
    encoder, vectors, _ = fit_condition_encoder(stream_shards(shards))
    index = ShardIndex.open(shards)
    rows = list(range(60))
    assert torch.allclose(encoder.embed_clips(index.load(rows), index.load_text(rows)), vectors, atol=1e-5)


def test_a_codebook_is_evaluated_into_figures_and_a_page(codebook, shards, tmp_path, capsys):
    out, measured = tmp_path / "run", tmp_path / "measured.json"
    line = ["--codebook", str(codebook), "--data-root", str(shards), "--out-dir", str(out), "--json", str(measured)]
    assert run(["drift", "evaluate-representation", *line]) == 0
    figures = json.loads((out / "metrics.json").read_text())
    assert figures["occupancy"]["perplexity"] == pytest.approx(4)
    assert figures["retrieval"]["retrieval/top5"] == 1
    assert figures["agreement"]["agreement/text_cosine"] > 0.9
    assert figures["agreement"]["agreement/keyframe_psnr"] > figures["agreement"]["random/agreement/keyframe_psnr"] + 5
    assert figures["num_sampled"] == 60
    assert {family["size"] for family in figures["families"]} == {15}
    page = (out / "report.html").read_text()
    assert "Decoded clips</h2>" in page
    assert "<video" in page
    record = RunRecord.read(out)
    assert (record.status, record.results["occupancy"]["num_used"]) == ("finished", 4)
    assert json.loads(measured.read_text())["out_dir"] == str(out)
    assert "Are classes apart? yes" in capsys.readouterr().out


def test_occupancy_is_of_all_clips_and_the_rest_of_a_sample(codebook, shards, tmp_path):
    line = ["--codebook", str(codebook), "--data-root", str(shards), "--max-samples", "20"]
    assert run(["drift", "evaluate-representation", *line, "--out-dir", str(tmp_path / "run")]) == 0
    figures = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (figures["num_sampled"], figures["occupancy"]["num_samples"]) == (20, 60)


def test_an_encoder_is_evaluated_on_labelled_images(tmp_path):
    mae = tmp_path / "mae.safetensors"
    save_mae(mae, LatentMae(MaeShape(channels=1, width=8, stages=2)), {})
    out = tmp_path / "run"
    assert run(["drift", "evaluate-representation", "--encoder", str(mae), "--out-dir", str(out)]) == 0
    figures = json.loads((out / "metrics.json").read_text())
    assert figures["retrieval"]["retrieval/top5"] > 2 * figures["retrieval"]["retrieval/chance"]
    assert figures["occupancy"]["num_classes"] == 10
    assert any("no prompts" in line for line in figures["missing"])


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    path = tmp_path_factory.mktemp("mae") / "mae.safetensors"
    torch.manual_seed(0)
    save_mae(path, LatentMae(MaeShape(channels=3, width=8, stages=2)), {})
    return path


@pytest.mark.parametrize("with_codebook", [True, False])
def test_an_encoder_is_evaluated_on_the_frames_of_clips(codebook, encoder, shards, tmp_path, with_codebook):
    line = ["--encoder", str(encoder), "--dataset", "shards", "--data-root", str(shards)]
    line += ["--codebook", str(codebook)] if with_codebook else []
    assert run(["drift", "evaluate-representation", *line, "--out-dir", str(tmp_path / "run")]) == 0
    figures = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert figures["representation"] == "encoder mae"
    assert figures["num_sampled"] == figures["occupancy"]["num_samples"] == 60
    assert figures["occupancy"]["num_used"] == 4
    assert figures["retrieval"]["retrieval/top5"] == 1  # clips of a kind have one colour
    assert figures["agreement"]["agreement/text_cosine"] > 0.9


def test_the_folder_of_no_earlier_evaluation_is_taken(codebook, shards, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = ["--codebook", str(codebook), "--data-root", str(shards), "--max-samples", "8"]
    for _ in range(2):
        assert run(["drift", "evaluate-representation", *line]) == 0
    folders = list((tmp_path / "runs").iterdir())
    assert len(folders) == 2
    assert all((folder / "report.html").exists() and "representation" in folder.name for folder in folders)


def test_a_single_clip_is_refused_in_one_line(codebook, tmp_path, capsys):
    write(tmp_path / "one", [sample(0)])
    line = ["--codebook", str(codebook), "--data-root", str(tmp_path / "one"), "--out-dir", str(tmp_path / "run")]
    assert run(["drift", "evaluate-representation", *line]) == 2
    error = capsys.readouterr().err
    assert "1 clips in" in error
    assert "at least 2 are compared" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ([], "give either --codebook FILE"),
        (["--codebook", "{codebook}"], "give --data-root SHARDS"),
        (["--codebook", "{codebook}", "--data-root", "{shards}", "--dataset", "digits"], "--dataset has no effect"),
        (["--encoder", "random", "--feature-encoder", "x"], "--feature-encoder has no effect"),
        (["--encoder", "nowhere.safetensors"], "does not exist"),
        (["--encoder", "random", "--codebook", "{codebook}"], "give --dataset shards too"),
        (["--encoder", "random", "--dataset", "shards"], "give --data-root SHARDS"),
        (["--encoder", "random", "--dataset", "shards", "--data-root", "{shards}", "--image-size", "8"], "no effect"),
        (["--encoder", "random", "--dataset", "imagefolder"], "needs data_root"),
        (["--codebook", "nowhere.safetensors", "--data-root", "{shards}"], "does not exist"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing_behind(codebook, shards, tmp_path, capsys, line, message):
    out = tmp_path / "run"
    given = [part.format(codebook=codebook, shards=shards) for part in line]
    assert run(["drift", "evaluate-representation", *given, "--out-dir", str(out)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not out.exists()


def test_clips_of_another_shape_are_refused(codebook, tmp_path, capsys):
    folder = tmp_path / "other"
    write(folder, [ClipSample(f"{n}", torch.zeros(3, 4, 8, 8), torch.ones(1, 6), "", None) for n in range(3)])
    line = ["--codebook", str(codebook), "--data-root", str(folder), "--out-dir", str(tmp_path / "run")]
    assert run(["drift", "evaluate-representation", *line]) == 2
    assert "clips of [3, 4, 8, 8] for an encoder of [3, 5, 8, 8]" in capsys.readouterr().err
