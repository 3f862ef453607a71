"""The loss of a batch: whom its refined images are held against, when the banks are fed, and how branches weigh."""

import pytest
import torch
from torch import nn

from latentloom.drifting.class_batches import ClassBatch
from latentloom.drifting.config import DriftConfig
from latentloom.drifting.corruption import Holes
from latentloom.drifting.encoders import FeatureEncoder
from latentloom.drifting.features import feature_groups
from latentloom.drifting.field import compute_drift, drifting_loss
from latentloom.drifting.image_features import ImageFeatures
from latentloom.drifting.objective import DriftObjective
from latentloom.drifting.queues import SampleQueue
from latentloom.training import load_state, save_state

CPU = torch.device("cpu")
SHAPE = (1, 2, 2)
NUM_CLASSES, NUM_GEN = 3, 4
ALPHA = torch.tensor([1.0, 3.0])
TEMPERATURES = (0.02, 0.05, 0.2)
#: Banks that hold exactly what is drawn, so that the draw is known but for its order, which is of no matter.
SMALL = {
    **{"feature_loss_weight": 0.0, "vanilla_loss_weight": 1.0, "n_classes_step": 2, "n_gen_per_class": NUM_GEN},
    **{"drift_n_pos": NUM_GEN, "queue_pos": NUM_GEN, "drift_n_neg": NUM_GEN, "queue_neg": NUM_GEN},
    **{"drift_n_unc": 2 * NUM_GEN, "queue_unc": 2 * NUM_GEN, "temperatures": TEMPERATURES},
}


class TwoMaps(nn.Module):
    """A network with a map of 2 x 2 cells and one of a single cell."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.fine, self.coarse = nn.Conv2d(1, 3, 1), nn.Conv2d(3, 5, 2)

    def forward(self, samples):
        fine = torch.tanh(self.fine(samples))
        return [fine, self.coarse(fine)]


def objective(encoder=None, **changes):
    config = DriftConfig.model_validate({**SMALL, **changes})
    return DriftObjective(config, ImageFeatures(config, encoder), SHAPE, NUM_CLASSES, seed=0, device=CPU)


def some_images(seed, num=2 * NUM_GEN):
    return torch.randn(num, *SHAPE, generator=torch.Generator().manual_seed(seed))


def batch(number, classes=(2, 0), images=None, alpha=ALPHA):
    images = some_images(number) if images is None else images
    holes = Holes(torch.ones(len(images), 1, dtype=torch.bool), torch.zeros(len(images), dtype=torch.int64), None)
    rows = torch.arange(len(images))
    return ClassBatch(number, torch.tensor(classes), slice(0, len(classes)), rows, images, holes, alpha, NUM_GEN)


def refined_images(seed):
    return (0.3 * some_images(100 + seed)).requires_grad_()


def by_class(images):
    return images.flatten(1).unflatten(0, (-1, NUM_GEN))


def expected_loss(gen, pos, neg, unc, alpha=ALPHA):
    """The loss on the images themselves, out of the field's public function."""
    weight_unc = ((alpha - 1) * (NUM_GEN - 1) / len(unc))[:, None].expand(-1, len(unc))
    num_neg = 0 if neg is None else neg.shape[1]
    repelling = unc.flatten(1).expand(len(gen), -1, -1)
    repelling = repelling if neg is None else torch.cat([neg, repelling], dim=1)
    weight_neg = torch.cat([torch.ones(len(gen), num_neg), weight_unc], dim=1)
    return drifting_loss(gen, pos, repelling, temperatures=TEMPERATURES, weight_neg=weight_neg).mean()


def test_the_first_batch_is_attracted_by_its_own_real_images_and_not_repelled_by_its_refined_ones():
    first, refined = batch(0), refined_images(0)
    loss, measures = objective()(first, refined)
    (gradient,) = torch.autograd.grad(loss, refined)
    twin = refined.detach().clone().requires_grad_()
    expected = expected_loss(by_class(twin), by_class(first.clean), None, first.clean)
    (wanted,) = torch.autograd.grad(expected, twin)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.allclose(gradient, wanted, atol=1e-6)
    assert measures == {}


