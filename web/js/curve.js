/** A drawn curve: points [x, y] from 0 to 1, x ascending; straight between them, level before and after. */

const DIGITS = 3;
/** What a curve is before anything is drawn. */
export const FLAT = [
  [0, 0.5],
  [1, 0.5],
];

/** The points of a widget's text, ascending; null where the text is none. */
export function parseCurve(text) {
  let given;
  try {
    given = JSON.parse(text);
  } catch {
    return null;
  }
  const isShare = (value) => typeof value === "number" && value >= 0 && value <= 1;
  const isPoint = (point) => Array.isArray(point) && point.length === 2 && point.every(isShare);
  if (!Array.isArray(given) || given.length === 0 || !given.every(isPoint)) return null;
  return given.map(([x, y]) => [x, y]).sort(([a], [b]) => a - b);
}

/** The text of points, as the node reads it. */
export const formatCurve = (points) => JSON.stringify(points.map((point) => point.map(rounded)));

/** One strength per block; the first lies at x = 0, the last at x = 1. No points give zeros. */
export function sampleCurve(points, numBlocks) {
  return Array.from({ length: numBlocks }, (_, block) => curveAt(points, block / Math.max(1, numBlocks - 1)));
}

/** The points with one more, and its place among them. */
export function addPoint(points, x, y) {
  const point = [clamp(x), clamp(y)];
  const after = points.findIndex(([other]) => other > point[0]);
  const index = after < 0 ? points.length : after;
  return [spliced(points, index, 0, point), index];
}

/** The points with one elsewhere; it stays between its neighbours. */
export function movePoint(points, index, x, y) {
  const low = index > 0 ? points[index - 1][0] : 0;
  const high = index < points.length - 1 ? points[index + 1][0] : 1;
  return spliced(points, index, 1, [Math.min(high, Math.max(low, x)), clamp(y)]);
}

/** The points without one; the last stays. */
export const removePoint = (points, index) => (points.length > 1 ? spliced(points, index, 1) : points);

/** Strength of the curve at a depth x. */
export function curveAt(points, x) {
  if (points.length === 0) return 0;
  const after = points.findIndex(([other]) => other > x);
  if (after === 0) return points[0][1];
  if (after < 0) return points.at(-1)[1];
  const [[x0, y0], [x1, y1]] = [points[after - 1], points[after]];
  return y0 + ((y1 - y0) * (x - x0)) / (x1 - x0);
}

/** Where a depth lies across a picture with one column per block, whose middles are the blocks' depths. */
export const depthToPicture = (x, numBlocks) => (numBlocks > 1 ? (0.5 + x * (numBlocks - 1)) / numBlocks : x);

/** The depth at a place across that picture. */
export const pictureToDepth = (place, numBlocks) =>
  clamp(numBlocks > 1 ? (place * numBlocks - 0.5) / (numBlocks - 1) : place);

const clamp = (value) => Math.min(1, Math.max(0, value));
const rounded = (value) => Number(value.toFixed(DIGITS));

function spliced(points, index, count, ...added) {
  const copy = [...points];
  copy.splice(index, count, ...added);
  return copy;
}
