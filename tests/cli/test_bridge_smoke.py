"""Settings by a recipe's name, and one run of each direction on a backbone."""

import json
import os
import shutil
from pathlib import Path

import pytest
from tiny_backbones import write_tiny_backbone

from latentloom.bridge.offline import OFFLINE_VARIABLES
from latentloom.cli import bridge_smoke
from latentloom.cli.bridge_settings import bridge_settings
from latentloom.errors import ConfigError, CorruptFileError


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The offline variables are not set, and are not left set."""
    for name in OFFLINE_VARIABLES:
        monkeypatch.setenv(name, "0")


def settings_for(folder: Path) -> list[str]:
    return [
        f"model.pretrained_model_name_or_path={folder}",
        "model.latent_dim=12",
        "training.device=cpu",
        "training.dtype=fp32",
    ]


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("kind", ["llama", "wedlm"])
def test_each_direction_runs_once_and_offline(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_tiny_backbone(tmp_path / kind, kind)
    bridge_smoke.command(overrides=settings_for(folder), json_file=str(tmp_path / "out.json"))
    steps = json.loads((tmp_path / "out.json").read_text())["steps"]
    assert [step["name"] for step in steps] == ["load", "latent to text", "text to latent", "decode"]
    assert all(step["seconds"] > 0 for step in steps)
    assert "(4, 12)" in steps[1]["result"]
    assert len(capsys.readouterr().out.splitlines()) == 4
    assert [os.environ[name] for name in OFFLINE_VARIABLES] == ["1", "1", "1"]


@pytest.mark.usefixtures("environment")
def test_without_its_weights_it_is_skipped_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bridge_smoke.command(config_name="wedlm8b_ar_bridge")
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("skipped: tencent/WeDLM-8B-Base is neither in local_models/wedlm-8b nor in the hub's cache")
    assert "latentloom bridge fetch" in line


@pytest.mark.usefixtures("environment")
def test_weights_that_are_damaged_are_not_skipped(tmp_path: Path) -> None:
    folder = write_tiny_backbone(tmp_path / "model", "qwen2")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(CorruptFileError, match=r"model\.safetensors is damaged"):
        bridge_smoke.command(overrides=settings_for(folder))


def test_a_recipe_is_found_here_first_and_then_in_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    theirs = bridge_settings("wedlm8b_ar_bridge", None, ["training.lr=1e-4", "training.task=t2l"])
    assert theirs.model.pretrained_model_name_or_path == "tencent/WeDLM-8B-Base"
    assert (theirs.training.lr, theirs.training.t2l_lr, theirs.training.task) == (1e-4, None, "t2l")
    assert (theirs.model.latent_dim, theirs.logging.run_name) == (1024, "wedlm-8b-ar-latent-bridge")
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "wedlm8b_ar_bridge.toml").write_text("[training]\nlr = 0.5\n")
    assert bridge_settings("wedlm8b_ar_bridge", None, None).training.lr == 0.5
    shutil.rmtree(tmp_path / "recipes")
    with pytest.raises(ConfigError, match=r"no recipe 'nope' in .*there are .*wedlm8b_ar_bridge"):
        bridge_settings("nope", None, None)
    with pytest.raises(ConfigError, match="are both given"):
        bridge_settings("a", Path("b.toml"), None)