def test_refined_images_enter_the_bank_only_after_the_draw():
    # the bank holds one batch, so whichever way round, the second batch meets either the first or itself
    instance = objective()
    first, second = batch(0), batch(1)
    earlier, refined = refined_images(0), refined_images(1)
    instance(first, earlier)
    loss, _ = instance(second, refined)
    unc = second.clean
    right = expected_loss(by_class(refined), by_class(second.clean), by_class(earlier), unc)
    swapped = expected_loss(by_class(refined), by_class(second.clean), by_class(refined), unc)
    assert loss.item() == pytest.approx(right.item(), rel=1e-5)
    assert swapped.item() != pytest.approx(right.item(), rel=1e-2)


def test_a_batch_that_meets_its_own_copies_would_not_be_drawn_to_the_real_ones():
    # why the order matters: the copies repel at distance 0, and the field they leave is another one
    gen, pos = by_class(refined_images(0).detach()), by_class(some_images(0))
    kept = compute_drift(gen, pos, temperatures=(0.05,)).field
    copied = compute_drift(gen, pos, gen, temperatures=(0.05,)).field
    assert torch.cosine_similarity(kept, copied, dim=-1).mean() < 0.9


def test_all_banks_hold_what_was_pushed_without_gradients():
    instance = objective()
    for number in range(2):
        loss, _ = instance(batch(number, classes=(2, 0)), refined_images(number))
        loss.backward()
    banks = instance.banks()
    assert banks["positives"].num_pushed.tolist() == banks["negatives"].num_pushed.tolist() == [8, 0, 8]
    assert banks["unconditional"].num_pushed.tolist() == [16]
    held, valid = banks["negatives"].sample(torch.tensor([2]), NUM_GEN, torch.Generator())
    assert bool(valid.all())
    assert not held.requires_grad
    last = refined_images(1)[:NUM_GEN].detach()
    assert torch.equal(held[0].flatten(1).sort(0).values, last.flatten(1).sort(0).values)


def test_a_start_with_fewer_held_samples_than_asked_counts_those_that_are_there():
    more = {"drift_n_pos": 9, "queue_pos": 9, "drift_n_neg": 9, "queue_neg": 9, "drift_n_unc": 50, "queue_unc": 50}
    first, refined = batch(0), refined_images(0)
    loss, _ = objective(**more)(first, refined)
    enough, _ = objective()(first, refined)
    assert loss.item() == pytest.approx(enough.item(), rel=1e-5)


def test_classes_with_unequal_banks_are_held_against_what_each_has():
    more = {"drift_n_neg": 8, "queue_neg": 8, "drift_n_pos": 8, "queue_pos": 8}
    instance = objective(**more)
    instance(batch(0, classes=(2, 1)), refined_images(0))
    loss, _ = instance(batch(1, classes=(2, 0)), refined_images(1))  # 2 comes for the second time
    loss.backward()
    assert bool(loss.isfinite())
    alone = objective(**more)
    other, _ = alone(batch(1, classes=(2, 0)), refined_images(1))
    assert loss.item() != pytest.approx(other.item(), rel=1e-3)


def test_alpha_sets_how_strongly_the_unconditional_images_repel():
    gradients = []
    for alpha in (torch.ones(2), ALPHA):
        first, refined = batch(0, alpha=alpha), refined_images(0)
        loss, _ = objective()(first, refined)
        twin = refined.detach().clone().requires_grad_()
        expected = expected_loss(by_class(twin), by_class(first.clean), None, first.clean, alpha)
        (gradient,), (wanted,) = torch.autograd.grad(loss, refined), torch.autograd.grad(expected, twin)
        assert torch.allclose(gradient, wanted, atol=1e-6)
        gradients.append(by_class(gradient))
    difference = (gradients[0] - gradients[1]).flatten(1).norm(dim=1) / gradients[0].flatten(1).norm(dim=1)
    assert difference[1] > 0.05  # alpha is 1 and 3
    # the first class keeps its alpha of 1; only the norm that classes share is another
    assert torch.cosine_similarity(gradients[0][0].flatten(), gradients[1][0].flatten(), dim=0) > 0.99


def test_the_image_branch_alone_needs_no_encoder_and_has_its_weight():
    first, refined = batch(0), refined_images(0)
    once, _ = objective()(first, refined)
    thrice, _ = objective(vanilla_loss_weight=3.0)(first, refined)
    assert thrice.item() == pytest.approx(3 * once.item(), rel=1e-5)


