"""The field agrees with the official code's numbers and keeps the invariants of its formula."""

from inspect import unwrap

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentloom.drifting.field import compute_drift, drifting_loss, drifting_losses
from latentloom.drifting.field_by_class import drifting_losses_by_class
from latentloom.errors import ConfigError, ShapeError

TEMPERATURES = (0.02, 0.05, 0.2)
FILES = {
    "01_plain_single_temp": [""],
    "02_multi_temperature": [""],
    "03_cfg_weighted_negatives": [""],
    "04_self_mask_duplicates": [""],
    "05_grouped_locations": ["group_", "loc0_", "loc1_", "loc2_", "loc3_"],
    "06a_classes_joint_vs_separate": ["joint_", "class0_", "class1_", "class2_"],
    "07_tiny_counts": ["g2p1_", "g1p1_", "g1p4n1_", "dim1_"],
}
PROBLEMS = [(name, prefix) for name, prefixes in FILES.items() for prefix in prefixes]


def reference(shared, name):
    return np.load(shared / "data" / "drifting_reference" / f"{name}.npz")


@pytest.mark.parametrize(("name", "prefix"), PROBLEMS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_the_numbers_are_those_of_the_official_code(shared, name, prefix, dtype):
    arrays = reference(shared, name)

    def read(key):
        return torch.tensor(arrays[prefix + key]).to(dtype)

    gen = read("gen").requires_grad_()
    settings = {"temperatures": arrays[f"{prefix}R"].tolist()}
    settings |= {f"weight_{part}": read(f"w_{part}") for part in ("gen", "pos", "neg")}
    drift = compute_drift(gen, read("pos"), read("neg"), **settings)
    loss = drifting_loss(gen, read("pos"), read("neg"), **settings)
    loss.sum().backward()
    # coincident samples are 1e-4 apart by definition, which float32 sees only roughly: the official code's too
    tolerance = 1e-6 if dtype == torch.float64 else 2e-3 if name.startswith("04") else 1e-4
    for found, key in [
        (drift.field, "V"),
        (drift.scale, "scale"),
        (drift.force_norms, "fnorm"),
        (loss, "loss"),
        (gen.grad, "grad"),
    ]:
        expected = torch.tensor(arrays[f"{prefix}{key}_f64"])
        size = expected.abs().max().clamp_min(1.0)
        assert float((found.detach().double() - expected).abs().max() / size) < tolerance, key


def test_locations_of_a_feature_share_scale_and_norm_and_average_their_losses(shared):
    arrays = reference(shared, "05_grouped_locations")
    gen, pos, neg = (torch.tensor(arrays[key], dtype=torch.float64) for key in ("gen_bgfd", "pos_bpfd", "neg_bufd"))
    gen.requires_grad_()
    # the file repeats a class's weights for each of its four locations
    weights = torch.tensor(arrays["group_w_neg"], dtype=torch.float64)[::4]
    (losses,) = drifting_losses([gen], [pos], [neg], temperatures=arrays["group_R"].tolist(), weight_neg=weights)
    losses.sum().backward()
    expected = torch.tensor(arrays["group_loss_f64"]).view(3, 4).mean(1)
    torch.testing.assert_close(losses.detach(), expected, rtol=0, atol=1e-9)
    gradient = torch.tensor(arrays["group_grad_f64"]).view(3, 4, 6, 10).transpose(1, 2) / 4
    torch.testing.assert_close(gen.grad, gradient, rtol=0, atol=1e-9)


def test_the_joint_scale_is_not_that_of_single_classes(shared):
    arrays = reference(shared, "06a_classes_joint_vs_separate")
    assert abs(float(arrays["joint_scale_f64"]) - float(arrays["class0_scale_f64"])) > 1e-3


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 6), st.integers(1, 4), st.integers(0, 10**6))
def test_the_field_is_0_where_what_attracts_and_what_repels_is_the_same_set(num_problems, num_gen, num, width, seed):
    """The generated samples' own repulsion is weighted 0: it is one-sided, as nobody repels itself."""
    gen, pos = draw(num_problems, num_gen, width, seed=seed), draw(num_problems, num, width, seed=seed + 1)
    order = torch.randperm(num, generator=torch.Generator().manual_seed(seed))
    own = torch.zeros(num_problems, num_gen, dtype=torch.float64)
    drift = compute_drift(gen, pos, pos[:, order], temperatures=TEMPERATURES, weight_gen=own)
    assert float(drift.field.abs().max()) < 1e-6


