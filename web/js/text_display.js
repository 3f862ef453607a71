/** What a node shows after it ran: its text in a fixed-width font, and room for its pictures, which ComfyUI draws. */

import { addElement, chain, setHidden, widgetNamed } from "./widgets.js";

const NAME = "latentloom_text";
const LINE = 14;
const PADDING = 12;
const MOST_LINES = 20;
const LETTER = 6.7;
const BESIDE_TEXT = 50;
const LEAST_WIDTH = 320;
const MOST_WIDTH = 620;
const MOST_PICTURE = 380;
/** Height that ComfyUI gives a picture by itself. */
const LEAST_PICTURE = 220;

/** Width in graph units that a node needs to show whole lines, within bounds. */
export function textWidth(text) {
  const longest = Math.max(...text.split("\n").map((line) => line.length));
  return Math.min(MOST_WIDTH, Math.max(LEAST_WIDTH, Math.ceil((longest + 1) * LETTER) + BESIDE_TEXT));
}

/** Height in graph units of a text on a node of that width, where longer lines break. */
export function textHeight(text, width) {
  const columns = Math.max(1, Math.floor((width - BESIDE_TEXT) / LETTER));
  const lines = text.split("\n").reduce((sum, line) => sum + linesOf(line, columns), 0);
  return lines * LINE + PADDING;
}

/** Lines that a line takes where it breaks between words, or within one that is longer than a line. */
function linesOf(line, columns) {
  let lines = 1;
  let used = 0;
  for (const word of line.match(/\S+\s*|\s+/g) ?? []) {
    const length = word.trimEnd().length;
    if (used > 0 && used + length > columns) {
      lines += 1;
      used = 0;
    }
    lines += Math.max(0, Math.ceil(length / columns) - 1);
    used += word.length;
  }
  return lines;
}

/** Height in graph units for a picture as wide as the node, within bounds. */
export const pictureHeight = (picture, width) =>
  Math.min(MOST_PICTURE, Math.max(LEAST_PICTURE, (width * picture.naturalHeight) / picture.naturalWidth));

/** Every node of this type shows the `text` that it sends when it ran, and after its workflow was opened again. */
export function showText(app, nodeType) {
  chain(nodeType.prototype, "onExecuted", function (message) {
    show(app, this, message?.text);
  });
  chain(nodeType.prototype, "onDrawForeground", function () {
    const text = app.nodeOutputs?.[this.id]?.text;
    if (text !== undefined && !widgetNamed(this, NAME)) show(app, this, text);
    makeRoomForPicture(this);
  });
  chain(nodeType.prototype, "onResize", function () {
    keepRoomForText(this);
  });
}

function show(app, node, message) {
  if (message === undefined) return;
  const text = [message].flat().join("\n");
  const widget = widgetNamed(node, NAME) ?? addText(app, node);
  widget.element.value = text;
  setHidden(widget, text === "");
  grow(node, textWidth(text));
  keepRoomForText(node);
}

/** For the drawing of nodes that goes by the elements' own sizes. */
function keepRoomForText(node) {
  const element = widgetNamed(node, NAME)?.element;
  if (element) element.style.minHeight = `${leastHeight(element.value, node.size[0])}px`;
}

function addText(app, node) {
  const element = document.createElement("textarea");
  element.className = "latentloom-text";
  element.readOnly = true;
  element.spellcheck = false;
  element.setAttribute("aria-label", "result");
  return addElement(app, node, NAME, element, {
    height: () => leastHeight(element.value, node.size[0]),
    mostHeight: () => textHeight(element.value, node.size[0]),
  });
}

const leastHeight = (text, width) => Math.min(MOST_LINES * LINE + PADDING, textHeight(text, width));

/** Once per picture, as the user may make the node smaller again. */
function makeRoomForPicture(node) {
  const picture = node.imgs?.[0];
  if (!picture?.naturalWidth || node.latentloomPicture === picture.src) return;
  node.latentloomPicture = picture.src;
  grow(node, LEAST_WIDTH, pictureHeight(picture, Math.max(LEAST_WIDTH, node.size[0])) - LEAST_PICTURE);
}

/** Make the node at least as wide as asked for, and as high as what is on it and some more. */
function grow(node, width, more = 0) {
  const wide = Math.max(node.size[0], width);
  node.setSize([wide, node.size[1]]); // the height of a text follows from the width
  const high = Math.max(node.size[1], node.computeSize()[1] + more);
  if (high !== node.size[1]) node.setSize([wide, high]);
  node.setDirtyCanvas?.(true, true);
}
