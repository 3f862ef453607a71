"""Codebooks: nearest pseudo-classes, files that rebuild them, and vectors of another encoder refused."""

import pytest
import torch

from latentloom.drifting.clips.clip_sample import ClipSample
from latentloom.drifting.clips.condition import fit_condition_encoder
from latentloom.drifting.representation.codebook import Codebook, load_codebook
from latentloom.drifting.representation.kmeans import fit_kmeans
from latentloom.errors import CheckpointError, FileError, ShapeError
from latentloom.storage import save_module


def clips(num=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        ClipSample(
            f"{number}",
            torch.randn(2, 3, 4, 4, generator=generator) + number % 4,
            torch.randn(3, 5, generator=generator),
            "",
            None,
        )
        for number in range(num)
    ]


@pytest.fixture
def codebook():
    encoder, vectors, _ = fit_condition_encoder(clips())
    return Codebook(fit_kmeans(vectors, 6).centroids, encoder, {"num_clips": 40})


def test_clips_get_the_class_of_the_nearest_centroid(codebook):
    vectors = codebook.encoder.embed(clips())
    nearest = torch.cdist(vectors, codebook.centroids).argmin(dim=1)
    assert torch.equal(codebook.assign(vectors), nearest)
    assert torch.equal(codebook.classify(clips()), nearest)
    assert codebook.num_classes == 6


def test_a_file_rebuilds_centroids_encoder_and_record(codebook, tmp_path):
    codebook.save(tmp_path / "codebook.safetensors")
    loaded = load_codebook(tmp_path / "codebook.safetensors")
    assert torch.equal(loaded.centroids, codebook.centroids)
    assert loaded.encoder.fingerprint == codebook.encoder.fingerprint
    assert loaded.record == {"num_clips": 40}
    assert torch.equal(loaded.classify(clips(seed=1)), codebook.classify(clips(seed=1)))


def test_vectors_of_another_encoder_are_refused(codebook):
    other, vectors, _ = fit_condition_encoder(clips(seed=1))
    assert len(codebook.assign(vectors, codebook.encoder.fingerprint)) == 40
    with pytest.raises(CheckpointError, match=f"{other.fingerprint}, the codebook is of"):
        codebook.assign(vectors, other.fingerprint)
    with pytest.raises(ShapeError, match="vectors of 3 numbers"):
        codebook.assign(torch.zeros(2, 3))


def test_centroids_of_another_width_are_refused(codebook):
    with pytest.raises(ShapeError, match="centroids of 3 numbers"):
        Codebook(torch.zeros(2, 3), codebook.encoder)


def test_a_file_whose_encoder_was_changed_is_refused(codebook, tmp_path):
    path = tmp_path / "codebook.safetensors"
    tensors = {"centroids": codebook.centroids}
    tensors |= {f"encoder.{name}": tensor for name, tensor in codebook.encoder.state_dict().items()}
    config = {"encoder": codebook.encoder.config(), "fingerprint": codebook.encoder.fingerprint}
    save_module(path, {**tensors, "encoder.basis": tensors["encoder.basis"] * 2}, "Codebook", config)
    with pytest.raises(CheckpointError, match="was made with the condition encoder"):
        load_codebook(path)
    save_module(path, {**tensors, "centroids": codebook.centroids / 0}, "Codebook", config)
    with pytest.raises(CheckpointError, match="not finite"):
        load_codebook(path)
    save_module(path, {"centroids": codebook.centroids}, "Codebook", config)
    with pytest.raises(CheckpointError, match="fit it again"):
        load_codebook(path)
    save_module(path, tensors, "Codebook", {})
    with pytest.raises(CheckpointError, match="does not hold the tensors of a codebook"):
        load_codebook(path)


def test_a_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    save_module(path, {"centroids": torch.zeros(2, 2)}, "LatentMae", {})
    with pytest.raises(FileError, match="holds LatentMae; give a codebook"):
        load_codebook(path)
