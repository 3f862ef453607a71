import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { readsWidget, shapeStrengths } from "../../web/js/strengths.js";

const table = JSON.parse(readFileSync(new URL("curves.json", import.meta.url), "utf8"));

test("every shape has the same strengths as in Python", () => {
  for (const { shape, numBlocks, settings, strengths } of table) {
    const drawn = shapeStrengths(shape, numBlocks, settings);
    assert.equal(drawn.length, strengths.length);
    drawn.forEach((strength, block) => {
      assert.ok(Math.abs(strength - strengths[block]) < 1e-9, `${shape} of ${numBlocks}, block ${block}`);
    });
  }
  assert.ok(table.length > 40);
});

test("random strengths are left to Python", () => {
  assert.equal(shapeStrengths("random", 6, {}), null);
  assert.equal(shapeStrengths("constructor", 6, {}), null);
});

test("a widget is read by the shapes that it is for", () => {
  const read = (widget) => ["uniform", "gaussian_peak", "stepped", "random", "custom", "curve"].filter((shape) => readsWidget(shape, widget));
  assert.deepEqual(read("base_strength"), ["uniform", "gaussian_peak", "stepped", "random"]);
  assert.deepEqual(read("spread"), ["gaussian_peak"]);
  assert.deepEqual(read("step_size"), ["stepped"]);
  assert.deepEqual(read("random_seed"), ["random"]);
  assert.equal(read("num_blocks").length, 6);
});
