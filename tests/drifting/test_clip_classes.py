"""Pseudo-classes of a run: labels of both parts, none without clips, and codebooks that are refused."""

import pytest
import torch
from blob_shards import tiny, write_blobs
from shard_files import write_folder

from latentloom.drifting.clips.classes import CODEBOOK_FILE, LABELS_FILE, classify, make_classes
from latentloom.drifting.clips.data import load_clips
from latentloom.drifting.representation.codebook import Codebook, load_codebook
from latentloom.errors import ConfigError, FileError, LatentLoomError
from latentloom.storage import save_module
from latentloom.storage.modules import read_origin

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_blobs(tmp_path_factory.mktemp("blobs") / "shards", 30)


@pytest.fixture(scope="module")
def made(shards, tmp_path_factory):
    """Settings, codebook, labelled data and the codebook's file; not to be changed."""
    folder, config = tmp_path_factory.mktemp("made"), tiny(shards)
    codebook, data = make_classes(config, load_clips(config, CPU), folder)
    return config, codebook, data, folder / CODEBOOK_FILE


def refuses(config, folder, kind=LatentLoomError):
    with pytest.raises(kind) as raised:
        make_classes(config, load_clips(config, CPU), folder)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_every_clip_has_the_class_of_the_nearest_centroid(made):
    _, codebook, data, _ = made
    for clips in (data.train, data.held_out):
        vectors = codebook.encoder.embed([clips.index.sample(row) for row in clips.rows.tolist()])
        assert torch.equal(clips.labels, torch.cdist(vectors, codebook.centroids).argmin(dim=1))
    assert data.train.labels.unique().tolist() == list(range(codebook.num_classes))
    assert len(data.held_out.labels) == len(data.held_out)


def test_clips_that_belong_together_get_one_class(tmp_path):
    root = write_blobs(tmp_path / "s", 6)
    config = tiny(root, num_pseudo_classes=2, held_out_share=0.01)
    _, data = make_classes(config, load_clips(config, CPU), tmp_path / "classes")
    assert sorted(data.train.labels.unique().tolist()) == [0, 1]


def test_a_codebook_that_was_fitted_here_is_read_again(made, tmp_path):
    config, codebook, data, file = made
    path = tmp_path / CODEBOOK_FILE
    path.write_bytes(file.read_bytes())
    before = path.stat().st_mtime_ns
    again, same = make_classes(config, load_clips(config, CPU), tmp_path)
    assert path.stat().st_mtime_ns == before
    assert torch.equal(again.centroids, codebook.centroids)
    assert torch.equal(same.train.labels, data.train.labels)


def test_the_same_settings_give_the_same_classes(made, shards, tmp_path):
    _, codebook, data, _ = made
    config = tiny(shards)
    again, same = make_classes(config, load_clips(config, CPU), tmp_path)
    assert torch.equal(again.centroids, codebook.centroids)
    assert torch.equal(same.train.labels, data.train.labels)
    assert load_codebook(tmp_path / CODEBOOK_FILE).record["num_clips"] == len(data.train)


def with_far_centroids(codebook, path):
    """The codebook with a centroid before, between and after the others that no clip is near to."""
    far = torch.full_like(codebook.centroids[:1], 20.0)
    rows = [far, codebook.centroids[:1], -far, codebook.centroids[1:], 2 * far]
    Codebook(torch.cat(rows), codebook.encoder).save(path)
    return path


def test_classes_without_training_clips_are_left_out_and_labels_close_up(made, shards, tmp_path):
    _, codebook, data, _ = made
    config = tiny(shards, codebook=with_far_centroids(codebook, tmp_path / "given.safetensors"))
    found, labelled = make_classes(config, load_clips(config, CPU), tmp_path / "unused")
    assert torch.equal(found.centroids, codebook.centroids)
    assert torch.equal(labelled.train.labels, data.train.labels)
    assert torch.equal(labelled.held_out.labels, data.held_out.labels)
    assert [path.name for path in (tmp_path / "unused").iterdir()] == [LABELS_FILE]  # the codebook lies elsewhere


def test_labels_are_found_once_for_these_clips_and_this_codebook(made, shards, tmp_path):
    config, _, data, file = made
    folder = tmp_path / "classes"
    folder.mkdir()
    (folder / CODEBOOK_FILE).write_bytes(file.read_bytes())
    turned = (data.train.labels + 1) % 3  # as another machine might have rounded
    origin = read_origin(file.parent / LABELS_FILE)
    save_module(folder / LABELS_FILE, {"train": turned, "held_out": data.held_out.labels}, origin.kind, origin.config)
    assert torch.equal(make_classes(config, load_clips(config, CPU), folder)[1].train.labels, turned)
    other = tiny(shards, split_seed=3)
    found = make_classes(other, load_clips(other, CPU), folder)[1]
    assert torch.equal(found.train.labels.sort().values.unique(), torch.arange(3))
    assert read_origin(folder / LABELS_FILE).config != origin.config
    (folder / LABELS_FILE).write_bytes(b"half a file")
    assert LABELS_FILE in refuses(other, folder, FileError)


def test_held_out_clips_of_a_class_that_training_lacks_get_the_nearest_one_left(made, shards, tmp_path):
    _, codebook, data, _ = made
    lonely = codebook.encoder.embed([data.held_out.index.sample(int(data.held_out.rows[0]))])
    given = Codebook(torch.cat([lonely, codebook.centroids]), codebook.encoder)
    given.save(tmp_path / "given.safetensors")
    config = tiny(shards, codebook=tmp_path / "given.safetensors")
    assert int(classify(given, data.held_out)[0]) == 0
    found, labelled = make_classes(config, load_clips(config, CPU), tmp_path)
    assert int(labelled.held_out.labels.max()) < found.num_classes
    assert len(labelled.train.labels.unique()) == found.num_classes


@pytest.mark.parametrize("use_text", [True, False])
def test_prompts_decide_only_where_they_are_used(shards, tmp_path, use_text):
    config = tiny(shards, use_text=use_text)
    codebook, data = make_classes(config, load_clips(config, CPU), tmp_path)
    assert (codebook.encoder.text_width is not None) == use_text == (data.text_width is not None)


def test_codebooks_of_other_clips_are_refused_in_a_line(made, shards, tmp_path):
    _, codebook, _, file = made
    latents = write_folder(tmp_path / "latents", 8, 4)
    line = refuses(tiny(latents, codebook=file, num_levels=2), tmp_path, ConfigError)
    assert f"{file} is of other clips" in line
    without_texts = write_blobs(tmp_path / "silent", 8, texts=False)
    assert "is of other clips" in refuses(tiny(without_texts, codebook=file), tmp_path, ConfigError)
    others = tiny(write_blobs(tmp_path / "others", 8, seed=1), codebook=file)  # of the same kind
    assert make_classes(others, load_clips(others, CPU), tmp_path)[0].num_classes <= codebook.num_classes


def test_what_is_no_codebook_is_refused_in_a_line(shards, tmp_path):
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_text("no tensors")
    assert str(damaged) in refuses(tiny(shards, codebook=damaged), tmp_path)
    missing = tmp_path / "missing.safetensors"
    assert str(missing) in refuses(tiny(shards, codebook=missing), tmp_path, FileError)


def test_more_classes_than_training_clips_are_refused(shards, tmp_path):
    line = refuses(tiny(shards, num_pseudo_classes=31), tmp_path / "classes", ConfigError)
    assert "num_pseudo_classes = 31 for 22 training clips" in line
    assert not (tmp_path / "classes").exists()
