import assert from "node:assert/strict";
import { test } from "node:test";

import {
  FLAT,
  addPoint,
  curveAt,
  depthToPicture,
  formatCurve,
  movePoint,
  parseCurve,
  pictureToDepth,
  removePoint,
  sampleCurve,
} from "../../web/js/curve.js";

const points = [
  [0, 0],
  [0.5, 1],
  [1, 0.5],
];

test("a text of points is read in order of depth", () => {
  assert.deepEqual(parseCurve("[[1, 0.5], [0, 0.25]]"), [
    [0, 0.25],
    [1, 0.5],
  ]);
});

test("what is no curve is read as none", () => {
  for (const text of ["", "no", "[]", "{}", "[[0]]", "[[0, 2]]", "[[0, true]]", "[[-1, 0]]", "[0, 1]", undefined]) {
    assert.equal(parseCurve(text), null, String(text));
  }
});

test("what is written is read again", () => {
  assert.deepEqual(parseCurve(formatCurve(points)), points);
  assert.equal(formatCurve([[1 / 3, 2 / 3]]), "[[0.333,0.667]]");
});

test("a curve is straight between its points and level beyond them", () => {
  assert.deepEqual(sampleCurve(points, 5), [0, 0.5, 1, 0.75, 0.5]);
  assert.deepEqual(sampleCurve([[0.5, 0.3]], 3), [0.3, 0.3, 0.3]);
  assert.equal(curveAt([[0.4, 0.1], [0.6, 0.9]], 0.2), 0.1);
  assert.deepEqual(sampleCurve([], 2), [0, 0]);
  assert.deepEqual(sampleCurve(FLAT, 1), [0.5]);
});

test("a point is added where it belongs, within the picture", () => {
  assert.deepEqual(addPoint(points, 0.25, 0.1), [[points[0], [0.25, 0.1], points[1], points[2]], 1]);
  assert.deepEqual(addPoint(points, 2, -1), [[...points, [1, 0]], 3]);
});

test("a point that is moved stays between its neighbours", () => {
  assert.deepEqual(movePoint(points, 1, 0.7, 0.2)[1], [0.7, 0.2]);
  assert.deepEqual(movePoint(points, 1, 3, 3)[1], [1, 1]);
  assert.deepEqual(movePoint(points, 2, 0.2, 0.2)[2], [0.5, 0.2]);
  assert.deepEqual(movePoint(points, 0, -1, 0.2)[0], [0, 0.2]);
});

test("the last point cannot be taken away", () => {
  assert.deepEqual(removePoint(points, 1), [points[0], points[2]]);
  assert.deepEqual(removePoint([[0, 1]], 0), [[0, 1]]);
});

test("moving, adding and removing leave the given points alone", () => {
  const before = structuredClone(points);
  addPoint(points, 0.1, 0.1);
  movePoint(points, 0, 0.1, 0.1);
  removePoint(points, 0);
  assert.deepEqual(points, before);
});

test("a depth is drawn in the middle of its block's column, and read back from there", () => {
  assert.equal(depthToPicture(0, 10), 0.05);
  assert.equal(depthToPicture(1, 10), 0.95);
  for (const n of [1, 2, 40]) assert.ok(Math.abs(pictureToDepth(depthToPicture(0.3, n), n) - 0.3) < 1e-12);
  assert.equal(pictureToDepth(0, 10), 0);
  assert.equal(pictureToDepth(1, 10), 1);
});
