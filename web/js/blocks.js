/**
 * Which blocks of a transformer a preset means, and how a choice of blocks is written.
 *
 * The same table as `PRESETS` in latentloom/steering/blocks.py; tests/web/presets.json holds the two together.
 */

export const CUSTOM = "custom";
export const FULL = "█";
export const LIGHT = "░";
/** Stands for several blocks of which some are active, where a bar has fewer cells than there are blocks. */
export const PART = "▒";

const half = (n) => Math.floor((n + 1) / 2);
const quarter = (n) => Math.floor((n + 2) / 4);

/** Name -> whether block b of n is active. */
export const PRESETS = {
  all: () => true,
  none: () => false,
  first_half: (b, n) => b < half(n),
  second_half: (b, n) => b >= half(n),
  early_blocks: (b, n) => b < quarter(n),
  mid_blocks: (b, n) => b >= quarter(n) && b < n - quarter(n),
  late_blocks: (b, n) => b >= n - quarter(n),
  alternating: (b) => b % 2 === 0,
  sparse: (b) => b % 4 === 0,
};

/** One boolean per block; null where the name is no preset, as for `custom`. */
export function presetFlags(preset, numBlocks) {
  if (!Object.hasOwn(PRESETS, preset)) return null;
  return Array.from({ length: numBlocks }, (_, block) => PRESETS[preset](block, numBlocks));
}

/** One `0` or `1` per block, as the node's output. */
export const digits = (flags) => flags.map((flag) => (flag ? "1" : "0")).join("");

export const countActive = (flags) => flags.filter(Boolean).length;

/** A bar of at most `cells` cells; a cell stands for as many blocks as it takes. */
export function patternBar(flags, cells = flags.length) {
  const blocksPerCell = Math.ceil(flags.length / Math.max(1, cells));
  let bar = "";
  for (let first = 0; first < flags.length; first += blocksPerCell) {
    const part = flags.slice(first, first + blocksPerCell);
    const active = countActive(part);
    bar += active === 0 ? LIGHT : active === part.length ? FULL : PART;
  }
  return bar;
}

/** The name, a bar and the count, such as `Block Activation Builder  ██░░░░ 2/6`; the bar gives way to the width. */
export function blocksTitle(name, flags, width) {
  const count = ` ${countActive(flags)}/${flags.length}`;
  const cells = cellsThatFit(width - textWidth(name) - textWidth(count));
  return cells > 0 ? `${name}  ${patternBar(flags, cells)}${count}` : `${name} ${count}`;
}

// In graph units, of ComfyUI's title font of 14 px: measured in Chromium, rounded up.
const CELL_WIDTH = 8.6;
const LETTER_WIDTH = 7.2;
const TITLE_PADDING = 68;

const textWidth = (text) => text.length * LETTER_WIDTH;
const cellsThatFit = (width) => Math.floor((width - TITLE_PADDING) / CELL_WIDTH);
