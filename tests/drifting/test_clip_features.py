"""Features of clips: what each is named, what it holds, and that gradients come back through it."""

import pytest
import torch
from blob_shards import blobs

from latentloom.drifting.clips.config import ClipConfig
from latentloom.drifting.clips.features import ClipFeatures
from latentloom.drifting.encoders import FeatureEncoder, mae_encoder
from latentloom.drifting.features import VANILLA, feature_groups
from latentloom.drifting.mae import LatentMae, MaeShape, save_mae

NUM_CLIPS, NUM_FRAMES = 3, 9
NOTHING = {
    "feature_include_global_stats": False,
    "feature_include_local": False,
    "feature_include_patch_stats": False,
    "feature_include_motion": False,
    "vanilla_loss_weight": 0.0,
}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> FeatureEncoder:
    path = tmp_path_factory.mktemp("mae") / "mae.safetensors"
    torch.manual_seed(7)
    save_mae(path, LatentMae(MaeShape(channels=3, width=4, stages=2, blocks=1)), {})
    return mae_encoder(path)


def features(encoder, clips, **chosen):
    return ClipFeatures(ClipConfig.model_validate({**NOTHING, **chosen}), encoder)(clips)


def of_single_frames(encoder, clips, **chosen):
    """`feature_groups` of each frame on its own: by name [B, T, L, S]."""
    frames = [encoder(clips[:, :, number]) for number in range(clips.shape[2])]
    kinds = {"global_stats": False, "local": False, "patch_stats": False, **chosen}
    groups = [feature_groups(maps, **kinds) for maps in frames]
    return {name: torch.stack([group[name] for group in groups], dim=1) for name in groups[0]}


@pytest.mark.parametrize("kind", ["global_stats", "local", "patch_stats"])
def test_features_of_frames_are_those_of_images_one_frame_after_the_other(encoder, kind):
    clips = blobs(NUM_CLIPS)
    found = features(encoder, clips, **{f"feature_include_{kind}": True})
    single = of_single_frames(encoder, clips, **{kind: True})
    assert found.keys() == single.keys()
    for name, values in single.items():
        assert torch.allclose(found[name], values.flatten(1, 2), atol=1e-5), name


def test_motion_adds_changes_and_courses_of_the_means_alone(encoder):
    clips = blobs(NUM_CLIPS)
    means = {
        name: values.squeeze(2)
        for name, values in of_single_frames(encoder, clips, global_stats=True).items()
        if name.endswith("mean")
    }
    found = features(encoder, clips, feature_include_motion=True)
    assert found.keys() == {f"{name}/{what}" for name in means for what in ("change", "course")}
    assert len(means) > 1
    for name, values in means.items():
        width = values.shape[2]
        assert found[f"{name}/change"].shape == (NUM_CLIPS, NUM_FRAMES - 1, width)
        assert torch.allclose(found[f"{name}/change"], values[:, 1:] - values[:, :-1], atol=1e-5)
        assert found[f"{name}/course"].shape == (NUM_CLIPS, 1, NUM_FRAMES * width)
        assert torch.allclose(found[f"{name}/course"].view(values.shape), values, atol=1e-5)


def test_a_still_clip_has_no_change_and_playing_backwards_turns_it_round(encoder):
    clips = blobs(NUM_CLIPS)
    still = clips[:, :, :1].expand(-1, -1, NUM_FRAMES, -1, -1).contiguous()
    for name, values in features(encoder, still, feature_include_motion=True).items():
        assert not name.endswith("change") or float(values.abs().max()) < 1e-6
    forwards = features(encoder, clips, feature_include_motion=True)
    backwards = features(encoder, clips.flip(2), feature_include_motion=True)
    changes = [name for name in forwards if name.endswith("change")]
    assert changes
    for name in changes:
        assert torch.allclose(forwards[name], -backwards[name].flip(1), atol=1e-5)
        assert not torch.allclose(forwards[name], backwards[name], atol=1e-3)


def test_global_statistics_and_motion_stand_beside_each_other(encoder):
    clips = blobs(NUM_CLIPS)
    both = features(encoder, clips, feature_include_global_stats=True, feature_include_motion=True)
    apart = features(encoder, clips, feature_include_global_stats=True)
    apart |= features(encoder, clips, feature_include_motion=True)
    assert both.keys() == apart.keys()
    for name, values in apart.items():
        assert torch.equal(both[name], values)


def test_clips_themselves_are_one_vector_each_with_or_without_an_encoder(encoder):
    clips = blobs(NUM_CLIPS)
    alone = features(None, clips, vanilla_loss_weight=1.0, feature_loss_weight=0.0)
    assert alone.keys() == {VANILLA}
    assert torch.equal(alone[VANILLA], clips.reshape(NUM_CLIPS, 1, -1))
    assert VANILLA in features(encoder, clips, vanilla_loss_weight=0.5, feature_include_motion=True)
    assert VANILLA not in features(encoder, clips, feature_include_motion=True)


def test_gradients_reach_every_frame_through_every_feature_and_no_weight_of_the_encoder(encoder):
    clips = blobs(NUM_CLIPS).requires_grad_(True)
    chosen = {name: True for name in NOTHING if name.startswith("feature_include")}
    found = features(encoder, clips, **chosen, vanilla_loss_weight=1.0)
    for name, values in found.items():
        (gradient,) = torch.autograd.grad(values.square().sum(), clips, retain_graph=True)
        moves = gradient.abs().amax(dim=(1, 3, 4)) > 0
        assert bool(moves.all()), name
    assert not any(parameter.requires_grad for parameter in encoder.network.parameters())


def test_a_course_ties_all_frames_of_a_clip_and_a_change_two_neighbours(encoder):
    clips = blobs(1).requires_grad_(True)
    for name, values in features(encoder, clips, feature_include_motion=True).items():
        (gradient,) = torch.autograd.grad(values[:, 0].square().sum(), clips, retain_graph=True)
        frames = (gradient.abs().amax(dim=(0, 1, 3, 4)) > 0).nonzero().flatten().tolist()
        assert frames == (list(range(NUM_FRAMES)) if name.endswith("course") else [0, 1]), name


def test_features_of_a_clip_do_not_hang_on_its_batch(encoder):
    clips = blobs(NUM_CLIPS)
    chosen = {name: True for name in NOTHING if name.startswith("feature_include")}
    whole, alone = (features(encoder, part, **chosen) for part in (clips, clips[1:2]))
    for name, values in alone.items():
        assert torch.allclose(values, whole[name][1:2], atol=1e-5), name


def test_features_in_bfloat16_are_near_the_exact_ones(encoder):
    clips = blobs(NUM_CLIPS)
    exact = features(encoder, clips, feature_include_motion=True)
    for name, values in features(encoder, clips, feature_include_motion=True, amp_bf16=True).items():
        assert bool(values.isfinite().all())
        assert float((values.float() - exact[name]).abs().max()) < 0.05 * float(exact[name].abs().max()) + 0.02, name
