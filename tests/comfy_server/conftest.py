"""One real ComfyUI for all tests of this folder; without `COMFYUI_PATH` they are skipped."""

import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from comfy_server.api import Client
    from comfy_server.graphs import HostName
    from comfy_server.page import GraphPage
    from comfy_server.server import Server

FOLDER = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)  # before the choice by markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test here is of the layer that `make test-comfy` runs."""
    for item in items:
        if FOLDER in item.path.parents:
            item.add_marker("comfy")


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The folder of ComfyUI's source."""
    named = os.environ.get("COMFYUI_PATH")
    if not named:
        pytest.skip("set COMFYUI_PATH to a checkout of ComfyUI (and COMFYUI_PYTHON to a Python that starts it)")
    return Path(named).resolve()


@pytest.fixture(scope="session")
def server(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Server]":
    """The server that all tests share."""
    from comfy_server.server import serving

    with serving(checkout, tmp_path_factory.mktemp("comfyui") / "base") as running:
        yield running


@pytest.fixture(scope="session")
def client(server: "Server") -> "Client":
    """Asks the server."""
    from comfy_server.api import Client

    return Client(server)


@pytest.fixture(scope="module", params=["native", "wrapper"])
def host(request: pytest.FixtureRequest, server: "Server") -> "HostName":
    """Each host in turn."""
    if request.param == "wrapper" and not server.has_wrapper:
        pytest.skip("ComfyUI-WanVideoWrapper is not in custom_nodes; set WANVIDEOWRAPPER_PATH to its folder")
    return request.param


@pytest.fixture(scope="session")
def opened(server: "Server") -> "Iterator[GraphPage]":
    """One page of ComfyUI's in a browser, as it takes seconds to load."""
    from comfy_server.page import GraphPage, browser

    with browser() as chromium:
        yield GraphPage(chromium.new_page(viewport={"width": 1500, "height": 1000}), server.url)


@pytest.fixture
def page(opened: "GraphPage") -> "Iterator[GraphPage]":
    """The page with an empty graph; a test fails if the page raised an error."""
    opened.clear()
    opened.errors.clear()
    yield opened
    assert opened.errors == []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the end of the server's log where a test failed."""
    report = yield
    running = getattr(item, "funcargs", {}).get("server")
    if report.failed and running is not None:
        report.sections.append(("ComfyUI's log", running.log_tail()))
    return report
