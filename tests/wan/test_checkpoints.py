"""Every layout gives the same models, and whatever is wrong with a file is said in one line."""

import json
import pickle
import shutil
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import UMT5EncoderModel

from latentloom.errors import CheckpointError, CorruptFileError, FileError, LatentLoomError
from latentloom.wan import checkpoints
from latentloom.wan.convert import convert
from latentloom.wan.layouts import SIDECAR

FIRST_TRANSFORMER_FILE = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="session")
def official_checkpoint(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as the official repository would ship it: no side-car, sizes from tensors and config.json."""
    root = tmp_path_factory.mktemp("official") / "checkpoint"
    convert(tiny_checkpoint, root, "official")
    (root / SIDECAR).unlink()
    return root


@pytest.fixture
def scratch(official_checkpoint: Path, tmp_path: Path) -> Path:
    """An official checkpoint to damage."""
    return Path(shutil.copytree(official_checkpoint, tmp_path / "scratch"))


@torch.no_grad()
def test_an_official_transformer_gives_what_diffusers_gives(tiny_checkpoint: Path, official_checkpoint: Path) -> None:
    torch.manual_seed(1)
    inputs = torch.randn(2, 4, 3, 4, 4), torch.tensor([500.0, 20.0]), torch.randn(2, 7, 16)
    theirs = WanTransformer3DModel.from_pretrained(tiny_checkpoint / "transformer")(*inputs, return_dict=False)[0]
    ours = checkpoints.load_transformer(official_checkpoint)(*inputs, return_dict=False)[0]
    assert theirs.abs().max() > 0.1
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@torch.no_grad()
def test_an_official_text_encoder_gives_what_transformers_gives(
    tiny_checkpoint: Path, official_checkpoint: Path
) -> None:
    ids, mask = torch.tensor([[5, 9, 1], [7, 1, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]])
    theirs = UMT5EncoderModel.from_pretrained(tiny_checkpoint / "text_encoder")(ids, mask).last_hidden_state
    ours = checkpoints.load_text_encoder(official_checkpoint)(ids, mask).last_hidden_state
    assert theirs.abs().max() > 0.1
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("is_residual", [False, True], ids=["wan2.1", "wan2.2"])
def test_an_official_vae_gives_what_diffusers_gives(is_residual: bool, tmp_path: Path) -> None:
    torch.manual_seed(2)
    channels: dict[str, Any] = {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}
    if is_residual:
        channels |= {"in_channels": 12, "out_channels": 12, "patch_size": 2}
    theirs = AutoencoderKLWan(base_dim=4, z_dim=4, num_res_blocks=1, is_residual=is_residual, **channels).eval()
    theirs.save_pretrained(tmp_path / "diffusers" / "vae")
    convert(tmp_path / "diffusers", tmp_path / "official", "official")
    (tmp_path / "official" / SIDECAR).unlink()
    ours = checkpoints.load_vae(tmp_path / "official" / ("Wan2.2_VAE.pth" if is_residual else "Wan2.1_VAE.pth"))
    clip = torch.rand(1, 3, 5, 32, 32) * 2 - 1
    latents = theirs.encode(clip, return_dict=False)[0].mode()
    torch.testing.assert_close(ours.encode(clip, return_dict=False)[0].mode(), latents, atol=1e-5, rtol=0)
    decoded = theirs.decode(latents, return_dict=False)[0]
    torch.testing.assert_close(ours.decode(latents, return_dict=False)[0], decoded, atol=1e-5, rtol=0)


@pytest.mark.parametrize("prefix", ["", "diffusion_model.", "model.diffusion_model."])
def test_a_comfyui_transformer_loads_with_each_prefix(prefix: str, official_checkpoint: Path, tmp_path: Path) -> None:
    tensors = load_file(official_checkpoint / FIRST_TRANSFORMER_FILE)
    save_file({prefix + key: tensor for key, tensor in tensors.items()}, tmp_path / "anything.safetensors")
    shutil.copy(official_checkpoint / "config.json", tmp_path)
    loaded = checkpoints.load_transformer(tmp_path / "anything.safetensors")
    assert checkpoints.recognise(tmp_path / "anything.safetensors").layout == "comfy"
    assert_same_weights(loaded, checkpoints.load_transformer(official_checkpoint))


def test_a_comfyui_bundle_holds_three_models(official_checkpoint: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    parts = {
        "model.diffusion_model.": load_file(official_checkpoint / FIRST_TRANSFORMER_FILE),
        "text_encoders.umt5xxl.transformer.": load_file(tiny_checkpoint / "text_encoder" / "model.safetensors"),
        "vae.": torch.load(official_checkpoint / "Wan2.2_VAE.pth", weights_only=True),
    }
    bundle = {prefix + key: tensor.clone() for prefix, tensors in parts.items() for key, tensor in tensors.items()}
    bundle["text_encoders.umt5xxl.transformer.spiece_model"] = torch.zeros(9, dtype=torch.uint8)
    file = tmp_path / "bundle.safetensors"
    save_file(bundle, file)
    shutil.copy(official_checkpoint / "config.json", tmp_path)
    assert [part.role for part in checkpoints.recognise(file).components] == ["transformer", "text_encoder", "vae"]
    assert_same_weights(checkpoints.load_vae(file), checkpoints.load_vae(tiny_checkpoint))
    assert_same_weights(checkpoints.load_text_encoder(file), checkpoints.load_text_encoder(tiny_checkpoint))


def test_shards_named_by_an_index_load_as_one_model(scratch: Path, official_checkpoint: Path) -> None:
    split_transformer(scratch)
    assert_same_weights(checkpoints.load_transformer(scratch), checkpoints.load_transformer(official_checkpoint))


def test_two_experts_load_apart(scratch: Path) -> None:
    for name, sign in (("high_noise_model", 1.0), ("low_noise_model", -1.0)):
        (scratch / name).mkdir()
        tensors = load_file(scratch / FIRST_TRANSFORMER_FILE)
        save_file({key: tensor * sign for key, tensor in tensors.items()}, scratch / name / FIRST_TRANSFORMER_FILE)
        shutil.copy(scratch / "config.json", scratch / name)
    (scratch / FIRST_TRANSFORMER_FILE).unlink()
    high, low = (checkpoints.load_transformer(scratch, expert=expert) for expert in ("high", "low"))
    torch.testing.assert_close(high.proj_out.weight, -low.proj_out.weight)
    assert checkpoints.recognise(scratch).experts == ("high", "low")
    with pytest.raises(CheckpointError, match="name one expert: 'high' or 'low'"):
        checkpoints.load_transformer(scratch)


def test_an_expert_that_is_not_there_is_not_replaced_by_another(scratch: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no low-noise transformer; it holds transformer"):
        checkpoints.load_transformer(scratch, expert="low")


def test_several_models_of_a_kind_in_one_folder_ask_for_a_file(official_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "diffusion_models").mkdir()
    shutil.copy(official_checkpoint / "config.json", tmp_path / "diffusion_models")
    for name in ("one", "two"):
        shutil.copy(official_checkpoint / FIRST_TRANSFORMER_FILE, tmp_path / "diffusion_models" / f"{name}.safetensors")
    save_file({"other.weight": torch.zeros(1)}, tmp_path / "diffusion_models" / "sdxl.safetensors")
    with pytest.raises(CheckpointError, match="holds 2 models for transformer; give one of the files"):
        checkpoints.load_transformer(tmp_path)
    assert checkpoints.load_transformer(tmp_path / "diffusion_models" / "two.safetensors").config["num_layers"] == 2


def test_pickles_of_other_kinds_in_an_official_folder_are_left_alone(scratch: Path) -> None:
    torch.save([1], scratch / "models_clip.pth")
    assert len(checkpoints.recognise(scratch).components) == 3


def test_narrow_types_leave_norms_and_modulations_wide_as_diffusers_does(tiny_checkpoint: Path) -> None:
    loaded = checkpoints.load_transformer(tiny_checkpoint, dtype=torch.bfloat16)
    theirs = WanTransformer3DModel.from_pretrained(tiny_checkpoint / "transformer", torch_dtype=torch.bfloat16)
    assert {name: value.dtype for name, value in loaded.named_parameters()} == {
        name: value.dtype for name, value in theirs.named_parameters()
    }
    assert loaded.rope.freqs_cos.device.type == "cpu"
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_without_a_type_each_tensor_keeps_its_own(scratch: Path) -> None:
    tensors = load_file(scratch / FIRST_TRANSFORMER_FILE)
    save_file({key: tensor.half() for key, tensor in tensors.items()}, scratch / FIRST_TRANSFORMER_FILE)
    assert {value.dtype for value in checkpoints.load_transformer(scratch).parameters()} == {torch.float16}


def test_a_loaded_model_does_not_change_with_its_file(scratch: Path) -> None:
    loaded = checkpoints.load_transformer(scratch)
    before = loaded.proj_out.weight.clone()
    file = scratch / FIRST_TRANSFORMER_FILE
    file.write_bytes(file.read_bytes()[:-4096] + b"\xff" * 4096)
    assert torch.equal(loaded.proj_out.weight, before)


def test_the_text_encoders_tied_embedding_is_one_tensor(official_checkpoint: Path) -> None:
    loaded = checkpoints.load_text_encoder(official_checkpoint)
    assert loaded.encoder.embed_tokens.weight is loaded.shared.weight


def test_the_microwan_vae_config_builds_as_it_is(tmp_path: Path) -> None:
    theirs = AutoencoderKLWan(
        base_dim=24, dim_mult=[1, 2, 2], num_res_blocks=1, z_dim=16, is_residual=True, patch_size=2,
        in_channels=12, out_channels=12, temperal_downsample=[True, True], scale_factor_spatial=8,
    )  # fmt: skip
    theirs.save_pretrained(tmp_path / "vae")
    loaded = checkpoints.load_vae(tmp_path)
    assert_same_weights(loaded, theirs)
    names = [name for name in theirs.config if not name.startswith("_")]
    assert len(names) > 15
    assert {name: loaded.config[name] for name in names} == {name: theirs.config[name] for name in names}


def test_a_declared_model_brings_its_sampling_defaults_and_its_own_sizes(tiny_checkpoint: Path) -> None:
    found = checkpoints.recognise(tiny_checkpoint).facts
    assert found is not None
    assert (found.key, found.shift, found.fps, found.latent_channels, found.spatial_stride) == ("micro", 3.0, 8, 4, 8)
    assert found.transformer is not None
    assert (found.transformer.dim, found.transformer.num_heads) == (24, 2)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", "[]"),
        ("tokenizer.json", '{"version": 1'),
        ("tokenizer_config.json", "[]"),
        ("tokenizer_config.json", '{"auto_map": {"AutoTokenizer": ["code.Mine", null]}, "tokenizer_class": "Mine"}'),
    ],
)
def test_a_tokenizer_that_is_damaged_or_brings_code_is_refused_without_a_question(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: str
) -> None:
    root = Path(shutil.copytree(tiny_checkpoint, tmp_path / "damaged"))
    (root / "tokenizer" / name).write_text(content)
    with pytest.raises(CheckpointError, match="is no tokenizer that can be read"):
        checkpoints.load_tokenizer(root)
    assert "[y/N]" not in capsys.readouterr().out


def test_the_tokenizer_is_found_in_each_folder(tiny_checkpoint: Path, official_checkpoint: Path) -> None:
    for root in (tiny_checkpoint, official_checkpoint):
        assert checkpoints.load_tokenizer(root)("red circle").input_ids[-1] == 1


def test_missing_and_left_over_keys_are_counted_and_named(scratch: Path) -> None:
    tensors = load_file(scratch / FIRST_TRANSFORMER_FILE)
    for index in range(5):
        tensors[f"blocks.0.self_attn.lora_{index}"] = torch.zeros(1)
    del tensors["blocks.1.ffn.2.bias"]
    save_file(tensors, scratch / FIRST_TRANSFORMER_FILE)
    expected = r"1 keys missing \(blocks.1.ffn.net.2.bias\); 5 keys left over \(blocks.0.self_attn.lora_0, .*, \.\.\.\)"
    with pytest.raises(CheckpointError, match=expected):
        checkpoints.load_transformer(scratch)


def test_a_wrong_shape_names_the_tensor_and_both_shapes(scratch: Path) -> None:
    tensors = load_file(scratch / FIRST_TRANSFORMER_FILE)
    tensors["blocks.1.cross_attn.k.weight"] = torch.zeros(3, 5)
    save_file(tensors, scratch / FIRST_TRANSFORMER_FILE)
    expected = r"blocks.1.cross_attn.k.weight .* has shape \[3, 5\], expected \[24, 24\]"
    with pytest.raises(CheckpointError, match=expected):
        checkpoints.load_transformer(scratch)


def test_a_config_that_contradicts_the_tensors_does_not_decide_what_is_built(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(tiny_checkpoint, tmp_path / "lying"))
    config = json.loads((root / "transformer" / "config.json").read_text())
    (root / "transformer" / "config.json").write_text(json.dumps({**config, "num_layers": 10**9}))
    with pytest.raises(CheckpointError, match="says num_layers = 1000000000, its tensors say 2"):
        checkpoints.load_transformer(root)


@pytest.mark.parametrize("name", ["latents_mean", "latents_std"])
def test_latent_statistics_for_another_number_of_channels_are_refused(
    tiny_checkpoint: Path, tmp_path: Path, name: str
) -> None:
    root = Path(shutil.copytree(tiny_checkpoint, tmp_path / "short"))
    config = json.loads((root / "vae" / "config.json").read_text())
    (root / "vae" / "config.json").write_text(json.dumps({**config, name: [0.5]}))
    with pytest.raises(CheckpointError, match=f"gives 1 values of {name} for {config['z_dim']} latent channels"):
        checkpoints.load_vae(root)


def test_scaled_fp8_weights_are_refused_by_name(scratch: Path) -> None:
    tensors = load_file(scratch / FIRST_TRANSFORMER_FILE)
    save_file({**tensors, "blocks.0.ffn.0.scale_weight": torch.ones(1)}, scratch / FIRST_TRANSFORMER_FILE)
    with pytest.raises(CheckpointError, match=r"scaled fp8 weights .* give the fp16 or bf16 file"):
        checkpoints.load_transformer(scratch)


def test_a_missing_shard_is_named(scratch: Path) -> None:
    split_transformer(scratch)
    (scratch / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="lacks 1 of 2 shards, first diffusion_pytorch_model-00002-of-00002"):
        checkpoints.recognise(scratch)
    (scratch / "diffusion_pytorch_model.safetensors.index.json").unlink()
    with pytest.raises(CheckpointError, match="holds 1 of 2 shards"):
        checkpoints.recognise(scratch)


def test_an_index_cannot_lead_out_of_its_folder(scratch: Path) -> None:
    index = {"weight_map": {"patch_embedding.weight": "../elsewhere.safetensors"}}
    (scratch / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CorruptFileError, match="must name files beside it"):
        checkpoints.recognise(scratch)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(share=st.floats(0, 0.999), name=st.sampled_from([FIRST_TRANSFORMER_FILE, "Wan2.2_VAE.pth", "config.json"]))
def test_a_truncated_file_is_an_error_of_ours(
    share: float, name: str, official_checkpoint: Path, tmp_path: Path
) -> None:
    root = tmp_path / f"{name}-{share}"
    shutil.copytree(official_checkpoint, root, dirs_exist_ok=True)
    whole = (root / name).read_bytes()
    (root / name).write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(LatentLoomError):
        checkpoints.load_transformer(root) if name != "Wan2.2_VAE.pth" else checkpoints.load_vae(root)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(pick=st.integers(0, 200), shape=st.lists(st.integers(0, 5), max_size=5))
def test_any_wrong_shape_is_an_error_of_ours(
    pick: int, shape: list[int], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    folder = ("transformer", "text_encoder", "vae")[pick % 3]
    source = next((tiny_checkpoint / folder).glob("*.safetensors"))
    tensors = load_file(source)
    key = list(tensors)[pick % len(tensors)]
    assume(list(tensors[key].shape) != shape)
    save_file({**tensors, key: torch.zeros(shape)}, tmp_path / "wrong.safetensors")
    load = {"transformer": checkpoints.load_transformer, "text_encoder": checkpoints.load_text_encoder}
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        load.get(folder, checkpoints.load_vae)(tmp_path / "wrong.safetensors")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(
    pick=st.integers(0, 100),
    value=st.one_of(st.none(), st.booleans(), st.integers(-5, 50), st.text(max_size=4), st.lists(st.integers(-2, 3))),
)
def test_a_config_with_anything_in_it_loads_or_is_an_error_of_ours(
    pick: int, value: Any, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    folder = ("transformer", "text_encoder", "vae")[pick % 3]
    shutil.copytree(tiny_checkpoint / folder, tmp_path / folder, dirs_exist_ok=True)
    config = json.loads((tiny_checkpoint / folder / "config.json").read_text())
    key = list(config)[pick % len(config)]
    (tmp_path / folder / "config.json").write_text(json.dumps({**config, key: value}))
    load = {"transformer": checkpoints.load_transformer, "text_encoder": checkpoints.load_text_encoder}
    with suppress(LatentLoomError):
        load.get(folder, checkpoints.load_vae)(tmp_path / folder)


def test_a_key_cannot_make_up_layers(scratch: Path) -> None:
    tensors = load_file(scratch / FIRST_TRANSFORMER_FILE)
    save_file({**tensors, "blocks.99999.modulation": torch.zeros(1)}, scratch / FIRST_TRANSFORMER_FILE)
    with pytest.raises(CheckpointError, match=r"numbered up to 99999 but there are only 3"):
        checkpoints.load_transformer(scratch)


def test_a_zip_bomb_is_refused(scratch: Path) -> None:
    with zipfile.ZipFile(scratch / "Wan2.2_VAE.pth", "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("archive/data.pkl", pickle.dumps({}, protocol=2))
        bomb.writestr("archive/data/0", bytes(50 * 2**20))
    with pytest.raises(CorruptFileError):
        checkpoints.inspect(scratch)


class _Shout:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("code ran",)


def test_code_in_a_pickle_does_not_run(scratch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"decoder.conv1.weight": _Shout()}, scratch / "Wan2.2_VAE.pth")
    with pytest.raises(CorruptFileError):
        checkpoints.load_vae(scratch)
    assert "code ran" not in capsys.readouterr().out


def test_a_pickle_of_something_else_is_refused(scratch: Path) -> None:
    torch.save([torch.zeros(2)], scratch / "Wan2.2_VAE.pth")
    with pytest.raises(CheckpointError, match="holds list; a dictionary of tensors is expected"):
        checkpoints.recognise(scratch)


@pytest.mark.parametrize("record", ['{"components": [1]}', '{"components": {"vae": 3}}', '{"latentloom": 1}', "[", "3"])
def test_a_damaged_side_car_is_an_error_of_ours(record: str, scratch: Path) -> None:
    (scratch / SIDECAR).write_text(record)
    with pytest.raises(CorruptFileError):
        checkpoints.recognise(scratch)


def test_what_is_not_there_or_no_checkpoint_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="does not exist"):
        checkpoints.recognise(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="holds no Wan model"):
        checkpoints.recognise(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(FileError, match="no weight file"):
        checkpoints.recognise(tmp_path / "notes.txt")
    save_file({"unet.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="holds no Wan model"):
        checkpoints.recognise(tmp_path / "other.safetensors")


def split_transformer(root: Path) -> None:
    tensors = load_file(root / FIRST_TRANSFORMER_FILE)
    (root / FIRST_TRANSFORMER_FILE).unlink()
    names = [f"diffusion_pytorch_model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    halves: list[dict[str, Tensor]] = [{}, {}]
    for index, (key, tensor) in enumerate(tensors.items()):
        halves[index % 2][key] = tensor
    for name, half in zip(names, halves, strict=True):
        save_file(half, root / name)
    places = {key: name for name, half in zip(names, halves, strict=True) for key in half}
    (root / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def assert_same_weights(one: nn.Module, other: nn.Module) -> None:
    left, right = one.state_dict(), other.state_dict()
    assert left.keys() == right.keys()
    for key, tensor in left.items():
        assert tensor.dtype == right[key].dtype
        assert torch.equal(tensor, right[key]), key
