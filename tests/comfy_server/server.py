"""A real ComfyUI on the CPU, in a process and a folder of its own, with this repository as a node pack."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

REPOSITORY = Path(__file__).resolve().parents[2]
WRAPPER = "ComfyUI-WanVideoWrapper"
START_SECONDS = 180
SHOWN_LINES = 40


@dataclass(frozen=True)
class Server:
    """A server that runs.

    Args:
        url: of its page and of its interface, without a slash at the end.
        base_directory: with its `custom_nodes`, `models`, `input`, `output`, `temp` and `user`.
        log: what it wrote to its console.
        has_wrapper: whether ComfyUI-WanVideoWrapper is among its node packs.
    """

    url: str
    base_directory: Path
    log: Path
    has_wrapper: bool

    def log_tail(self) -> str:
        """The last lines of the log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-SHOWN_LINES:])


@contextmanager
def serving(checkout: Path, base_directory: Path) -> Iterator[Server]:
    """A server of a checkout of ComfyUI; its process ends with the context.

    Args:
        checkout: with `main.py`.
        base_directory: made and filled with links to the node packs.
    """
    packs, wrapper = base_directory / "custom_nodes", wrapper_of(checkout)
    packs.mkdir(parents=True)
    (packs / "latentloom").symlink_to(REPOSITORY)
    (packs / "breaking_nodes.py").write_text((Path(__file__).parent / "breaking_nodes.py").read_text())
    if wrapper is not None:
        (packs / WRAPPER).symlink_to(wrapper)
    port, log = _free_port(), base_directory / "console.log"
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    options = ["--cpu", "--listen", "127.0.0.1", "--port", str(port), "--disable-auto-launch"]
    folders = ["--base-directory", str(base_directory), "--database-url", "sqlite:///:memory:"]
    with log.open("w") as console:
        process = subprocess.Popen(
            [python, str(checkout / "main.py"), *options, *folders],
            stdout=console,
            stderr=subprocess.STDOUT,
            cwd=base_directory,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        )
    server = Server(f"http://127.0.0.1:{port}", base_directory, log, wrapper is not None)
    try:
        _wait_for(server, process)
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wrapper_of(checkout: Path) -> Path | None:
    """The folder of ComfyUI-WanVideoWrapper: `WANVIDEOWRAPPER_PATH`, or among the checkout's own node packs."""
    named = os.environ.get("WANVIDEOWRAPPER_PATH")
    folder = Path(named) if named else checkout / "custom_nodes" / WRAPPER
    return folder.resolve() if folder.is_dir() else None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _check_packs(server: Server) -> None:
    """Return if ComfyUI took every node pack; it starts without those that it cannot take."""
    lines = server.log.read_text(errors="replace").splitlines()
    if any("IMPORT FAILED" in line for line in lines):
        raise RuntimeError("ComfyUI could not take a node pack; its log:\n" + "\n".join(lines[-2 * SHOWN_LINES :]))


def _wait_for(server: Server, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            with urlopen(f"{server.url}/system_stats", timeout=5):
                return _check_packs(server)
        except (URLError, ConnectionError, TimeoutError):
            time.sleep(0.5)
    raise RuntimeError(f"ComfyUI did not start within {START_SECONDS} s; its log ends so:\n{server.log_tail()}")
