"""`latentloom drift train`: the document's options, files of settings, and mistakes that leave nothing behind."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from latentloom.cli.config_options import config_command
from latentloom.cli.main import NOUNS, Noun, run
from latentloom.drifting.config import DriftConfig, MaeConfig
from latentloom.drifting.mae import LatentMae, MaeShape, save_mae
from latentloom.runs import to_toml

TINY = {
    **{"device": "cpu", "dataset": "fake", "image_size": 8, "fake_classes": 3, "fake_images": 36, "patch_size": 2},
    **{"width": 16, "depth": 1, "num_heads": 2, "steps": 2, "n_classes_step": 2, "n_gen_per_class": 3},
    **{"drift_n_pos": 4, "queue_pos": 6, "drift_n_unc": 4, "queue_unc": 12, "feature_space": "mae"},
}


@pytest.fixture
def parsed(monkeypatch):
    """What `latentloom drift train` makes of a command line's options, without training."""
    calls = []

    def take(settings: DriftConfig) -> None:
        """Take the settings."""
        calls.append(settings)

    module = ModuleType("latentloom_probe")
    vars(module)["command"] = config_command(DriftConfig, take)
    monkeypatch.setitem(sys.modules, "latentloom_probe", module)
    monkeypatch.setitem(NOUNS, "probe", Noun("latentloom_probe", "Only here for tests."))

    def parse(*arguments):
        assert run(["probe", *arguments]) == 0
        return calls[-1]

    return parse


@pytest.fixture
def tiny(tmp_path):
    """A file of tiny settings."""
    file = tmp_path / "tiny.toml"
    file.write_text(to_toml(TINY))
    return str(file)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("--dataset fake --image_size 64", {"dataset": "fake", "pixels": 64}),
        ("--dataset fake --steps 3", {"steps": 3, "encoder_kind": "resnet"}),
        (
            "--dataset fake --image_size 64 --steps 30 --n_classes_step 8 --n_gen_per_class 4 "
            "--feature_include_patch_stats 1",
            {"steps": 30, "n_classes_step": 8, "n_gen_per_class": 4, "feature_include_patch_stats": True},
        ),
        (
            "--dataset fake --image_size 256 --patch_size 16 --steps 12 --n_classes_step 8 --n_gen_per_class 4",
            {"pixels": 256, "patch_size": 16},
        ),
    ],
)
def test_the_command_lines_of_the_document_are_understood(parsed, line, expected):
    settings = parsed(*line.split())
    assert {name: getattr(settings, name) for name in expected} == expected


def test_the_options_that_the_document_names_are_understood(parsed):
    line = """
        --keep_anchors_fixed=0 --interp_mode laplacian --sigma_feature 0.5 --sigma_space 2 --lambda_reg 1e-3
        --cfg_alpha_values 1,2,4 --cfg_alpha_probs 0.5,0.25,0.25 --drift_n_unc 8 --queue_unc 64
        --vanilla_loss_weight 0.1 --amp_bf16 1 --compile_drift=0 --compile_mode reduce-overhead
        --grad_accum 2 --optimizer muon --dataset imagefolder --data_root images
        --input_space latent --feature_space latent_mae --feature_checkpoint mae.safetensors
    """
    settings = parsed(*line.split())
    assert settings.keep_anchors_fixed is False
    assert settings.cfg_alpha_values == (1.0, 2.0, 4.0)
    assert settings.cfg_alpha_probs == (0.5, 0.25, 0.25)
    assert (settings.optimizer, settings.grad_accum, settings.amp_bf16) == ("muon", 2, True)
    assert (settings.input_space, settings.encoder_kind) == ("latent", "latent_mae")
    assert settings.data_root == Path("images")
    assert settings.feature_checkpoint == Path("mae.safetensors")


@pytest.mark.parametrize("join", ["_", "-"])
def test_every_field_is_an_option_by_its_name(parsed, join):
    defaults = DriftConfig.model_validate({})
    arguments = []
    for name, value in defaults.model_dump(mode="json").items():
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value).lower()
        if text:
            arguments += [f"--{name.replace('_', join)}", "none" if value is None else text]
    assert parsed(*arguments) == defaults


def test_options_change_what_the_file_says(parsed, tiny):
    settings = parsed("--config", tiny, "--steps", "7", "--feature_space", "none")
    assert (settings.steps, settings.feature_space, settings.width, settings.lr) == (7, None, 16, 1e-3)


