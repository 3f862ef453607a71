/** Block Strength Builder: a picture of the strengths, to draw in where the pattern has values of its own. */

import { FLAT, formatCurve, parseCurve } from "./curve.js";
import { createStrengthPlot, PLOT_HEIGHT } from "./strength_plot.js";
import { readsWidget, shapeStrengths } from "./strengths.js";
import { addElement, chain, fitHeight, isLinked, setHidden, widgetNamed } from "./widgets.js";

const LEAST_WIDTH = 400;
const BLOCK = /^block_\d+_strength$/;
const MODES = { custom: "bars", curve: "curve" };
const HINTS = {
  bars: "drag the bars; arrow keys change one",
  curve: "drag points; double click adds or removes one",
  look: "",
};

const valueOf = (node, name) => widgetNamed(node, name)?.value;
const blockWidgets = (node) => node.widgets.filter((widget) => BLOCK.test(widget.name));

/** Whether a node has an input that asks for a curve to be drawn; its name, or nothing. */
export function curveInput(nodeData) {
  const inputs = { ...nodeData.input?.required, ...nodeData.input?.optional };
  return Object.keys(inputs).find((name) => inputs[name][1]?.latentloom === "curve");
}

/** Dress nodes of this type, whose widget `curve` holds the drawn curve. */
export function dressStrengthBuilder(app, nodeType, curve) {
  chain(nodeType.prototype, "onNodeCreated", function () {
    prepare(app, this, curve);
  });
  for (const event of ["onConfigure", "onDrawForeground"]) {
    chain(nodeType.prototype, event, function () {
      follow(this);
    });
  }
}

function prepare(app, node, curve) {
  const set = (name, value) => {
    widgetNamed(node, name).value = value;
    follow(node);
  };
  const plot = createStrengthPlot({
    setStrength: (block, strength) => set(`block_${block}_strength`, strength),
    setPoints: (points) => set(curve, formatCurve(points)),
  });
  node.latentloomPlot = { show: plot.show, curve, shown: "", rows: "" };
  addElement(app, node, "latentloom_plot", plot.element, { height: () => PLOT_HEIGHT });
  chain(widgetNamed(node, "pattern"), "callback", () => {
    const isEmpty = !valueOf(node, curve)?.trim();
    if (valueOf(node, "pattern") === "curve" && isEmpty) widgetNamed(node, curve).value = formatCurve(FLAT);
    follow(node);
  });
  follow(node);
}

/** Show what the widgets say, if it is not shown already. */
function follow(node) {
  const { latentloomPlot: plot } = node;
  if (!plot) return;
  const state = stateOf(node, plot.curve);
  const shown = JSON.stringify(state);
  if (shown !== plot.shown) {
    plot.shown = shown;
    plot.show(state);
    node.setDirtyCanvas?.(true, true);
  }
  const hidden = node.widgets.filter((widget) => isIdle(node, widget, plot.curve));
  const rows = hidden.map((widget) => widget.name).join();
  if (rows === plot.rows) return;
  plot.rows = rows;
  for (const widget of node.widgets) {
    if (widget.type !== "latentloom") setHidden(widget, hidden.includes(widget));
  }
  fitHeight(node, LEAST_WIDTH);
}

/** Whether a row of the node has nothing to say: the pattern does not read it, or the picture shows it. */
function isIdle(node, widget, curve) {
  if (isLinked(node, widget.name)) return false;
  return widget.name === curve || BLOCK.test(widget.name) || !readsWidget(valueOf(node, "pattern"), widget.name);
}

function stateOf(node, curve) {
  const pattern = valueOf(node, "pattern");
  const numBlocks = valueOf(node, "num_blocks");
  const points = parseCurve(valueOf(node, curve));
  const strengths = shapeStrengths(pattern, numBlocks, {
    base: valueOf(node, "base_strength"),
    peakBlock: valueOf(node, "peak_block"),
    spread: valueOf(node, "spread"),
    stepSize: valueOf(node, "step_size"),
    custom: blockWidgets(node).map((widget) => widget.value),
    points: points ?? [],
  });
  const mode = MODES[pattern] ?? "look";
  return { strengths: strengths ?? new Array(numBlocks).fill(0), points: points ?? [], mode, note: noteOf(strengths, mode) };
}

function noteOf(strengths, mode) {
  if (!strengths) return "random: shown below when it has run";
  const extent = `${Math.min(...strengths).toFixed(2)} to ${Math.max(...strengths).toFixed(2)}`;
  return [`${strengths.length} blocks, ${extent}`, HINTS[mode]].filter(Boolean).join("; ");
}
