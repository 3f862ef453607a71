"""K-means: the least squared error for its centroids, no needless empty clusters, equal results for equal seeds."""

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentloom.drifting.representation.kmeans import fit_kmeans, nearest_centroids
from latentloom.errors import ConfigError, ShapeError


def blobs(num_blobs, num_members, width=8, spread=0.05, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = 3 * torch.randn(num_blobs, width, generator=generator)
    labels = torch.arange(num_blobs).repeat_interleave(num_members)
    return centres[labels] + spread * torch.randn(len(labels), width, generator=generator), labels


def test_well_separated_groups_become_the_clusters():
    points, labels = blobs(12, 20)
    clusters = fit_kmeans(points, 12)
    pairs = torch.stack([labels, clusters.labels], dim=1).unique(dim=0)
    assert len(pairs) == 12
    assert clusters.inertia == pytest.approx(8 * 0.05**2, rel=0.15)
    assert clusters.num_iterations < 20


def test_labels_are_those_of_the_nearest_centroids_and_inertia_is_their_mean_squared_distance():
    points = torch.randn(400, 16, generator=torch.Generator().manual_seed(1))
    clusters = fit_kmeans(points, 20)
    distances = torch.cdist(points.double(), clusters.centroids.double())
    assert torch.equal(distances.argmin(dim=1), clusters.labels)
    assert clusters.inertia == pytest.approx(float(distances.min(dim=1).values.square().mean()), rel=1e-5)


def test_clusters_of_noise_are_not_near_empty_and_fit_better_than_plain_lloyd():
    points = torch.randn(3000, 64, generator=torch.Generator().manual_seed(2))
    clusters = fit_kmeans(points, 100)
    counts = torch.bincount(clusters.labels, minlength=100)
    plain = fit_kmeans(points, 100, few_share=0)
    plain_counts = torch.bincount(plain.labels, minlength=100)
    assert (counts <= 1).sum() <= 1
    assert (plain_counts <= 1).sum() >= 5  # else the rule would not be needed here
    assert clusters.inertia < plain.inertia
    assert clusters.num_reseeded > 0


def test_a_cluster_that_runs_empty_is_seeded_anew():
    points, _ = blobs(4, 25)
    # as many clusters as points of one blob: the first rounds can only find so many distinct places
    repeated = torch.cat([points[:1].expand(96, -1), points[25::25], points[:1] + 1])
    clusters = fit_kmeans(repeated, 5)
    assert (torch.bincount(clusters.labels, minlength=5) > 0).all()


def test_copies_of_one_vector_leave_clusters_empty_without_an_error():
    clusters = fit_kmeans(torch.ones(10, 3), 4)
    assert torch.equal(clusters.centroids, torch.ones(4, 3))
    assert clusters.inertia == 0


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 60), st.integers(1, 12), st.integers(0, 99), st.data())
def test_every_setting_gives_finite_centroids_and_a_label_per_vector(num, width, seed, data):
    num_clusters = data.draw(st.integers(1, num))
    points = torch.randn(num, width, generator=torch.Generator().manual_seed(seed))
    clusters = fit_kmeans(points, num_clusters, seed=seed, max_iterations=4)
    assert clusters.centroids.shape == (num_clusters, width)
    assert clusters.centroids.isfinite().all()
    assert clusters.labels.min() >= 0
    assert clusters.labels.max() < num_clusters
    assert len(clusters.labels) == num


def test_equal_seeds_give_equal_clusters_and_other_seeds_others():
    points = torch.randn(500, 8, generator=torch.Generator().manual_seed(3))
    first, again, other = (fit_kmeans(points, 30, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.centroids, again.centroids)
    assert not torch.equal(first.centroids, other.centroids)


def test_the_global_random_state_is_left_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    fit_kmeans(torch.eye(6), 3)
    assert torch.equal(torch.get_rng_state(), before)


def test_vectors_far_from_the_origin_keep_their_clusters():
    points, labels = blobs(6, 20)
    near, far = fit_kmeans(points, 6), fit_kmeans((points + 1000.0), 6)
    assert len(torch.stack([near.labels, far.labels], dim=1).unique(dim=0)) == 6
    assert torch.equal(nearest_centroids(points + 1000.0, far.centroids)[0], far.labels)
    assert len(torch.stack([labels, far.labels], dim=1).unique(dim=0)) == 6


def test_half_precision_is_compared_in_float32():
    points, _ = blobs(6, 20)
    clusters = fit_kmeans(points.bfloat16(), 6)
    assert clusters.centroids.dtype == torch.float32


def test_squared_distances_come_with_the_labels():
    labels, squares = nearest_centroids(torch.tensor([[0.0, 3.0], [4.0, 0.0]]), torch.tensor([[0.0, 0.0], [4.0, 1.0]]))
    assert labels.tolist() == [0, 1]
    assert squares.tolist() == pytest.approx([9.0, 1.0])


@pytest.mark.parametrize("num_clusters", [0, 11])
def test_more_clusters_than_vectors_are_refused(num_clusters):
    with pytest.raises(ConfigError, match="for 10 vectors"):
        fit_kmeans(torch.ones(10, 2), num_clusters)


def test_vectors_that_are_not_finite_are_refused():
    with pytest.raises(ShapeError, match="not finite"):
        fit_kmeans(torch.tensor([[1.0], [float("nan")]]), 1)


def test_centroids_of_another_width_are_refused():
    with pytest.raises(ShapeError, match="vectors of 3 numbers for centroids of 2"):
        nearest_centroids(torch.ones(4, 3), torch.ones(2, 2))


def test_no_iteration_is_refused():
    with pytest.raises(ConfigError, match="0 iterations"):
        fit_kmeans(torch.ones(4, 3), 2, max_iterations=0)


def test_a_backend_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)  # as if it were not, where it is
    with pytest.raises(ConfigError, match="'faiss' is not installed"):
        fit_kmeans(torch.ones(4, 3), 2, backend="faiss")


def test_faiss_gives_the_same_clusters():
    pytest.importorskip("faiss")
    points = torch.randn(800, 32, generator=torch.Generator().manual_seed(4))
    ours, theirs = fit_kmeans(points, 40), fit_kmeans(points, 40, backend="faiss")
    assert theirs.inertia == pytest.approx(ours.inertia, rel=0.01)
    labels, squares = nearest_centroids(points, ours.centroids, "faiss")
    expected, expected_squares = nearest_centroids(points, ours.centroids)
    assert (labels == expected).float().mean() > 0.999
    assert torch.allclose(squares, expected_squares, atol=1e-3)


def test_without_a_choice_the_backend_is_what_is_there():
    points = torch.randn(200, 8, generator=torch.Generator().manual_seed(5))
    assert fit_kmeans(points, 10, backend=None).inertia == pytest.approx(fit_kmeans(points, 10).inertia, rel=0.02)
