"""What the tests ask of a server: run a graph, in turn or after another, and hand back what it made."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from comfy_server.server import Server
from safetensors.torch import load_file
from torch import Tensor

Graph = dict[str, dict[str, Any]]
"""An API prompt: node by number, with its `class_type` and `inputs`."""

RUN_SECONDS = 240
SAMPLING_AFTER = 1.5
"""Seconds after which a graph of MicroWan samples."""


class RefusedError(AssertionError):
    """ComfyUI did not accept a graph.

    Args:
        answer: its own, with `error` and `node_errors`.
    """

    def __init__(self, answer: dict[str, Any]) -> None:
        super().__init__(json.dumps(answer, indent=1))
        self.node_errors: dict[str, Any] = answer["node_errors"]


class FailedError(AssertionError):
    """A graph stopped; the message is that of the exception or of the interruption."""


@dataclass(frozen=True)
class Result:
    """A graph that ran.

    Args:
        outputs: what each node showed, by its number.
        cached: numbers of the nodes that did not run again.
        output_directory: where the files are.
    """

    outputs: dict[str, Any]
    cached: tuple[str, ...]
    output_directory: Path

    @property
    def latent(self) -> Tensor:
        """Of the graph's only SaveLatent."""
        (files,) = (shown["latents"] for shown in self.outputs.values() if "latents" in shown)
        return load_file(self.output_directory / files[0]["subfolder"] / files[0]["filename"])["latent_tensor"]


class Client:
    """A server's interface.

    Args:
        server: it runs.
    """

    def __init__(self, server: Server) -> None:
        self.server = server

    def run(self, graph: Graph) -> Result:
        """What a graph makes.

        Raises:
            RefusedError: it is no valid graph.
            FailedError: a node raised an error.
        """
        return self.wait(self.queue(graph))

    def queue(self, graph: Graph) -> str:
        """Its number in the queue, for `wait`.

        Raises:
            RefusedError: it is no valid graph.
        """
        try:
            return self.post("/prompt", {"prompt": graph})["prompt_id"]
        except HTTPError as error:
            raise RefusedError(json.loads(error.read())) from None

    def wait(self, prompt_id: str) -> Result:
        """What a queued graph made.

        Raises:
            FailedError: a node raised an error, or it was interrupted.
        """
        end = time.monotonic() + RUN_SECONDS
        while time.monotonic() < end:
            history = self.get(f"/history/{prompt_id}")
            if prompt_id in history:
                return self._result(history[prompt_id])
            time.sleep(0.05)
        raise FailedError(f"not finished within {RUN_SECONDS} s")

    def wait_until_running(self, prompt_id: str) -> None:
        """Return when the graph is the one that runs."""
        end = time.monotonic() + RUN_SECONDS
        while time.monotonic() < end:
            if any(entry[1] == prompt_id for entry in self.get("/queue")["queue_running"]):
                return
            time.sleep(0.02)
        raise FailedError("it does not run")

    def wait_until_sampling(self, prompt_id: str) -> None:
        """Return when the graph has been running for a while, which its other nodes do not take.

        Raises:
            FailedError: it is over already.
        """
        self.wait_until_running(prompt_id)
        time.sleep(SAMPLING_AFTER)
        if prompt_id in self.get(f"/history/{prompt_id}"):
            raise FailedError("it finished before it could be looked at; give it more steps")

    def free(self) -> None:
        """Make the server forget its models and all that its nodes made."""
        self.post("/free", {"unload_models": True, "free_memory": True})
        time.sleep(1.5)  # it looks for the request once a second, between two graphs

    def interrupt(self) -> None:
        """Stop the graph that runs."""
        self.post("/interrupt", {})

    def get(self, path: str) -> Any:
        """An answer in JSON."""
        with urlopen(self.server.url + path) as answer:
            return json.load(answer)

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """An answer in JSON; None where it is empty."""
        request = Request(self.server.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urlopen(request) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def _result(self, entry: dict[str, Any]) -> Result:
        messages = dict(entry["status"]["messages"])
        if entry["status"]["status_str"] != "success":
            failure = messages.get("execution_error") or messages.get("execution_interrupted") or {}
            raise FailedError(failure.get("exception_message", "interrupted"))
        cached = tuple(messages["execution_cached"]["nodes"])
        return Result(entry["outputs"], cached, self.server.base_directory / "output")
