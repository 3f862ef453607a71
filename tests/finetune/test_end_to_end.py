"""From a folder of clips to artifacts: the encoder, and then a LoRA whose texts the trained encoder makes."""

import json

import pytest
import torch

from latentloom.errors import ConfigError, FileError
from latentloom.finetune import FinetuneConfig, Options, read_text_encoder, run_finetune
from latentloom.finetune.settings import idle_settings
from latentloom.finetune.train import main, target_of
from latentloom.micro.draw import write_clips
from latentloom.runs import RunRecord, load_config
from latentloom.storage import read_video
from latentloom.wan.facts import get
from latentloom.wan.shipped import micro_wan_weights

LORA = ["adapter.rank=2"]
ENCODER = ["model.train_text_encoder=true", "model.cache_text_embeddings=false"]


def settings(folder, *overrides: str) -> FinetuneConfig:
    common = [f"dataset={folder}/clips", f"output_dir={folder}/runs", "micro_batch_size_per_gpu=4", "max_steps=2"]
    return load_config(FinetuneConfig, None, [*common, *overrides])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("end_to_end")
    write_clips(root / "clips", 8)
    return root


@pytest.fixture(scope="module")
def encoder_run(folder):
    tuned = [*ENCODER, "optimizer.lr=1e-2", "model.text_train_blocks=1", "eval_share=0.3"]
    (run,) = run_finetune(settings(folder, *tuned), Options())
    return run


def test_a_run_leaves_record_report_curves_samples_and_weights(encoder_run):
    names = {path.name for path in encoder_run.iterdir()}
    assert {"config.toml", "record.json", "report.html", "loss.jsonl", "evaluation.jsonl", "tensorboard"} <= names
    assert RunRecord.read(encoder_run).status == "finished"
    before, after = (read_video(encoder_run / name / "sample_0.mp4")[0] for name in ("epoch0", "epoch1"))
    assert before.shape == after.shape == (9, 48, 48, 3)
    assert (before != after).any()


def test_the_record_says_what_was_trained_on_what(encoder_run):
    record = RunRecord.read(encoder_run)
    facts = record.trainings["encoder"]
    assert facts.trained == "text encoder, the top 1 blocks"
    assert {encoder.name: encoder.frozen for encoder in facts.encoders or ()} == {
        **{"text encoder": False, "DiT": True, "VAE": True}
    }
    assert (facts.batch_size, facts.steps) == (4, 2)
    assert facts.data.num_held_out
    assert facts.data.num_samples + facts.data.num_held_out == 8
    assert record.throughput["clips"]
    assert {"report.html", "loss.jsonl", "tensorboard"} <= set(record.artifacts)


def test_a_part_of_the_encoder_is_written_and_completed_when_read(encoder_run):
    base = dict(read_text_encoder(micro_wan_weights(), dtype=torch.float32).named_parameters())
    tuned = dict(read_text_encoder(micro_wan_weights(), encoder_run / "epoch1", torch.float32).named_parameters())
    changed = {name for name in base if not torch.equal(base[name], tuned[name])}
    assert changed
    assert all(name.startswith("encoder.block.2.") for name in changed)


def test_a_lora_is_trained_on_texts_of_the_tuned_encoder(folder, encoder_run, capsys):
    off = ["sample_every_n_epochs=0", *LORA]
    run_finetune(settings(folder, *off), Options(cache_only=True))
    assert "texts: 8 computed" in capsys.readouterr().out
    tuned = [*off, f"model.text_encoder_path={encoder_run}/epoch1"]
    run_finetune(settings(folder, *tuned), Options(cache_only=True))
    assert "texts: 8 computed, 0 reused" in capsys.readouterr().out
    (run,) = run_finetune(settings(folder, *tuned), Options())
    assert "texts: 0 computed, 8 reused" in capsys.readouterr().out
    assert (run / "epoch1" / "adapter_model.safetensors").is_file()


def test_the_held_out_loss_does_not_depend_on_how_clips_are_dealt(folder):
    losses = []
    for size in (1, 2, 4):
        shared = [*LORA, "eval_share=0.4", "sample_every_n_epochs=0", "model.dtype=float32", "mixed_precision=none"]
        (run,) = run_finetune(settings(folder, *shared, f"micro_batch_size_per_gpu={size}"), Options())
        losses.append(json.loads((run / "evaluation.jsonl").read_text().splitlines()[0])["mean"])
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-5)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("adapter.targets=['cross_attn.x']", "target 'cross_attn.x' is unknown"),
        ("adapter.targets=['self_attn.q']", "allow_self_attn = true"),
        ("adapter.train_blocks_range=[40, 50]", "no range of this model"),
    ],
)
def test_what_cannot_be_adapted_is_refused_before_anything_is_cached(folder, override, message):
    with pytest.raises(ConfigError, match=message):
        target_of(settings(folder, *LORA, override))


def test_a_folder_that_cannot_be_written_to_is_refused_before_anything_is_cached(folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="cannot write"):
        run_finetune(settings(folder, *LORA, f"output_dir={tmp_path}/file/runs"), Options())


def test_settings_that_do_nothing_are_named():
    def idle(*overrides: str, model: str = "micro") -> list[str]:
        return idle_settings(
            load_config(FinetuneConfig, None, ["dataset=d", "output_dir=o", *LORA, *overrides]), get(model)
        )

    assert idle() == []
    assert "blocks_to_swap = 0" in idle("disable_block_swap_for_eval=true")[0]
    assert idle('sample_prompts=["a"]') == []
    assert "sample_every_n_epochs" in idle('sample_prompts=["a"]', model="ti2v-5b")[0]
    assert "eval_share = 0" in idle("eval_every_n_epochs=2")[0]
    assert "uniform" in idle("model.sigmoid_scale=2", "model.timestep_sample_method=uniform")[0]


def test_a_setting_behind_the_bare_resume_flag_is_a_setting(folder, capsys):
    (folder / "lora.toml").write_text(f'output_dir = "{folder}/none"\ndataset = "nowhere"\n[adapter]\nrank = 2\n')
    main(["--config", str(folder / "lora.toml"), "--cache_only", "--resume_from_checkpoint", f"dataset={folder}/clips"])
    assert "8 items" in capsys.readouterr().out
