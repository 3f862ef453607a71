/** Text that a node shows after it ran, in a fixed-width font. */

import { addElement, chain, setHidden, widgetNamed } from "./widgets.js";

const NAME = "latentloom_text";
const LINE = 14;
const PADDING = 12;
const MOST_LINES = 18;
const LETTER = 6.7;
const LEAST_WIDTH = 320;
const MOST_WIDTH = 620;

/** Height in graph units of a text; longer ones scroll. */
export const textHeight = (text) => Math.min(MOST_LINES, text.split("\n").length) * LINE + PADDING;

/** Width in graph units that a node needs to show whole lines, within bounds. */
export function textWidth(text) {
  const longest = Math.max(...text.split("\n").map((line) => line.length));
  return Math.min(MOST_WIDTH, Math.max(LEAST_WIDTH, longest * LETTER + 60));
}

/** Every node of this type shows the `text` that it sends when it ran, and after its workflow was opened again. */
export function showText(app, nodeType) {
  chain(nodeType.prototype, "onExecuted", function (message) {
    show(app, this, message?.text);
  });
  chain(nodeType.prototype, "onDrawForeground", function () {
    const text = app.nodeOutputs?.[this.id]?.text;
    if (text !== undefined && !widgetNamed(this, NAME)) show(app, this, text);
  });
}

function show(app, node, message) {
  if (message === undefined) return;
  const text = [message].flat().join("\n");
  const widget = widgetNamed(node, NAME) ?? addText(app, node);
  widget.element.value = text;
  widget.element.style.minHeight = `${textHeight(text)}px`;
  setHidden(widget, text === "");
  const [, least] = node.computeSize();
  if (node.size[1] < least || node.size[0] < textWidth(text)) {
    node.setSize([Math.max(node.size[0], textWidth(text)), Math.max(node.size[1], least)]);
  }
  node.setDirtyCanvas?.(true, true);
}

function addText(app, node) {
  const element = document.createElement("textarea");
  element.className = "latentloom-text";
  element.readOnly = true;
  element.spellcheck = false;
  element.setAttribute("aria-label", "result");
  return addElement(app, node, NAME, element, { height: () => textHeight(element.value), grows: true });
}
