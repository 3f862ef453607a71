"""The condition vector: clips alike in prompt and keyframes lie close together, in memory that does not grow."""

import pytest
import torch

from latentloom.drifting.clips.clip_sample import ClipSample
from latentloom.drifting.clips.condition import ConditionEncoder, fit_condition_encoder, load_condition_encoder
from latentloom.drifting.clips.condition_parts import ConditionSettings, pooled_text
from latentloom.drifting.encoders import resnet_encoder
from latentloom.drifting.representation.reservoir import Reservoir
from latentloom.errors import CheckpointError, ConfigError, ShapeError
from latentloom.tensors import TextEmbeddings

SHAPE = (3, 5, 4, 4)


def clip(kind, seed, text_width: int | None = 6, shape=SHAPE):
    """A clip of one of a few kinds, which differ in prompt and keyframes, with noise of its own."""
    own, shared = torch.Generator().manual_seed(1000 + seed), torch.Generator().manual_seed(kind)
    values = torch.randn(shape[0], 1, 1, 1, generator=shared) + 0.05 * torch.randn(shape, generator=own)
    text = None
    if text_width:
        length = int(torch.randint(1, 5, (), generator=own))
        direction = torch.randn(text_width, generator=shared)
        text = direction + 0.05 * torch.randn(length, text_width, generator=own)
    return ClipSample(f"{seed}", values, text, "a prompt", None)


def clips(num=60, num_kinds=4, **given):
    return [clip(number % num_kinds, number, **given) for number in range(num)]


def test_clips_of_a_kind_are_closer_than_others():
    encoder, vectors, num = fit_condition_encoder(clips())
    assert num == 60
    distances = torch.cdist(vectors, vectors)
    kinds = torch.arange(60) % 4
    same = (kinds[:, None] == kinds) & ~torch.eye(60, dtype=torch.bool)
    assert distances[same].max() < distances[kinds[:, None] != kinds].min()
    assert torch.allclose(encoder.embed(clips()), vectors, atol=1e-5)


def test_frames_between_the_keyframes_do_not_count():
    encoder, _, _ = fit_condition_encoder(clips())
    assert encoder.keyframes == (0, 4)
    changed, other = clip(0, 0), clip(0, 0)
    changed.values[:, 1:4] = 100.0
    assert torch.equal(encoder.embed([changed]), encoder.embed([clip(0, 0)]))
    other.values[:, 4] = 100.0
    assert not torch.equal(encoder.embed([other]), encoder.embed([clip(0, 0)]))


def test_each_part_has_its_weight_as_variance():
    data = [clip(number, number) for number in range(40)]  # all different
    encoder, _, _ = fit_condition_encoder(data, ConditionSettings(text_weight=3.0, keyframe_weight=1.0))
    scaled = (encoder.parts.of_samples(data) - encoder.mean) * encoder.scale
    variances = scaled.var(dim=0, correction=0)
    assert float(variances[:6].sum()) == pytest.approx(9.0, rel=1e-3)
    assert float(variances[6:].sum()) == pytest.approx(1.0, rel=1e-3)


def test_without_weight_a_part_has_no_effect():
    encoder, _, _ = fit_condition_encoder(clips(), ConditionSettings(text_weight=0.0))
    with_text, without = clip(1, 3), clip(1, 3, text_width=None)
    without.values.copy_(with_text.values)
    assert encoder.text_width is None
    assert torch.equal(encoder.embed([with_text]), encoder.embed([without]))


def test_channels_that_never_change_do_not_explode():
    data = clips()
    for sample in data:
        sample.values[0] = 7.0
    encoder, _, _ = fit_condition_encoder(data)
    odd = clip(0, 0)
    odd.values[0] = 8.0
    assert encoder.embed([odd]).isfinite().all()
    assert encoder.embed([odd]).norm() < 10


def test_the_width_is_that_of_the_settings_or_of_what_there_is():
    encoder, _, _ = fit_condition_encoder(clips(), ConditionSettings(width=5))
    assert encoder.width == 5
    encoder, _, _ = fit_condition_encoder(clips(num=8))
    assert encoder.width == 8


def test_a_batch_of_clips_gives_what_samples_give():
    encoder, _, _ = fit_condition_encoder(clips())
    some = clips(num=7)
    text = TextEmbeddings.from_list([sample.text for sample in some if sample.text is not None])
    vectors = encoder.embed_clips(torch.stack([sample.values for sample in some]), text)
    assert torch.allclose(vectors, encoder.embed(some), atol=1e-6)


def test_pooled_text_is_the_mean_of_true_tokens_and_zero_without_any():
    text = TextEmbeddings.from_list([torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.zeros(0, 2), torch.ones(1, 2)])
    assert pooled_text(text).tolist() == [[2.0, 3.0], [0.0, 0.0], [1.0, 1.0]]


