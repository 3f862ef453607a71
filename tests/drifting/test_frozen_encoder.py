"""The encoder of a run is the same on any number of processes, and has not seen what the run holds out."""

import pytest
import torch

from latentloom.drifting.config import DriftConfig, MaeConfig
from latentloom.drifting.data import load_data
from latentloom.drifting.frozen_encoder import MAE_BATCH, encoder_digest, make_encoder
from latentloom.drifting.mae import LatentMae, MaeShape, save_mae
from latentloom.drifting.train_mae import train_mae
from latentloom.errors import ConfigError

CPU = torch.device("cpu")
IMAGES = {"dataset": "fake", "image_size": 8, "fake_classes": 3, "fake_images": 36}


@pytest.mark.parametrize("count", [1, 2, 8])
def test_an_autoencoder_trained_here_sees_as_many_images_a_step_on_any_number_of_processes(
    count, monkeypatch, tmp_path
):
    seen = {}
    monkeypatch.setattr("latentloom.drifting.frozen_encoder.num_processes", lambda: count)

    def record(data, config, folder):
        seen["batch"] = config.batch_size
        save_mae(folder / "mae.safetensors", LatentMae(MaeShape(channels=3, width=4, stages=1, blocks=1)))
        return folder / "mae.safetensors"

    monkeypatch.setattr("latentloom.drifting.train_mae.train_mae", record)
    config = DriftConfig.model_validate({**IMAGES, "feature_space": "mae"})
    make_encoder(config, load_data(config, CPU), tmp_path, CPU)
    assert seen["batch"] * count == MAE_BATCH


def test_a_number_of_processes_that_cannot_share_a_step_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr("latentloom.drifting.frozen_encoder.num_processes", lambda: 3)
    config = DriftConfig.model_validate({**IMAGES, "feature_space": "mae"})
    with pytest.raises(ConfigError, match="3 processes cannot share"):
        make_encoder(config, load_data(config, CPU), tmp_path, CPU)


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    """The file of an autoencoder that was trained for two steps."""
    config = MaeConfig.model_validate({**IMAGES, "steps": 2, "width": 4, "stages": 1, "blocks": 1, "batch_size": 8})
    return train_mae(load_data(config, CPU), config, tmp_path_factory.mktemp("mae"))


@pytest.mark.parametrize("change", [{"split_seed": 1}, {"held_out_share": 0.2}, {"validation_share": 0.3}])
def test_an_autoencoder_of_another_split_of_the_images_is_refused(autoencoder, change, tmp_path):
    config = DriftConfig.model_validate({**IMAGES, "feature_space": "mae", "feature_checkpoint": autoencoder, **change})
    with pytest.raises(ConfigError, match="may have seen images that are held out") as raised:
        make_encoder(config, load_data(config, CPU), tmp_path, CPU)
    assert next(iter(change)) in str(raised.value)


def test_an_autoencoder_of_the_same_split_or_of_other_images_is_taken(autoencoder, tmp_path):
    same = DriftConfig.model_validate({**IMAGES, "feature_space": "mae", "feature_checkpoint": autoencoder})
    assert make_encoder(same, load_data(same, CPU), tmp_path, CPU) is not None
    other = tmp_path / "other.safetensors"  # without a record, as from another data set
    save_mae(other, LatentMae(MaeShape(channels=3, width=4, stages=1, blocks=1)))
    config = same.model_copy(update={"feature_checkpoint": other, "split_seed": 1})
    assert make_encoder(config, load_data(config, CPU), tmp_path, CPU) is not None


def test_weights_that_change_in_place_have_another_digest(tmp_path):
    path = tmp_path / "mae.safetensors"
    config = DriftConfig.model_validate({**IMAGES, "feature_space": "mae", "feature_checkpoint": path})
    digests = []
    for seed in (0, 1, 0):
        torch.manual_seed(seed)
        save_mae(path, LatentMae(MaeShape(channels=3, width=4, stages=1, blocks=1)))
        digests.append(encoder_digest(config))
    assert digests[0] == digests[2] != digests[1]
    assert encoder_digest(DriftConfig.model_validate(IMAGES)) is None