def refused(capsys, *arguments):
    """The one line that a command line is refused with."""
    assert run(["drift", "train", *arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--n_classes_step 0", "n_classes_step = 0"),
        ("--temperatures 0", "temperatures"),
        ("--temperatures 0.1,-1", "temperatures"),
        ("--dataset imagefolder", "needs data_root"),
        ("--dataset imagefolder --data_root /nowhere/images", "/nowhere/images"),
        ("--data_root /nowhere/images", "data_root has no effect"),
        ("--feature_checkpoint /nowhere/mae.safetensors", "/nowhere/mae.safetensors"),
        ("--feature_space resnet --feature_checkpoint /nowhere/resnet", "/nowhere/resnet"),
        ("--image_size 9", "patch_size = 2 does not divide 9x9"),
        ("--image_size 20 --input_space latent --feature_space latent_mae", "image_size = 20"),
        ("--drift_n_pos 7", "drift_n_pos = 7 is more than queue_pos = 6"),
        ("--feature_loss_weight 0", "vanilla_loss_weight"),
        ("--feature_loss_weight 0 --vanilla_loss_weight 1 --feature_checkpoint x", "feature_checkpoint has no effect"),
        ("--feature_include_global_stats 0 --feature_include_patch_stats 0", "feature_include_local"),
        ("--cfg_alpha_values 0.5", "cfg_alpha_values"),
        ("--cfg_alpha_values 1,2 --cfg_alpha_probs 1", "cfg_alpha_probs"),
        ("--num_heads 3", "num_heads = 3"),
        ("--steps many", "steps = 'many'"),
        ("--optimizer sgd", "optimizer = 'sgd'"),
        ("--device cuda:99", "cuda:99"),
        ("--n_clases_step 4", "--n-classes-step"),
        ("--seeds 0,-1", "seeds"),
        ("--seeds 1,1", "seeds = 1,1 names a seed twice"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(tiny, tmp_path, capsys, options, said):
    line = refused(capsys, "--config", tiny, "--out-dir", str(tmp_path / "run"), *options.split())
    assert said in line
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.toml"]


def test_an_encoder_of_other_channels_is_refused_in_one_line(tiny, tmp_path, capsys):
    weights = tmp_path / "mae.safetensors"
    save_mae(weights, LatentMae(MaeShape(channels=1, width=4, stages=1, blocks=1)), {})
    run_folder = tmp_path / "run"
    line = refused(capsys, "--config", tiny, "--out-dir", str(run_folder), "--feature_checkpoint", str(weights))
    assert "reads 1 channels, and the images have 3" in line
    assert not run_folder.exists()


def test_a_key_that_no_setting_has_names_the_nearest(tmp_path, capsys):
    (tmp_path / "drift.toml").write_text("n_class_step = 4\n")
    line = refused(capsys, "--config", str(tmp_path / "drift.toml"), "--out-dir", str(tmp_path / "run"))
    assert "n_class_step" in line
    assert "n_classes_step" in line


@pytest.mark.parametrize(("verb", "settings_class"), [("train", DriftConfig), ("train-mae", MaeConfig)])
def test_help_lists_every_field_in_a_narrow_terminal(verb, settings_class, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert run(["drift", verb, "--help"]) == 0
    page = capsys.readouterr().out
    for name in settings_class.model_fields:
        assert f"--{name.replace('_', '-')} " in page


def test_help_needs_no_torch():
    program = (
        "import sys; from latentloom.cli.main import run; "
        "code = [run(['drift', '--help']), run(['drift', 'train', '--help'])]; "
        "print(code, [name for name in ('torch', 'numpy', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[0, 0] []"


def test_the_command_trains_and_tells_the_scores(tiny, tmp_path, capsys):
    folder, file = tmp_path / "run", tmp_path / "scores.json"
    arguments = ["--config", tiny, "--objective", "mse", "--out_dir", str(folder), "--json", str(file)]
    assert run(["drift", "train", *arguments]) == 0
    page = capsys.readouterr().out
    assert "MSE refiner" in page
    assert f"report: {folder / 'report.html'}" in page.replace("\n", "")
    scores = json.loads(file.read_text())
    assert scores["out_dir"] == str(folder)
    assert scores["MSE refiner"]["num_images"] == 12
    assert (folder / "report.html").exists()