def test_branches_add_up_by_their_weights():
    encoder = FeatureEncoder(TwoMaps(), 1)
    first, refined = batch(0), refined_images(0)
    vanilla, _ = objective()(first, refined)
    features, _ = objective(encoder, feature_loss_weight=1.0, vanilla_loss_weight=0.0)(first, refined)
    both, _ = objective(encoder, feature_loss_weight=2.0, vanilla_loss_weight=0.5)(first, refined)
    assert both.item() == pytest.approx(2 * features.item() + 0.5 * vanilla.item(), rel=1e-5)


def test_features_add_up_and_each_is_the_mean_over_its_locations():
    encoder = FeatureEncoder(TwoMaps(), 1)
    first, refined = batch(0, alpha=torch.ones(2)), refined_images(0)
    settings = {"feature_loss_weight": 1.0, "vanilla_loss_weight": 0.0, "feature_include_local": True}
    loss, _ = objective(encoder, **settings, drift_n_unc=0)(first, refined)
    flags = {"global_stats": True, "local": True, "patch_stats": True}
    gen, pos = (feature_groups(encoder(images), **flags) for images in (refined, first.clean))
    expected = 0.0
    for name in gen:
        # a location is a problem of its own within the call: [class, location] first
        problems = [part[name].unflatten(0, (2, NUM_GEN)).transpose(1, 2).flatten(0, 1).detach() for part in (gen, pos)]
        expected += drifting_loss(*problems, temperatures=TEMPERATURES).mean().item()
    assert "stage1/local" in gen
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_gradients_reach_the_refined_images_through_the_encoder_and_never_its_weights():
    network = TwoMaps()
    instance = objective(FeatureEncoder(network, 1), feature_loss_weight=1.0, vanilla_loss_weight=0.0)
    refined = refined_images(0)
    loss, _ = instance(batch(0), refined)
    loss.backward()
    assert refined.grad is not None
    assert bool(refined.grad.flatten(1).any(dim=1).all())
    assert all(weight.grad is None for weight in network.parameters())


def test_measures_tell_of_the_kernel_and_the_banks_and_change_nothing():
    instance, twin = objective(), objective()
    measures = {}
    for number in range(2):
        loss, measures = instance(batch(number), refined_images(number), measures=True)
        other, _ = twin(batch(number), refined_images(number))
        assert loss.item() == other.item()
    assert measures["queue/occupancy_min"] == 0  # class 1 never came
    assert measures["queue/empty_share"] == pytest.approx(1 / 3)
    assert {"kernel/0.02/neighbours", "kernel/distance_pos", "separation/ratio"} <= measures.keys()


def test_the_same_seed_and_number_draw_the_same_from_larger_banks():
    settings = {"queue_pos": 12, "queue_neg": 12, "queue_unc": 40}
    losses = []
    for seed in (0, 0, 1):
        config = DriftConfig.model_validate({**SMALL, **settings})
        instance = DriftObjective(config, ImageFeatures(config, None), SHAPE, NUM_CLASSES, seed, CPU)
        losses.append([instance(batch(number), refined_images(number))[0].item() for number in range(4)])
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


def test_banks_that_nothing_is_drawn_from_are_not_kept():
    unused = {"paired": True, "drift_n_neg": 0, "drift_n_unc": 0}
    instance = objective(**unused)
    loss, measures = instance(batch(0), refined_images(0), measures=True)
    loss.backward()
    assert instance.banks() == {}
    assert not any(name.startswith("queue/") for name in measures)  # of a bank that is not there
    assert "kernel/0.02/neighbours" in measures
    assert objective(paired=True, drift_n_neg=0).banks().keys() == {"unconditional"}
    assert objective(drift_n_unc=0).banks().keys() == {"positives", "negatives"}


def test_a_state_that_also_kept_a_bank_nothing_was_drawn_from_still_resumes(tmp_path):
    instance, again = objective(drift_n_neg=0), objective(drift_n_neg=0)
    instance(batch(0), refined_images(0))
    before = {**instance.banks(), "negatives": SampleQueue(NUM_CLASSES, 1, SHAPE)}  # as earlier versions wrote it
    save_state(tmp_path / "state.safetensors", 1, before, [])
    assert load_state(tmp_path / "state.safetensors", again.banks(), []) == 1
    losses = [one(batch(1), refined_images(1))[0].item() for one in (instance, again)]
    assert losses[0] == losses[1]
