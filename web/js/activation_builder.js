/** Block Activation Builder: a grid in the place of forty checkboxes, whose values stay in the hidden checkboxes. */

import { createBlockGrid, gridHeight } from "./block_grid.js";
import { CUSTOM, blocksTitle, presetFlags } from "./blocks.js";
import { tellInTitle } from "./titles.js";
import { addElement, chain, fitHeight, isLinked, setHidden, widgetNamed } from "./widgets.js";

export const ACTIVATION_BUILDER = "WanVideoBlockActivationBuilder";
const LEAST_WIDTH = 400;
const BOX = /^block_\d+$/;

const boxesOf = (node) => node.widgets.filter((widget) => BOX.test(widget.name));
const numBlocksOf = (node) => Math.min(widgetNamed(node, "num_blocks").value, boxesOf(node).length);

/** Which blocks the node's output means: those of its preset, or those that are checked. */
export function activeBlocks(node) {
  const numBlocks = numBlocksOf(node);
  const checked = boxesOf(node).map((box) => box.value === true);
  return presetFlags(widgetNamed(node, "preset").value, numBlocks) ?? checked.slice(0, numBlocks);
}

/** Dress nodes of this type. */
export function dressActivationBuilder(app, nodeType) {
  tellInTitle(nodeType, (node, title) => (node.widgets ? blocksTitle(title, activeBlocks(node), node.size[0]) : title));
  chain(nodeType.prototype, "onNodeCreated", function () {
    prepare(app, this);
  });
  chain(nodeType.prototype, "onConfigure", function () {
    follow(this);
  });
  // values also change without a word, by undo or by another pack
  chain(nodeType.prototype, "onDrawForeground", function () {
    follow(this);
  });
}

function prepare(app, node) {
  const grid = createBlockGrid((block, active) => choose(node, block, active));
  node.latentloomGrid = { show: grid.show, shown: "" };
  addElement(app, node, "latentloom_grid", grid.element, { height: () => gridHeight(numBlocksOf(node)) });
  for (const name of ["preset", "num_blocks"]) {
    chain(widgetNamed(node, name), "callback", () => {
      check(node);
      follow(node);
    });
  }
  for (const box of boxesOf(node)) {
    chain(box, "callback", () => {
      widgetNamed(node, "preset").value = CUSTOM;
      follow(node);
    });
  }
  follow(node);
}

/** Switch one block; the others stay as they are shown, so that a preset is where one starts from. */
function choose(node, block, active) {
  check(node);
  boxesOf(node)[block].value = active;
  widgetNamed(node, "preset").value = CUSTOM;
  follow(node);
}

/** Check the boxes of the blocks that the preset means; those beyond the model's depth keep their value. */
function check(node) {
  const boxes = boxesOf(node);
  activeBlocks(node).forEach((active, block) => {
    boxes[block].value = active;
  });
}

/** Show what the widgets say, if it is not shown already. */
function follow(node) {
  const { latentloomGrid: grid } = node;
  if (!grid) return;
  const flags = activeBlocks(node);
  const linked = boxesOf(node).filter((box) => isLinked(node, box.name));
  const shown = `${flags} ${linked.map((box) => box.name)}`;
  if (shown === grid.shown) return;
  grid.shown = shown;
  grid.show(flags);
  for (const box of boxesOf(node)) setHidden(box, !linked.includes(box));
  fitHeight(node, LEAST_WIDTH);
}
