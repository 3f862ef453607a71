"""MicroWan's loaders give each host objects that it can use, and the reader says what a clip shows."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from comfy_nodes.hosts import BY_ID, Rig
from steering.wan_video_wrapper_model import WrapperPatcher, WrapperWan
from torch import nn

from latentloom.comfy.execute import execute
from latentloom.comfy.micro.native import MicroWanClip, MicroWanVae
from latentloom.comfy.micro.wrapper import WrapperVae, load_wrapper_model, load_wrapper_text_encoder
from latentloom.errors import ConfigError
from latentloom.micro.attributes import Attributes
from latentloom.micro.world import draw_clips

RED = "A small red circle moves to the left on a black background."
ATTRIBUTES = Attributes("red", "square", "large", "left", "white")
CPU = torch.device("cpu")


class WanModel(WrapperWan):
    """As the wrapper's own is called."""

    def __init__(self, **config: Any) -> None:
        assert config["in_features"] == config["out_features"] == config["dim"]
        super().__init__(
            {
                "num_attention_heads": config["num_heads"],
                "attention_head_dim": config["dim"] // config["num_heads"],
                "patch_size": (1, 2, 2),
                "in_channels": config["in_dim"],
                "out_channels": config["out_dim"],
                **{name: config[name] for name in ("text_dim", "freq_dim", "ffn_dim", "num_layers", "eps")},
            }
        )