def test_the_field_of_a_sample_that_lies_on_the_only_real_one_is_0():
    gen = draw(3, 1, 4)
    assert bool((compute_drift(gen, gen.clone(), temperatures=TEMPERATURES).field == 0).all())


@given(st.integers(2, 6), st.integers(2, 6), st.integers(1, 5), st.integers(0, 10**6))
def test_swapping_attraction_and_repulsion_turns_the_field_around(num_pos, num_neg, width, seed):
    """With one generated sample, whose own part is masked, positives and negatives play the same game."""
    gen, pos, neg = (
        draw(1, 1, width, seed=seed),
        draw(1, num_pos, width, seed=seed + 1),
        draw(1, num_neg, width, seed=seed + 2),
    )
    own = torch.zeros(1, 1, dtype=torch.float64)
    there = compute_drift(gen, pos, neg, temperatures=TEMPERATURES, weight_gen=own)
    back = compute_drift(gen, neg, pos, temperatures=TEMPERATURES, weight_gen=own)
    torch.testing.assert_close(there.field, -back.field, rtol=1e-9, atol=1e-9)


@given(st.integers(1, 4), st.integers(2, 5), st.integers(0, 10**6))
def test_the_order_of_samples_and_classes_does_not_matter(num_problems, num, seed):
    gen, pos, neg = (draw(num_problems, num + extra, 3, seed=seed + extra) for extra in (0, 1, 2))
    generator = torch.Generator().manual_seed(seed)
    problems = torch.randperm(num_problems, generator=generator)
    rows = torch.randperm(num, generator=generator)
    drift = compute_drift(gen, pos, neg, temperatures=TEMPERATURES)
    mixed = compute_drift(
        gen[problems][:, rows], pos[problems].flip(1), neg[problems].roll(1, 1), temperatures=TEMPERATURES
    )
    torch.testing.assert_close(mixed.field, drift.field[problems][:, rows], rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(mixed.force_norms, drift.force_norms)


@given(st.floats(0.01, 100), st.floats(-50, 50), st.integers(0, 10**6))
def test_the_field_does_not_change_with_the_unit_or_the_origin_of_the_features(factor, offset, seed):
    gen, pos, neg = draw(2, 4, 5, seed=seed), draw(2, 6, 5, seed=seed + 1) + 0.3, draw(2, 3, 5, seed=seed + 2)
    drift = compute_drift(gen, pos, neg, temperatures=TEMPERATURES)
    moved = compute_drift(*(samples * factor + offset for samples in (gen, pos, neg)), temperatures=TEMPERATURES)
    # not exact: a sample's distance from itself is 1e-4 in whatever unit
    torch.testing.assert_close(moved.field, drift.field, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(moved.scale, drift.scale * factor, rtol=1e-2, atol=1e-4)


def test_float32_stands_a_common_offset():
    gen, pos = draw(2, 6, 16, dtype=torch.float32), draw(2, 8, 16, seed=1, dtype=torch.float32)
    exact = compute_drift((gen + 300).double(), (pos + 300).double(), temperatures=TEMPERATURES)
    moved = compute_drift(gen + 300, pos + 300, temperatures=TEMPERATURES)
    torch.testing.assert_close(moved.field.double(), exact.field, rtol=1e-3, atol=1e-3)


def test_a_copy_of_a_sample_among_the_negatives_pushes_harder_than_the_sample_itself():
    """The self mask is by index: coincident other samples repel; that is why queues are drawn before they are fed."""
    gen, pos = draw(1, 4, 3), draw(1, 5, 3, seed=1)
    alone = compute_drift(gen, pos, temperatures=[0.2])
    with_copies = compute_drift(gen, pos, gen.clone(), temperatures=[0.2])
    # at distance 0 a copy takes most of a sample's repulsion, which then points nowhere
    nearest = with_copies.force_norms / alone.force_norms
    assert float((with_copies.field - alone.field).norm()) > 0.1 * float(alone.field.norm())
    assert nearest.isfinite().all()


@pytest.mark.parametrize(
    ("gen", "pos"),
    [
        (torch.zeros(2, 3, 4), torch.zeros(2, 1, 4)),
        (torch.zeros(1, 1, 1), torch.zeros(1, 1, 1)),
        (torch.full((1, 4, 3), 1e4), torch.full((1, 2, 3), 1e4)),
        (draw(1, 1, 4, dtype=torch.float32), draw(1, 1, 4, seed=1, dtype=torch.float32)),
        (draw(1, 3, 4, dtype=torch.float32) * 1e-12, draw(1, 1, 4, seed=1, dtype=torch.float32) * 1e-12),
    ],
)
def test_collapsed_and_single_samples_give_numbers(gen, pos):
    gen = gen.clone().requires_grad_()
    drift = compute_drift(gen, pos, temperatures=TEMPERATURES)
    drifting_loss(gen, pos, temperatures=TEMPERATURES).sum().backward()
    assert gen.grad is not None
    assert all(part.isfinite().all() for part in (*drift, gen.grad))


def test_the_gradient_is_that_of_autograd_with_a_fixed_target():
    gen, pos, neg = draw(3, 4, 5), draw(3, 6, 5, seed=1), draw(3, 2, 5, seed=2)
    gen.requires_grad_()
    drift = compute_drift(gen, pos, neg, temperatures=TEMPERATURES)
    sigma = drift.scale / 5**0.5
    scaled = gen / sigma
    loss = (scaled - (scaled + drift.field).detach()).square().mean(dim=(1, 2))
    weights = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    (expected,) = torch.autograd.grad((loss * weights).sum(), gen)
    fast = drifting_loss(gen, pos, neg, temperatures=TEMPERATURES)
    (found,) = torch.autograd.grad((fast * weights).sum(), gen)
    torch.testing.assert_close(fast, loss)
    torch.testing.assert_close(found, expected)


def test_steps_along_the_gradient_carry_a_wide_cloud_onto_the_real_samples():
    generator = torch.Generator().manual_seed(0)
    gen = 2 * draw(1, 64, 2)
    for step in range(300):
        gen = gen.detach().requires_grad_()
        pos = torch.randn(1, 64, 2, generator=generator, dtype=torch.float64) * 0.5 + 3
        drifting_loss(gen, pos, temperatures=TEMPERATURES).sum().backward()
        assert gen.grad is not None
        gen = gen - 20 * (1 - step / 300) * gen.grad
    cloud = gen.detach()
    assert float((cloud.mean(1) - 3).norm()) < 0.15
    # a little wider than the real ones (0.5): with few samples, as nobody repels itself, repulsion is the stronger
    assert 0.45 < float(cloud.std(dim=1).mean()) < 0.9


FEATURES = [(1, 8), (4, 8), (1, 3), (9, 16)]


@pytest.mark.parametrize("weighted", [False, True])
def test_stacked_features_are_the_features_one_by_one(weighted):
    gen = [draw(3, 4, *shape, seed=n).requires_grad_() for n, shape in enumerate(FEATURES)]
    pos = [draw(3, 5, *shape, seed=10 + n) for n, shape in enumerate(FEATURES)]
    neg = [draw(3, 2, *shape, seed=20 + n) for n, shape in enumerate(FEATURES)]
    weights = torch.rand(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) if weighted else None
    fast = drifting_losses(gen, pos, neg, temperatures=TEMPERATURES, weight_neg=weights)
    slow = drifting_losses_by_class(gen, pos, neg, temperatures=TEMPERATURES, weight_neg=weights)
    torch.testing.assert_close(fast, slow)
    factors = draw(*fast.shape, seed=5)
    for found, expected in zip(
        torch.autograd.grad((fast * factors).sum(), gen), torch.autograd.grad((slow * factors).sum(), gen), strict=True
    ):
        torch.testing.assert_close(found, expected)


@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(0, 3)), min_size=1, max_size=4),
    st.integers(0, 10**6),
)
def test_ragged_classes_are_as_if_the_missing_samples_were_not_there(sizes, seed):
    """Scale and force norm are over the pairs that exist; padding, whatever its values, changes nothing."""
    most_gen, most_pos, most_neg = (max(column) for column in zip(*sizes, strict=True))
    classes = [
        [draw(1, count, 3, seed=seed + 10 * number + part) for part, count in enumerate(size)]
        for number, size in enumerate(sizes)
    ]
    padded, valid = [], []
    for part, most in ((0, most_gen), (2, most_neg), (1, most_pos)):
        rows = [
            torch.cat([one[part], torch.full((1, most - one[part].shape[1], 3), torch.nan)], dim=1) for one in classes
        ]
        padded.append(torch.cat(rows))
        valid.append(torch.cat([torch.arange(most)[None] < one[part].shape[1] for one in classes]))
    gen, neg, pos = padded
    drift = compute_drift(gen, pos, neg, temperatures=TEMPERATURES, valid=torch.cat(valid, dim=1))
    scale, norms, fields = ragged_oracle(classes)
    torch.testing.assert_close(drift.scale, scale, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(drift.force_norms, norms, rtol=1e-4, atol=1e-9)
    for number, field in enumerate(fields):
        torch.testing.assert_close(drift.field[number, : len(field)], field, rtol=1e-4, atol=1e-6)
        assert bool((drift.field[number, len(field) :] == 0).all())


def ragged_oracle(classes):
    """Scale, force norms and fields by the formula, in loops over classes of any size."""
    problems = []
    for gen, pos, neg in classes:
        x, targets = gen[0], torch.cat([gen[0], neg[0], pos[0]])
        distances = (x[:, None] - targets).square().sum(-1).clamp_min(1e-8).sqrt()
        problems.append((x, targets, distances, len(x) + neg.shape[1]))
    scale = torch.cat([distances.flatten() for _, _, distances, _ in problems]).mean()
    sigma = (scale / 3**0.5).clamp_min(1e-3)
    fields, norms = [torch.zeros_like(x) for x, *_ in problems], []
    for temperature in TEMPERATURES:
        forces = []
        for _, targets, distances, num_repelling in problems:
            logits = -(distances / scale.clamp_min(1e-3) + 100 * torch.eye(*distances.shape)) / temperature
            a = (logits.softmax(1) * logits.softmax(0)).clamp_min(1e-6).sqrt()
            away, near = a[:, :num_repelling], a[:, num_repelling:]
            pull, push = near @ targets[num_repelling:] / sigma, away @ targets[:num_repelling] / sigma
            forces.append(away.sum(1, keepdim=True) * pull - near.sum(1, keepdim=True) * push)
        norms.append(torch.cat([force.flatten() for force in forces]).square().mean())
        fields = [f + force / norms[-1].clamp_min(1e-8).sqrt() for f, force in zip(fields, forces, strict=True)]
    return scale, torch.stack(norms), fields


def test_only_the_generated_samples_get_a_gradient():
    gen, pos = draw(1, 3, 2).requires_grad_(), draw(1, 4, 2, seed=1).requires_grad_()
    drifting_loss(gen, pos, temperatures=TEMPERATURES).sum().backward()
    assert gen.grad is not None
    assert pos.grad is None


def test_half_precision_features_are_computed_in_float32_and_get_gradients_of_their_dtype():
    gen, pos = draw(1, 3, 8, dtype=torch.float32).bfloat16().requires_grad_(), draw(1, 4, 8, seed=1).bfloat16()
    loss = drifting_loss(gen, pos, temperatures=TEMPERATURES)
    loss.sum().backward()
    assert loss.dtype == torch.float32
    assert gen.grad is not None
    assert gen.grad.dtype == torch.bfloat16


def test_mixed_precision_around_the_field_changes_nothing():
    gen, pos = draw(2, 4, 8, dtype=torch.float32).requires_grad_(), draw(2, 6, 8, seed=1, dtype=torch.float32)
    plain = drifting_loss(gen, pos, temperatures=TEMPERATURES)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = drifting_loss(gen, pos, temperatures=TEMPERATURES)
        drift = compute_drift(gen, pos, temperatures=TEMPERATURES)
    assert torch.equal(plain, mixed)
    assert torch.equal(drift.field, compute_drift(gen, pos, temperatures=TEMPERATURES).field)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"temperatures": ()}, "temperatures"),
        ({"temperatures": (0.1, 0.0)}, "above 0"),
        ({"pos": torch.zeros(2, 0, 4)}, "at least one"),
        ({"pos": torch.zeros(2, 3, 5)}, "only their second dimension"),
        ({"neg": torch.zeros(1, 3, 4)}, "only their second dimension"),
        ({"weight_pos": torch.ones(2, 2)}, "weight_pos"),
        ({"valid": torch.ones(2, 3, dtype=torch.bool)}, "valid"),
    ],
)
def test_what_does_not_fit_together_is_refused_in_a_line(change, words):
    given_ = {"gen": torch.zeros(2, 3, 4), "pos": torch.zeros(2, 3, 4), "temperatures": (0.1,)} | change
    with pytest.raises((ShapeError, ConfigError), match=words):
        unwrap(compute_drift)(**given_)  # without the annotations, which only tests enforce