def test_features_of_keyframes_take_part():
    features = resnet_encoder(None, channels=3, seed=0)
    encoder, vectors, _ = fit_condition_encoder(clips(num=12), features=features)
    plain, _, _ = fit_condition_encoder(clips(num=12))
    assert len(encoder.mean) > len(plain.mean)
    assert torch.allclose(encoder.embed(clips(num=12)), vectors, atol=1e-4)
    rebuilt = load_condition_encoder(encoder.config(), encoder.state_dict(), resnet_encoder(None, channels=3, seed=0))
    assert rebuilt.fingerprint == encoder.fingerprint
    with pytest.raises(CheckpointError, match="give the feature encoder it was fitted with"):
        load_condition_encoder(encoder.config(), encoder.state_dict())
    with pytest.raises(CheckpointError, match="give the feature encoder it was fitted with"):
        load_condition_encoder(encoder.config(), encoder.state_dict(), resnet_encoder(None, channels=3, seed=1))


def test_the_fingerprint_follows_data_and_settings():
    encoder, _, _ = fit_condition_encoder(clips())
    again, _, _ = fit_condition_encoder(clips())
    other, _, _ = fit_condition_encoder(clips(num=50))
    weighted, _, _ = fit_condition_encoder(clips(), ConditionSettings(text_weight=2.0))
    assert encoder.fingerprint == again.fingerprint
    assert len({encoder.fingerprint, other.fingerprint, weighted.fingerprint}) == 3


def test_it_is_rebuilt_from_config_and_tensors():
    encoder, _, _ = fit_condition_encoder(clips())
    rebuilt = load_condition_encoder(encoder.config(), encoder.state_dict())
    assert rebuilt.fingerprint == encoder.fingerprint
    assert torch.equal(rebuilt.embed(clips()), encoder.embed(clips()))
    cut = {**encoder.state_dict(), "mean": encoder.mean[:-1]}
    with pytest.raises(CheckpointError, match="not those of its settings"):
        load_condition_encoder(encoder.config(), cut)
    with pytest.raises(CheckpointError, match="no known condition encoder"):
        load_condition_encoder({"features": None}, encoder.state_dict())


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: clip(0, 0, shape=(5, 3, 4, 4)), r"\[5, 3, 4, 4\] for an encoder of \[3, 5, 4, 4\]"),
        (lambda: clip(0, 0, text_width=7), "does not have 6 channels"),
        (lambda: clip(0, 0, text_width=None), "does not have 6 channels"),
    ],
)
def test_other_clips_are_refused(other, message):
    encoder, _, _ = fit_condition_encoder(clips())
    with pytest.raises(ShapeError, match=message):
        encoder.embed([other()])


def test_a_batch_without_its_texts_is_refused():
    encoder, _, _ = fit_condition_encoder(clips())
    with pytest.raises(ShapeError, match="2 texts of 6 channels are needed, not none"):
        encoder.embed_clips(torch.zeros(2, *SHAPE))


def test_no_clips_and_no_parts_are_refused():
    with pytest.raises(ConfigError, match="no clips"):
        fit_condition_encoder([])
    with pytest.raises(ConfigError, match="nothing is left to look at"):
        fit_condition_encoder(clips(text_width=None), ConditionSettings(keyframe_weight=0.0))
    with pytest.raises(ValueError, match="all weights are 0"):
        ConditionSettings(text_weight=0, keyframe_weight=0, feature_weight=0)


def test_it_is_fitted_to_a_bounded_sample_of_the_stream():
    encoder, vectors, num = fit_condition_encoder((clip(n % 4, n) for n in range(200)), sample_size=30)
    assert num == 200
    assert len(vectors) == 30
    assert isinstance(encoder, ConditionEncoder)


def test_a_reservoir_keeps_every_row_of_a_short_stream_in_order():
    reservoir = Reservoir(10)
    reservoir.add(torch.arange(6.0).view(3, 2))
    reservoir.add(torch.arange(2.0).view(1, 2))
    assert reservoir.rows().tolist() == [[0, 1], [2, 3], [4, 5], [0, 1]]


def test_a_reservoir_keeps_every_row_of_a_long_stream_with_equal_chances():
    kept = torch.zeros(100)
    for seed in range(400):
        reservoir = Reservoir(20, seed)
        for part in torch.arange(100.0).view(100, 1).split(7):
            reservoir.add(part)
        rows = reservoir.rows().flatten().long()
        assert len(rows.unique()) == 20
        kept[rows] += 1
    # 400 draws with a chance of a fifth: 80 with a deviation of 8
    assert (kept - 80).abs().max() < 5 * 8
    assert abs(float(kept[:50].sum()) - 4000) < 5 * 400**0.5 * 50**0.5 / 2


def test_an_empty_reservoir_is_refused():
    with pytest.raises(ConfigError, match="nothing was added"):
        Reservoir(3).rows()
    with pytest.raises(ConfigError, match="keep at least 1"):
        Reservoir(0)
