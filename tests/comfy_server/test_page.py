"""The pack in ComfyUI's own page: placed, used with mouse and keyboard, queued, saved and loaded."""

import json
from pathlib import Path
from typing import Any

import pytest
from comfy_server.page import RUN_MS, SHORT_MS, GraphPage

BUILDER, STRENGTHS, EDITOR = (
    "WanVideoBlockActivationBuilder",
    "WanVideoBlockStrengthBuilder",
    "LatentLoomActivationEditor",
)
VIEWER, TESTER = "LatentLoomBlockActivationViewer", "LatentLoomInjectionTester"


def cells(page: GraphPage) -> Any:
    return page.page.locator(".latentloom-grid button")


def test_every_module_is_loaded_once(page: GraphPage):
    modules = [url.split("/")[-1] for url in page.requested if "/latentloom/js/" in url]
    assert "latentloom.js" in modules
    assert len(modules) == len(set(modules))


def test_a_node_is_found_by_its_name_in_the_search_dialog(page: GraphPage):
    page.page.mouse.dblclick(700, 600)
    page.page.locator(".comfy-vue-node-search-container input, .p-autocomplete-input").first.wait_for(timeout=SHORT_MS)
    page.page.keyboard.type("Block Activation Builder", delay=10)
    page.settle(1500)
    page.page.keyboard.press("Enter")
    page.settle(500)
    assert len(page.numbers(BUILDER)) == 1


def test_a_preset_checks_the_boxes_and_a_box_makes_it_custom(page: GraphPage):
    node = page.place(BUILDER)
    page.choose(node, "preset", "late_blocks")
    assert page.boxes(node) == "0" * 30 + "1" * 10
    assert page.title(node).endswith("█ 10/40")
    cells(page).nth(0).click()
    page.settle()
    assert page.value(node, "preset") == "custom"
    assert page.boxes(node) == "1" + "0" * 29 + "1" * 10
    assert " 11/40" in page.title(node)


def test_a_drag_over_the_grid_switches_what_it_crosses(page: GraphPage):
    node = page.place(BUILDER)
    first, last = cells(page).nth(2).bounding_box(), cells(page).nth(6).bounding_box()
    page.page.mouse.move(first["x"] + 8, first["y"] + 8)
    page.page.mouse.down()
    page.page.mouse.move(last["x"] + 8, last["y"] + 8, steps=12)
    page.page.mouse.up()
    assert page.boxes(node) == "0011111" + "0" * 33


def test_the_grid_is_used_by_the_keyboard(page: GraphPage):
    node = page.place(BUILDER)
    cells(page).nth(0).focus()
    for key in ("ArrowRight", "ArrowDown", " ", "ArrowLeft", "Enter"):
        page.page.keyboard.press(key)
    assert page.boxes(node) == "0" * 10 + "11" + "0" * 28


def test_fewer_blocks_make_the_grid_smaller_and_the_preset_follows(page: GraphPage):
    node = page.place(BUILDER)
    page.choose(node, "preset", "first_half")
    before = page.saved(node)["size"]
    page.type_number(node, "num_blocks", "6")
    assert cells(page).count() == 6
    assert page.title(node) == "Block Activation Builder  ███░░░ 3/6"
    assert page.boxes(node)[:6] == "111000"
    assert page.saved(node)["size"][1] < before[1]


def test_what_the_page_shows_is_not_saved_into_the_workflow(page: GraphPage):
    node = page.place(BUILDER)
    page.choose(node, "preset", "all")
    saved = page.saved(node)
    assert saved["widgets_values"] == ["all", *[True] * 40, 40]
    assert "title" not in saved
    assert page.visible(node) == ["preset", "num_blocks", "latentloom_grid"]


def test_a_change_is_undone_and_a_node_is_copied(page: GraphPage):
    node = page.place(BUILDER)
    page.page.mouse.click(*page.on_screen(50, -15))  # its title
    page.settle()
    cells(page).nth(3).click()
    page.settle(500)
    assert page.boxes(node)[3] == "1"
    page.page.mouse.click(*page.on_screen(50, -15))
    page.page.keyboard.press("Control+c")
    page.page.mouse.move(*page.on_screen(600, 300))
    page.page.keyboard.press("Control+v")
    page.settle(500)
    _, copy = page.numbers(BUILDER)
    assert page.boxes(copy)[3] == "1"
    assert " 1/40" in page.title(copy)
    for _ in range(2):
        page.page.keyboard.press("Control+z")
        page.settle(800)
    (left,) = page.numbers(BUILDER)
    assert page.boxes(left) == "0" * 40
    assert " 0/40" in page.title(left)


