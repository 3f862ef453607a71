"""ComfyUI's modules as small stand-ins, and both hosts around MicroWan."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from comfy_nodes.hosts import Rig

    from latentloom.wan.pipeline import WanPipeline


@pytest.fixture(autouse=True)
def comfyui(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What is used of ComfyUI: `folder_paths` below a folder of this test, and a memory manager that counts."""
    counts = SimpleNamespace(emptied=0, loaded=[], folder=tmp_path)
    paths, comfy, management = ModuleType("folder_paths"), ModuleType("comfy"), ModuleType("comfy.model_management")

    def empty() -> None:
        counts.emptied += 1

    def load(patchers: list[Any]) -> None:
        counts.loaded.extend(patchers)

    vars(paths).update(
        models_dir=str(tmp_path / "models"),
        get_temp_directory=lambda: str(tmp_path / "temp"),
        get_user_directory=lambda: str(tmp_path / "user"),
        get_output_directory=lambda: str(tmp_path / "output"),
    )
    vars(management).update(
        soft_empty_cache=empty,
        load_models_gpu=load,
        get_torch_device=lambda: torch.device("cpu"),
        unet_offload_device=lambda: torch.device("cpu"),
    )
    vars(comfy).update(model_management=management)
    for module in (paths, comfy, management):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return counts


@pytest.fixture(scope="session")
def micro_wan() -> "WanPipeline":
    """The shipped model in float32; not to be changed."""
    from latentloom.micro import default_checkpoint
    from latentloom.wan.pipeline import WanPipeline

    return WanPipeline.load(default_checkpoint(), device="cpu")


@pytest.fixture(params=["native", "wrapper"])
def rig(request: pytest.FixtureRequest, micro_wan: "WanPipeline") -> "Rig":
    """Each host in turn."""
    from comfy_nodes.hosts import Rig

    return Rig(request.param, micro_wan)
