/**
 * One strength per block from a shape, for the picture on the Block Strength Builder.
 *
 * The same shapes as `SHAPES` in latentloom/comfy/curves.py; tests/web/curves.json holds the two together.
 */

import { presetFlags } from "./blocks.js";
import { sampleCurve } from "./curve.js";

/** Share of the strength that blocks outside a focus keep. */
const BACKGROUND = 0.1;

const place = (b, n) => b / Math.max(1, n - 1);
const bell = (b, { base, peakBlock, spread }) => base * Math.exp(-((b - peakBlock) ** 2) / (2 * spread ** 2));
const focus = (preset) => (n, { base }) => presetFlags(preset, n).map((on) => base * (on ? 1 : BACKGROUND));
const each = (strength) => (n, settings) => Array.from({ length: n }, (_, b) => strength(b, n, settings));

const SHAPES = {
  custom: each((b, n, { custom }) => custom[b] ?? 0),
  uniform: each((b, n, { base }) => base),
  linear_decay: each((b, n, { base }) => base * (1 - place(b, n))),
  linear_rise: each((b, n, { base }) => base * place(b, n)),
  gaussian_peak: each((b, n, settings) => bell(b, settings)),
  inverse_gaussian: each((b, n, settings) => settings.base - bell(b, settings)),
  sine_wave: each((b, n, { base }) => (base * (1 + Math.sin(2 * Math.PI * place(b, n)))) / 2),
  stepped: each((b, n, { base, stepSize }) => (Math.floor(b / stepSize) % 2 === 0 ? base : 0)),
  focus_early: focus("early_blocks"),
  focus_mid: focus("mid_blocks"),
  focus_late: focus("late_blocks"),
  curve: (n, { points }) => sampleCurve(points, n),
};

/** Widget -> the shapes that read it; a widget that is not named is read by all. */
const READERS = {
  peak_block: ["gaussian_peak", "inverse_gaussian"],
  spread: ["gaussian_peak", "inverse_gaussian"],
  step_size: ["stepped"],
  random_seed: ["random"],
};
const WITHOUT_BASE = ["custom", "curve"];

/**
 * One strength per block, 0 to 1; null for a shape that is known only where the node runs, such as random numbers.
 *
 * settings: base, peakBlock, spread, stepSize, custom (one number per block) and points (of a drawn curve).
 */
export function shapeStrengths(shape, numBlocks, settings) {
  if (!Object.hasOwn(SHAPES, shape)) return null;
  return SHAPES[shape](numBlocks, settings).map((strength) => Math.min(1, Math.max(0, strength)));
}

/** Whether a shape reads a widget. */
export function readsWidget(shape, widget) {
  if (widget === "base_strength") return !WITHOUT_BASE.includes(shape);
  return READERS[widget]?.includes(shape) ?? true;
}