def test_a_workflow_of_the_first_versions_loads_with_its_values(page: GraphPage):
    checked = [block % 3 == 0 for block in range(40)]
    builder = node_of(1, BUILDER, [40, 40], ["custom", *checked], [[0, "STRING"]])
    builder["size"] = [315, 1030]  # with forty rows
    editor = node_of(2, "WanVideoActivationEditor", [520, 40], [0.5, "1" * 40, True, "off", "context"], [])
    graph = {"last_node_id": 2, "last_link_id": 0, "nodes": [builder, editor], "links": [], "version": 0.4}
    page.page.evaluate("(graph) => app.loadGraphData(graph)", graph)
    page.settle(1000)
    assert page.boxes(1) == "".join("1" if flag else "0" for flag in checked)
    assert page.value(1, "preset") == "custom"
    assert page.value(1, "num_blocks") == 40
    assert page.saved(1)["size"][1] < 300
    names = ("injection_strength", "block_activations", "enable_patching", "log_level", "injection_mode")
    assert [page.value(2, name) for name in names] == [0.5, "1" * 40, True, "off", "context"]
    assert [page.value(2, name) for name in ("side", "start_percent", "end_percent")] == ["cond", 0, 1]


def node_of(number: int, kind: str, pos: list[int], values: list[Any], outputs: list[Any]) -> dict[str, Any]:
    made = [{"name": name, "type": name, "links": []} for _, name in outputs]
    shown = {"flags": {}, "order": number, "mode": 0, "properties": {"Node name for S&R": kind}}
    return {
        "id": number,
        "type": kind,
        "pos": pos,
        "size": [315, 200],
        "outputs": made,
        "widgets_values": values,
        **shown,
    }


def test_an_editor_that_is_switched_off_says_so(page: GraphPage):
    node = page.place(EDITOR)
    assert page.title(node) == "Activation Editor"
    page.page.mouse.click(*page.widget_on_screen(node, "enable_patching"))
    page.settle()
    assert page.title(node) == "Activation Editor (off)"


def test_a_pattern_shows_the_widgets_that_it_reads(page: GraphPage):
    node = page.place(STRENGTHS)
    assert page.visible(node) == ["pattern", "base_strength", "num_blocks", "latentloom_plot"]
    page.choose(node, "pattern", "gaussian_peak")
    assert page.visible(node)[1:4] == ["base_strength", "peak_block", "spread"]


def test_a_curve_is_drawn_with_the_mouse_and_the_keyboard(page: GraphPage, tmp_path: Path):
    node = page.place(STRENGTHS)
    page.choose(node, "pattern", "curve")
    assert curve(page, node) == [[0, 0.5], [1, 0.5]]
    area = page.page.locator(".latentloom-plot svg").bounding_box()
    middle, top = area["x"] + area["width"] / 2, area["y"] + area["height"] * 0.1
    page.page.mouse.dblclick(middle, top)
    _, added, last = curve(page, node)
    assert added == pytest.approx([0.5, 0.9], abs=0.02)
    page.page.mouse.move(middle, top)
    page.page.mouse.down()
    page.page.mouse.move(middle - area["width"] * 0.2, top + area["height"] * 0.6, steps=6)
    page.page.mouse.up()
    assert curve(page, node)[1] == pytest.approx([0.3, 0.3], abs=0.03)
    points = page.page.locator(".latentloom-plot circle")
    points.nth(0).focus()
    page.page.keyboard.press("ArrowUp")
    assert curve(page, node)[0] == pytest.approx([0, 0.51])
    page.picture(tmp_path / "curve.png")
    points.nth(1).focus()
    page.page.keyboard.press("Delete")
    assert curve(page, node) == [[0, 0.51], last]
    assert page.saved(node)["widgets_values"][-2] == page.value(node, "curve")


def curve(page: GraphPage, node: int) -> list[list[float]]:
    return json.loads(page.value(node, "curve"))


