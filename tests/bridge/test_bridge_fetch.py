"""Fetching from a hub on this machine: whole, once, of one commit, and nothing else uses the network."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
from hub_server import COMMIT, hub_server

from latentloom.bridge.config import ModelConfig
from latentloom.bridge.fetch import fetch_backbone
from latentloom.bridge.offline import OFFLINE_VARIABLES
from latentloom.bridge.weight_files import MARKER
from latentloom.errors import FileError

NAME = "acme/tiny"

# in a process of its own, as the hub's client reads the address and the variables when it is imported
FETCH = """
import sys
from latentloom.cli.main import run

code = run(["bridge", "fetch", *sys.argv[1:], "--json", "-"])
assert "torch" not in sys.modules
sys.exit(code)
"""


@pytest.fixture
def repository(tmp_path: Path, backbone_folder: Callable[[str], Path]) -> Path:
    """Files of the repository: a tiny WeDLM with its code, which is not wanted, and weights in another form."""
    folder = Path(shutil.copytree(backbone_folder("wedlm"), tmp_path / "repository"))
    (folder / "modeling_wedlm.py").write_text("raise RuntimeError")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    return folder


@pytest.fixture
def hub(repository: Path) -> Iterator[ThreadingHTTPServer]:
    with hub_server(NAME, repository) as server:
        yield server


@pytest.fixture
def fetch(tmp_path: Path, hub: ThreadingHTTPServer) -> Callable[..., subprocess.CompletedProcess[str]]:
    variables = {key: value for key, value in os.environ.items() if key not in OFFLINE_VARIABLES}
    variables |= {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HOME": str(tmp_path / "hf")}

    def fetch(folder: Path | None, name: str = NAME, *more: str) -> subprocess.CompletedProcess[str]:
        into = [] if folder is None else [f"model.pretrained_local_dir={folder}"]
        settings = [f"model.pretrained_model_name_or_path={name}", *into, *more]
        return subprocess.run([sys.executable, "-c", FETCH, *settings], env=variables, capture_output=True, text=True)

    return fetch


def test_a_model_is_fetched_whole_and_then_never_again(fetch, hub, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "tiny"
    first = json.loads(fetch(folder).stdout)
    assert (first["done"], first["commit"], first["folder"]) == ("downloaded", COMMIT, str(folder))
    marker = json.loads((folder / MARKER).read_text())
    assert (marker["repo"], marker["commit"]) == (NAME, COMMIT)
    wanted = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert marker["files"].keys() == wanted
    assert {file.name for file in folder.iterdir() if not file.name.startswith(".")} == wanted

    hub.requests.clear()
    assert json.loads(fetch(folder).stdout)["done"] == "complete"
    assert not hub.requests

    other = fetch(folder, "acme/other")
    assert other.returncode == 2
    assert f"holds {NAME}, not acme/other" in other.stderr

    (folder / "model.safetensors").unlink()
    again = fetch(folder)
    assert json.loads(again.stdout)["done"] == "downloaded"
    assert (folder / "model.safetensors").is_file()


def test_the_hubs_own_cache_serves_without_a_folder(fetch, hub) -> None:
    assert json.loads(fetch(None).stdout)["done"] == "downloaded"
    hub.requests.clear()
    assert json.loads(fetch(None).stdout)["done"] == "complete"
    assert not [path for path in hub.requests if NAME in path]


def test_of_two_that_fetch_at_once_one_downloads(fetch, hub, tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        done = [json.loads(one.stdout)["done"] for one in pool.map(fetch, [tmp_path / "tiny"] * 2)]
    assert sorted(done) == ["complete", "downloaded"]
    gets = [path for path in hub.requests if path.endswith("model.safetensors")]
    assert len(gets) <= 2  # what it is, and the file


def test_a_repository_that_is_not_whole_is_refused_and_not_marked(fetch, repository: Path, tmp_path: Path) -> None:
    index = {"weight_map": {"lm_head.weight": "model-1.safetensors", "model.norm.weight": "model-2.safetensors"}}
    (repository / "model.safetensors.index.json").write_text(json.dumps(index))
    shutil.copy(repository / "model.safetensors", repository / "model-1.safetensors")
    done = fetch(tmp_path / "tiny")
    assert done.returncode == 2
    assert "lacks 1 of its 2 files of weights, model-2.safetensors first" in done.stderr
    assert not (tmp_path / "tiny" / MARKER).exists()


def test_a_name_that_is_not_there_is_one_line(fetch, tmp_path: Path) -> None:
    done = fetch(tmp_path / "none", "acme/absent")
    assert done.returncode == 2
    assert "cannot fetch acme/absent: 404 Client Error. Repository Not Found" in done.stderr.splitlines()[-1]


def test_a_copy_made_by_hand_is_taken_as_it_is(tmp_path: Path, backbone_folder: Callable[[str], Path]) -> None:
    folder = Path(shutil.copytree(backbone_folder("qwen3"), tmp_path / "copied"))
    config = ModelConfig(pretrained_model_name_or_path="acme/by-hand", pretrained_local_dir=folder)
    assert fetch_backbone(config).done == "complete"


def test_a_folder_is_complete_and_a_missing_one_is_refused(
    tmp_path: Path, backbone_folder: Callable[[str], Path]
) -> None:
    folder = backbone_folder("llama")
    assert fetch_backbone(ModelConfig(pretrained_model_name_or_path=str(folder))).done == "complete"
    with pytest.raises(FileError, match="does not exist"):
        fetch_backbone(ModelConfig(pretrained_model_name_or_path=str(tmp_path / "none")))
