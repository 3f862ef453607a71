"""ComfyUI's page in headless Chromium: nodes placed, widgets used as a person does, and what is then in the graph."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

# without it, pyright and the tests that need no browser still run
browsing: Any = pytest.importorskip("playwright.sync_api", reason="make test-comfy installs playwright")

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
#: A page that starts with nothing in front of the graph.
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Notification.ShowVersionUpdates": False,
    "Comfy.Minimap.Visible": False,
}
READY_MS, RUN_MS, SHORT_MS = 90_000, 120_000, 10_000

LOOK = """([scale, offset]) => {
  Object.assign(app.canvas.ds, { scale, offset });
  app.canvas.setDirty(true, true);
}"""
WIDGETS = "(id) => app.graph.getNodeById(id).widgets"
PLACE = """([type, x, y, values]) => {
  const node = LiteGraph.createNode(type);
  node.pos = [x, y];
  app.graph.add(node);
  for (const [name, value] of Object.entries(values)) node.widgets.find((w) => w.name === name).value = value;
  return node.id;
}"""
LINK = """([from, output, to, input]) => {
  const [source, target] = [app.graph.getNodeById(from), app.graph.getNodeById(to)];
  const named = (slots, name) => slots.findIndex((slot) => slot.name.toLowerCase() === name.toLowerCase());
  return !!source.connect(named(source.outputs, output), target, named(target.inputs, input));
}"""
ON_SCREEN = """([x, y]) => {
  const { scale, offset } = app.canvas.ds;
  const { left, top } = app.canvas.canvas.getBoundingClientRect();
  return [left + (x + offset[0]) * scale, top + (y + offset[1]) * scale];
}"""
WIDGET_PLACE = """([id, name]) => {
  const node = app.graph.getNodeById(id);
  const widget = node.widgets.find((w) => w.name === name);
  return [node.pos[0] + node.size[0] / 2, node.pos[1] + widget.last_y + 10];
}"""


@contextmanager
def browser() -> Iterator[Any]:
    """Chromium of this machine, from `PLAYWRIGHT_CHROMIUM` or the path; the tests are skipped without one."""
    found = os.environ.get("PLAYWRIGHT_CHROMIUM") or next(filter(None, map(shutil.which, CHROMIUM)), None)
    if found is None:
        pytest.skip("install Chromium, or set PLAYWRIGHT_CHROMIUM to it")
    with browsing.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=found, args=list(FLAGS))
        yield running
        running.close()


class GraphPage:
    """The page with an empty graph.

    Args:
        opened: a page of Playwright's.
        url: of the server.
    """

    def __init__(self, opened: Any, url: str) -> None:
        self.page = opened
        self.errors: list[str] = []
        self.requested: list[str] = []
        opened.on("pageerror", lambda error: self.errors.append(str(error)))
        opened.on("request", lambda request: self.requested.append(request.url))
        urlopen(Request(f"{url}/settings", json.dumps(SETTINGS).encode(), {"Content-Type": "application/json"})).close()
        opened.goto(url)
        opened.wait_for_function("!!(window.app?.graph && app.canvas && app.extensionManager)", timeout=READY_MS)
        opened.wait_for_function(
            "'LatentLoomMicroWanLoader' in (window.LiteGraph?.registered_node_types ?? {})", timeout=READY_MS
        )
        opened.wait_for_function("!document.querySelector('#splash-loader, .p-progressspinner')", timeout=READY_MS)
        self.settle(1500)
        opened.keyboard.press("Escape")
        self.clear()

    def clear(self) -> None:
        """Empty the graph, and look at its origin from a little below the page's menus."""
        self.page.evaluate("() => app.graph.clear()")
        self.look(1.0, (120, 130))

    def load(self, workflow: dict[str, Any]) -> None:
        """Open a workflow as the page's menu does."""
        self.page.evaluate("(saved) => app.loadGraphData(saved)", workflow)
        self.settle(1500)

    def workflow(self) -> dict[str, Any]:
        """The graph as the page saves it."""
        return json.loads(self.page.evaluate("() => JSON.stringify(app.graph.serialize())"))

    def look(self, scale: float, offset: Sequence[float]) -> None:
        """Zoom and pan."""
        self.page.evaluate(LOOK, [scale, list(offset)])
        self.settle()

    def settle(self, milliseconds: int = 250) -> None:
        """Let the page draw."""
        self.page.wait_for_timeout(milliseconds)

    def place(self, kind: str, x: float = 0, y: float = 0, values: Mapping[str, Any] | None = None) -> int:
        """A new node's number."""
        number = self.page.evaluate(PLACE, [kind, x, y, dict(values or {})])
        self.settle()
        return number

    def link(self, source: int, output: str, target: int, name: str) -> None:
        """Link an output to an input, both by name."""
        assert self.page.evaluate(LINK, [source, output, target, name])

    def value(self, number: int, widget: str) -> Any:
        """Of a widget."""
        return self.page.evaluate(
            f"([id, name]) => ({WIDGETS})(id).find((w) => w.name === name).value", [number, widget]
        )

    def visible(self, number: int) -> list[str]:
        """The widgets that a node shows, by name."""
        return self.page.evaluate(f"(id) => ({WIDGETS})(id).filter((w) => !w.hidden).map((w) => w.name)", number)

    def boxes(self, number: int) -> str:
        """The forty checkboxes of an activation builder, as digits."""
        return "".join("1" if self.value(number, f"block_{block}") else "0" for block in range(40))

    def title(self, number: int) -> str:
        """As the node shows it."""
        return self.page.evaluate("(id) => app.graph.getNodeById(id).getTitle()", number)

    def saved(self, number: int) -> dict[str, Any]:
        """A node as a workflow keeps it."""
        return self.page.evaluate("(id) => app.graph.getNodeById(id).serialize()", number)

    def numbers(self, kind: str) -> list[int]:
        """The nodes of a kind, oldest first."""
        return self.page.evaluate(
            "(kind) => app.graph.nodes.filter((n) => n.type === kind).map((n) => n.id).sort((a, b) => a - b)", kind
        )

    def on_screen(self, x: float, y: float) -> tuple[float, float]:
        """Where a place of the graph is on the page."""
        across, down = self.page.evaluate(ON_SCREEN, [x, y])
        return across, down

    def widget_on_screen(self, number: int, widget: str) -> tuple[float, float]:
        """The middle of a widget's row."""
        return self.on_screen(*self.page.evaluate(WIDGET_PLACE, [number, widget]))

    def choose(self, number: int, widget: str, option: str) -> None:
        """Choose from a widget's list, with the mouse."""
        self.page.mouse.click(*self.widget_on_screen(number, widget))
        self.page.locator(".litecontextmenu .litemenu-entry").get_by_text(option, exact=True).click(timeout=SHORT_MS)
        self.settle()

    def type_number(self, number: int, widget: str, value: str) -> None:
        """Type into a number's box."""
        self.page.mouse.dblclick(*self.widget_on_screen(number, widget))
        box = self.page.locator(".graphdialog input")
        box.fill(value, timeout=SHORT_MS)
        box.press("Enter")
        self.settle()

    def picture(self, path: Path) -> Path:
        """A screenshot."""
        self.page.screenshot(path=path)
        return path
