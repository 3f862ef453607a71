"""The recipe refuses settings that a stage would ignore or fail on, before anything is trained."""

import pytest

from latentloom.errors import ConfigError
from latentloom.micro.config import CLIPS_AT_ONCE, NUM_PROCESSES, BuildConfig
from latentloom.runs import load_config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("vae.crop_batch=3", "multiple of 2"),  # two processes share a batch
        ("text.batch=0", "greater than or equal to 1"),
        ("text.mask_share=1.5", "less than or equal to 1"),
        ("text.kept_weight=-0.1", "greater than or equal to 0"),
        ("transformer.text_noise=2", "less than or equal to 1"),
        ("transformer.num_clips=100", "multiple of 64"),  # each process encodes 32 at a time
        ("transformer.steps=0", "greater than or equal to 1"),
        ("transformer.caption_dropout=1.5", "less than or equal to 1"),
        ("vae.crop_size=20", "multiple of 8"),
        ("vae.crop_size=56", "less than or equal to 48"),
        ("vae.muon_lr=0", "greater than 0"),
        ("vae.save_every=0", "greater than or equal to 1"),
        ("seed=-1", "greater than or equal to 0"),
        ("seed=4294967296", "less than 4294967296"),
        ("transformer.dropout=0.1", "dropout"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_by_name(override: str, message: str):
    with pytest.raises(ConfigError, match=message) as refusal:
        load_config(BuildConfig, None, [override])
    assert override.partition("=")[0].rpartition(".")[2] in str(refusal.value)


def test_the_shipped_recipe_shares_evenly_between_its_processes():
    recipe = BuildConfig()
    assert recipe.vae.crop_batch % NUM_PROCESSES == recipe.vae.clip_batch % NUM_PROCESSES == 0
    assert recipe.transformer.num_clips % (NUM_PROCESSES * CLIPS_AT_ONCE) == 0
    assert load_config(BuildConfig, None, ["transformer.num_clips=64", "vae.crop_batch=2"]).vae.crop_batch == 2