def test_custom_strengths_are_drawn_as_bars(page: GraphPage):
    node = page.place(STRENGTHS, values={"num_blocks": 6})
    page.choose(node, "pattern", "custom")
    area = page.page.locator(".latentloom-plot svg").bounding_box()
    page.page.mouse.click(area["x"] + area["width"] * 0.75, area["y"] + area["height"] * 0.25)
    assert page.value(node, "block_4_strength") == pytest.approx(0.75, abs=0.01)
    assert page.value(node, "block_3_strength") == 0


def test_a_node_has_a_help_page_and_tooltips(page: GraphPage):
    node = page.place(EDITOR)
    page.look(1.0, (300, 300))  # room for the toolbar above the selected node
    across, down = page.widget_on_screen(node, "injection_strength")
    page.page.mouse.move(across - 60, down)
    page.page.mouse.move(across - 57, down)
    shown = page.page.locator(".node-tooltip").filter(has_text="Share of the injected prompt in a chosen block.")
    shown.wait_for(timeout=SHORT_MS)
    page.page.mouse.click(*page.on_screen(80, -15))
    page.page.locator("[data-testid=info-button], .selection-toolbox button:has(.pi-question-circle)").first.click()
    page.page.get_by_text("The prompt that is sampled, with a record of the edit.").first.wait_for(timeout=SHORT_MS)
    assert any(url.endswith(f"/docs/{EDITOR}.md") for url in page.requested)


def test_a_graph_runs_and_its_viewer_and_tester_show_what_they_found(page: GraphPage, tmp_path: Path):
    viewer, tester = place_graph(page)
    page.look(0.6, (60, 160))
    page.page.get_by_role("button", name="Run", exact=True).click(timeout=SHORT_MS)
    for node in (viewer, tester):
        page.page.wait_for_function(
            "(id) => app.graph.getNodeById(id).imgs?.[0]?.naturalWidth > 0", arg=node, timeout=RUN_MS
        )
    page.settle(500)
    page.picture(tmp_path / "graph.png")
    texts = [box.input_value() for box in page.page.locator("textarea.latentloom-text").all()]
    assert any("███░░░" in text for text in texts)
    assert any("differ by" in text for text in texts)
    for node in (viewer, tester):
        assert page.visible(node)[-2:] == ["latentloom_text", "$$canvas-image-preview"]
        width, height = page.saved(node)["size"]
        assert 300 <= width <= 640
        assert 300 <= height <= 1000
    assert page.saved(viewer)["widgets_values"] == [True]


def place_graph(page: GraphPage) -> tuple[int, int]:
    """MicroWan with an edit, sampled in four steps; the numbers of the viewer and the tester."""
    prompts = ("A small red circle moves to the left on a black background.", "A large green cross moves up.", "")
    loader = page.place("LatentLoomMicroWanLoader")
    text, injected, negative = (
        page.place("CLIPTextEncode", 300, 250 * row, {"text": prompt}) for row, prompt in enumerate(prompts)
    )
    builder = page.place(BUILDER, 300, 760, {"num_blocks": 6, "preset": "first_half"})
    editor = page.place(EDITOR, 760, 0, {"injection_strength": 1})
    latent = page.place("EmptyHunyuanLatentVideo", 760, 420, {"width": 48, "height": 48, "length": 9})
    viewer, tester = page.place(VIEWER, 1420, 420), page.place(TESTER, 760, 640)
    sampling = {"steps": 4, "cfg": 3, "sampler_name": "uni_pc", "scheduler": "simple"}
    sampler = page.place("KSampler", 1160, 0, sampling)
    decoder, shown = page.place("VAEDecode", 1480, 0), page.place("PreviewImage", 1480, 120)
    for node in (text, injected, negative):
        page.link(loader, "clip", node, "clip")
    for node in (editor, tester):
        page.link(loader, "model", node, "model")
        page.link(text, "conditioning", node, "text_embeds")
        page.link(injected, "conditioning", node, "injection_embeds")
    page.link(builder, "block_activations", editor, "block_activations")
    for node in (sampler, viewer):
        page.link(editor, "model", node, "model")
    page.link(editor, "text_embeds", viewer, "text_embeds")
    page.link(editor, "text_embeds", sampler, "positive")
    page.link(negative, "conditioning", sampler, "negative")
    page.link(latent, "latent", sampler, "latent_image")
    page.link(sampler, "latent", decoder, "samples")
    page.link(loader, "vae", decoder, "vae")
    page.link(decoder, "image", shown, "images")
    return viewer, tester
