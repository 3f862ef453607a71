import assert from "node:assert/strict";
import { test } from "node:test";

import { activeBlocks } from "../../web/js/activation_builder.js";
import { gridHeight } from "../../web/js/block_grid.js";
import { curveInput } from "../../web/js/strength_builder.js";
import { pictureHeight, textHeight, textWidth } from "../../web/js/text_display.js";
import { hasSwitch, switchTitle, tellInTitle } from "../../web/js/titles.js";
import { chain, isLinked, setHidden } from "../../web/js/widgets.js";

const builder = (preset, numBlocks, checked) => ({
  widgets: [
    { name: "preset", value: preset },
    ...Array.from({ length: 40 }, (_, block) => ({ name: `block_${block}`, value: checked.includes(block) })),
    { name: "num_blocks", value: numBlocks },
  ],
});

const marks = (flags) => flags.map(Number).join("");

test("the active blocks are the preset's, or the checked ones up to the model's depth", () => {
  assert.equal(marks(activeBlocks(builder("first_half", 6, [5]))), "111000");
  assert.equal(marks(activeBlocks(builder("custom", 6, [1, 5, 6, 39]))), "010001");
});

test("ten blocks fill a row of the grid", () => {
  assert.equal(gridHeight(10), gridHeight(1));
  assert.equal(gridHeight(40), 86);
});

test("a title tells that a node is switched off, and only where the widget decides", () => {
  const node = { widgets: [{ name: "enable_patching", value: false }], inputs: [] };
  assert.equal(switchTitle(node, "Editor"), "Editor (off)");
  assert.equal(switchTitle({ ...node, inputs: [{ widget: { name: "enable_patching" }, link: 3 }] }, "Editor"), "Editor");
  assert.equal(switchTitle({ widgets: [{ name: "enable_patching", value: true }] }, "Editor"), "Editor");
  assert.equal(hasSwitch({ input: { required: { enable_patching: [] } } }), true);
  assert.equal(hasSwitch({ input: {} }), false);
});

test("a title is told without changing the name, and not on a collapsed node", () => {
  class Node {
    title = "Mine";
    getTitle() {
      return this.title;
    }
  }
  tellInTitle(Node, (node, title) => `${title}!`);
  const node = new Node();
  assert.equal(node.getTitle(), "Mine!");
  assert.equal(node.title, "Mine");
  node.flags = { collapsed: true };
  assert.equal(node.getTitle(), "Mine");
});

test("a chained method keeps what was there, and its result", () => {
  const calls = [];
  const target = { act: (value) => calls.push(`before ${value}`) };
  chain(target, "act", (value) => calls.push(`after ${value}`));
  assert.equal(target.act(1), 1);
  assert.deepEqual(calls, ["before 1", "after 1"]);
});

test("a hidden widget is hidden in every way of drawing nodes, takes no room, and comes back as it was", () => {
  const size = () => [10, 20];
  const widget = { computeSize: size };
  setHidden(widget, true);
  setHidden(widget, true);
  assert.equal(widget.hidden && widget.options.hidden, true);
  assert.equal(widget.computeSize()[1] + 4, 0);
  setHidden(widget, false);
  assert.equal(widget.hidden || widget.options.hidden, false);
  assert.equal(widget.computeSize, size);
});

test("a widget is linked where its input has a link", () => {
  assert.equal(isLinked({ inputs: [{ widget: { name: "a" }, link: 0 }] }, "a"), true);
  assert.equal(isLinked({ inputs: [{ widget: { name: "a" }, link: null }] }, "a"), false);
});

test("the node that asks for a drawn curve is found by its input", () => {
  assert.equal(curveInput({ input: { optional: { drawn: ["STRING", { latentloom: "curve" }] } } }), "drawn");
  assert.equal(curveInput({ input: { required: { model: ["MODEL"] } } }), undefined);
});

test("a text gets the room it needs, and long lines break", () => {
  assert.equal(textHeight("a\nb", 400) - textHeight("a", 400), 14);
  assert.ok(textHeight("a".repeat(200), 400) > textHeight("a".repeat(200), 800));
  const lines = (text) => (textHeight(text, 117) - textHeight("a", 117)) / 14 + 1; // ten letters to a line
  assert.deepEqual(["", "aaaa bbbb", "aaaa bbbbbb", "a b c d e f g", "  aaaaaaaaaaaa"].map(lines), [1, 1, 2, 2, 3]);
  assert.ok(textWidth("a".repeat(60)) > textWidth("a"));
  assert.equal(textWidth("a".repeat(999)), textWidth("a".repeat(9999)));
});

test("a picture gets the height that its shape asks for, within bounds", () => {
  assert.equal(pictureHeight({ naturalWidth: 800, naturalHeight: 600 }, 400), 300);
  assert.equal(pictureHeight({ naturalWidth: 800, naturalHeight: 8 }, 400), 220);
  assert.equal(pictureHeight({ naturalWidth: 8, naturalHeight: 800 }, 400), 380);
});
