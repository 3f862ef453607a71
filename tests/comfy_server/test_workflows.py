"""Every workflow that ships: it loads with no missing node, is queued from the page, and finishes."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from comfy_server.page import GraphPage

if TYPE_CHECKING:
    from comfy_server.api import Client
    from comfy_server.server import Server

WORKFLOWS = sorted((Path(__file__).resolve().parents[2] / "example_workflows").glob("*.json"))
#: Workflow -> what the reader must say of the clip with the edit.
READ = {
    "simple": "large green square moving up on black",
    "arithmetic": "small green square moving up on black",
    "amplified": "small red square moving left on black",
    "control_vector": "small blue circle moving left on black",
}
READERS = "() => app.graph.nodes.filter((n) => n.type === 'LatentLoomAttributeReader').map((n) => String(n.id))"
MISSING = "() => app.graph.nodes.filter((n) => n.has_errors).map((n) => n.type)"
FIT = """() => {
  const boxes = app.graph.nodes.map((n) => [n.pos[0], n.pos[1] - 30, n.pos[0] + n.size[0], n.pos[1] + n.size[1]]);
  const [left, top] = [0, 1].map((i) => Math.min(...boxes.map((box) => box[i])));
  const [right, bottom] = [2, 3].map((i) => Math.max(...boxes.map((box) => box[i])));
  const { width, height } = app.canvas.canvas.getBoundingClientRect();
  const scale = Math.min(1, (width - 150) / (right - left), (height - 180) / (bottom - top));
  return [scale, [90 / scale - left, 110 / scale - top]];
}"""


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_loads_and_finishes(page: GraphPage, server: "Server", client: "Client", path: Path):
    if path.stem.endswith("wan_video_wrapper") and not server.has_wrapper:
        pytest.skip("ComfyUI-WanVideoWrapper is not in custom_nodes; set WANVIDEOWRAPPER_PATH to its folder")
    saved = json.loads(path.read_text(encoding="utf-8"))
    page.load(saved)
    assert page.page.evaluate(MISSING) == []
    assert page.page.locator(".p-toast-message").all_inner_texts() == []  # such as that the file is no valid workflow
    assert widget_values(page.workflow()) == widget_values(saved)
    with page.page.expect_response(lambda answer: answer.url.endswith("/prompt")) as asked:
        page.page.evaluate("() => app.queuePrompt(0, 1)")
    answer = asked.value.json()
    assert answer.get("node_errors") == {}, answer
    result = client.wait(answer["prompt_id"])
    readings = [result.outputs[number]["text"][0].splitlines()[0] for number in page.page.evaluate(READERS)]
    topic = next((topic for topic in READ if path.stem.startswith(topic)), None)
    if topic is not None:
        assert READ[topic] in readings
    folder = os.environ.get("LATENTLOOM_SCREENSHOTS")
    if folder:
        take_picture(page, Path(folder) / f"{path.stem}.png")


def widget_values(workflow: dict[str, Any]) -> dict[int, Any]:
    """The values of every node, by its number."""
    return {node["id"]: node.get("widgets_values") or [] for node in workflow["nodes"]}


def take_picture(page: GraphPage, path: Path) -> None:
    """A picture of the whole graph, large enough to read."""
    page.page.set_viewport_size({"width": 2800, "height": 1500})
    page.settle(2000)
    scale, offset = page.page.evaluate(FIT)
    page.look(scale, offset)
    page.settle(2000)
    path.parent.mkdir(parents=True, exist_ok=True)
    page.picture(path)
    page.page.set_viewport_size({"width": 1500, "height": 1000})