class _Pipeline(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pipeline: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        return self.pipeline[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self.pipeline[name] = value


class WanVideoModel(_Pipeline):
    def __init__(self, model_config: Any, transformer: nn.Module, device: Any = None) -> None:
        super().__init__()
        self.latent_format, self.diffusion_model = model_config.latent_format, transformer


class OldWanVideoModel(_Pipeline):
    diffusion_model: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        assert kwargs["model_type"] == "flow"
        self.latent_format = args[0].latent_format


@contextmanager
def init_empty_weights() -> Iterator[None]:
    with torch.device("meta"):
        yield


def use_wrapper(monkeypatch: pytest.MonkeyPatch, version: str) -> ModuleType:
    """The wrapper's module of a version, found as ComfyUI would find it; "" where it is not installed."""
    loading, nodes = ModuleType("loading"), ModuleType("nodes")
    patcher, bases, formats = (
        ModuleType(f"comfy.{name}") for name in ("model_patcher", "model_base", "latent_formats")
    )
    loader = type("WanVideoModelLoader", (), {"__module__": loading.__name__})
    vars(nodes).update(NODE_CLASS_MAPPINGS={"WanVideoModelLoader": loader} if version else {})
    old = version == "old"
    settings = (lambda dtype, latent_format: SimpleNamespace(latent_format=latent_format)) if old else SimpleNamespace
    vars(loading).update(
        WanModel=WanModel,
        WanVideoModel=OldWanVideoModel if old else WanVideoModel,
        WanVideoModelConfig=settings,
        init_empty_weights=init_empty_weights,
    )
    vars(patcher).update(ModelPatcher=_patcher)
    vars(bases).update(ModelType=SimpleNamespace(FLOW="flow"))
    vars(formats).update(LatentFormat=object)
    for module in (loading, nodes, patcher, bases, formats):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return loading


def _patcher(model: Any, device: torch.device, offload_device: torch.device) -> WrapperPatcher:
    made = WrapperPatcher(model.diffusion_model)
    made.model = model
    return made


@pytest.mark.parametrize("version", ["new", "old"])
def test_the_wrappers_model_is_cold_and_its_weights_are_micro_wans(monkeypatch, micro_wan, version):
    use_wrapper(monkeypatch, version)
    patcher = load_wrapper_model()
    transformer = patcher.model.diffusion_model
    assert all(weight.is_meta for weight in transformer.parameters())
    transformer.load_state_dict(patcher.model["sd"], assign=True)  # as the sampler does before a run
    rig = Rig("wrapper", micro_wan)
    text = rig.text(RED)
    assert torch.equal(rig.predict(patcher, text), rig.predict(rig.model(), text))


def test_a_wrapper_that_is_missing_or_of_another_make_is_named(monkeypatch):
    use_wrapper(monkeypatch, "")
    with pytest.raises(ConfigError, match="install ComfyUI-WanVideoWrapper"):
        load_wrapper_model()
    loading = use_wrapper(monkeypatch, "new")
    del vars(loading)["WanVideoModelConfig"]
    with pytest.raises(ConfigError, match="has no WanVideoModelConfig; update it"):
        load_wrapper_model()


def test_both_text_encoders_give_the_rows_of_the_pipeline(micro_wan):
    (rows,) = micro_wan.encode([RED]).to_list()
    encoder = load_wrapper_text_encoder()["model"]
    own, empty = encoder([RED, ""], CPU)
    assert torch.allclose(own, rows, atol=1e-5)  # with another prompt beside it
    assert len(empty) == 1
    clip = MicroWanClip.load()
    ((padded, _),) = clip.encode_from_tokens_scheduled(clip.tokenize(RED))
    assert padded.shape == (1, 512, 128)
    assert torch.equal(padded[0, : len(rows)], rows)
    assert not padded[0, len(rows) :].any()


def test_both_vaes_bring_a_clip_back():
    clip = draw_clips([ATTRIBUTES], torch.Generator().manual_seed(0))  # [1, 3, 9, 48, 48]
    native, wrapper = MicroWanVae.load(), WrapperVae.load()
    frames = clip[0].permute(1, 2, 3, 0)
    latents = wrapper.encode(clip * 2 - 1, CPU)
    assert latents.shape == (1, 16, 3, 6, 6)
    assert torch.allclose(native.encode(frames), latents, atol=0.05)  # which goes through bytes
    (again,) = wrapper.to(CPU).decode(latents, CPU)
    assert (again.permute(1, 2, 3, 0) / 2 + 0.5 - frames).abs().mean() < 0.03
    assert torch.allclose(native.decode(latents)[0], again.permute(1, 2, 3, 0).clamp(-1, 1) / 2 + 0.5, atol=1 / 255)


def test_frames_beyond_4_k_plus_1_are_left_out():
    clip = draw_clips([ATTRIBUTES], torch.Generator().manual_seed(0))
    longer = torch.cat([clip, clip[:, :, -2:]], dim=2)
    vae = WrapperVae.load()
    assert torch.equal(vae.encode(longer, CPU), vae.encode(clip, CPU))


def test_an_end_image_is_refused():
    with pytest.raises(ConfigError, match="remove the end image"):
        WrapperVae.load().decode([torch.zeros(16, 3, 6, 6)], CPU, end_=True)


def test_the_empty_clip_has_the_trained_size():
    (embeds,), _ = run("LatentLoomMicroWanEmptyEmbeds")
    assert embeds["target_shape"] == (16, 3, 6, 6)
    assert embeds["num_frames"] == 9


@pytest.mark.parametrize("size", [48, 64])
def test_the_reader_says_what_a_clip_shows(size):
    clip = draw_clips([ATTRIBUTES], torch.Generator().manual_seed(0), frame_size=size)[0].permute(1, 2, 3, 0)
    images = torch.cat([clip, torch.ones_like(clip[..., :1])], dim=-1)  # with an alpha channel
    before = images.clone()
    (sentence,), shown = run("LatentLoomAttributeReader", images=images)
    assert sentence == "large red square moving left on white"
    assert shown["text"][0].startswith(f"{sentence}\nradius 1")
    assert torch.equal(images, before)


def test_the_reader_tells_stillness_and_emptiness():
    still = draw_clips([Attributes("cyan", "circle", "small", "still", "gray")], torch.Generator().manual_seed(0))
    (sentence,), _ = run("LatentLoomAttributeReader", images=still[0].permute(1, 2, 3, 0))
    assert sentence == "small cyan circle standing still on gray"
    (sentence,), shown = run("LatentLoomAttributeReader", images=torch.zeros(9, 48, 48, 3))
    assert sentence == "nothing on black"
    assert "no object stands out" in shown["text"][0]


def test_frames_that_are_not_square_are_refused():
    with pytest.raises(ConfigError, match="the frames are 64 x 48; clips of MicroWan are square"):
        run("LatentLoomAttributeReader", images=torch.zeros(9, 48, 64, 3))


def run(node_id: str, **inputs: Any) -> tuple[Any, Any]:
    return execute(BY_ID[node_id], inputs, "7")
