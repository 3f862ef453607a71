import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { CUSTOM, PRESETS, blocksTitle, countActive, digits, patternBar, presetFlags } from "../../web/js/blocks.js";

const table = JSON.parse(readFileSync(new URL("presets.json", import.meta.url), "utf8"));
const flags = (text) => [...text].map((mark) => mark === "1");

test("every preset means the same blocks as in Python, at every depth", () => {
  table.forEach((row, index) => {
    assert.deepEqual(Object.keys(row), Object.keys(PRESETS));
    for (const [name, expected] of Object.entries(row)) {
      assert.equal(digits(presetFlags(name, index + 1)), expected, `${name} of ${index + 1}`);
    }
  });
  assert.equal(table.length, 48);
});

test("custom and unknown names mean no preset", () => {
  for (const name of [CUSTOM, "toString", "", undefined]) assert.equal(presetFlags(name, 6), null);
});

test("a bar has a full cell per active block", () => {
  assert.equal(patternBar(flags("110010")), "██░░█░");
  assert.equal(countActive(flags("110010")), 3);
});

test("a short bar shows where some of a cell's blocks are active", () => {
  assert.equal(patternBar(flags("11100000"), 4), "█▒░░");
  assert.equal(patternBar(flags("11111"), 2), "██");
  assert.equal(patternBar(flags("101"), 0), "▒");
});

test("a title holds the name, the bar and the count", () => {
  assert.equal(blocksTitle("Block Activation Builder", flags("110000"), 400), "Block Activation Builder  ██░░░░ 2/6");
});

test("a title's bar gives way where the node is narrow, and the count stays", () => {
  const late = presetFlags("late_blocks", 40);
  const lengths = [2000, 400, 320, 100].map((width) => blocksTitle("Blocks", late, width).length);
  assert.deepEqual([...lengths].sort((a, b) => b - a), lengths);
  assert.ok(lengths[0] > lengths[1]);
  for (const width of [2000, 400, 320, 100]) assert.match(blocksTitle("Blocks", late, width), /^Blocks.* 10\/40$/);
});
