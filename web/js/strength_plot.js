/** A picture of one strength per block: to look at, to draw its bars, or to draw a curve through points. */

import { addPoint, depthToPicture, movePoint, pictureToDepth, removePoint } from "./curve.js";

export const PLOT_HEIGHT = 150;
const STEP = 0.01;
const LARGE_STEP = 0.1;
const POINT_RADIUS = 6;
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };

const percent = (share) => `${share * 100}%`;
const clamp = (value) => Math.min(1, Math.max(0, value));
const toStep = (value) => Math.round(clamp(value) / STEP) * STEP;

/**
 * An element, and `show(state)` for it.
 *
 * state: strengths (one per block), points (of the curve), mode (`look`, `bars` or `curve`) and note (a line of text).
 * setStrength(block, strength) and setPoints(points) are called for what the user draws; `show` then follows.
 */
export function createStrengthPlot({ setStrength, setPoints }) {
  const element = document.createElement("div");
  element.style.minHeight = `${PLOT_HEIGHT}px`;
  const note = document.createElement("div");
  note.className = "note";
  const picture = shape("svg", { role: "group", "aria-label": "strength per block" });
  element.append(note, picture);
  const plot = { picture, state: { strengths: [], points: [], mode: "look", note: "" }, setStrength, setPoints };
  listenToPointer(plot);
  picture.addEventListener("keydown", (event) => pressKey(plot, event));
  return {
    element,
    show(state) {
      plot.state = state;
      element.className = `latentloom-plot ${state.mode}`;
      note.textContent = state.note;
      draw(plot);
    },
  };
}

function listenToPointer(plot) {
  const { picture } = plot;
  let held = null; // the point that is dragged; -1 while bars are drawn
  picture.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || plot.state.mode === "look") return;
    held = plot.state.mode === "bars" ? -1 : indexOf(picture, "circle", event.target);
    if (plot.state.mode === "curve" && held < 0) return;
    picture.setPointerCapture(event.pointerId);
    drag(plot, held, event);
  });
  picture.addEventListener("pointermove", (event) => {
    if (held !== null && event.buttons & 1) drag(plot, held, event);
  });
  picture.addEventListener("pointerup", () => {
    held = null;
  });
  // not dblclick, which comes after the release on which ComfyUI looks for changes to undo
  picture.addEventListener("mousedown", (event) => {
    if (event.button === 0 && event.detail === 2 && plot.state.mode === "curve") switchPoint(plot, event);
  });
}

function drag(plot, held, event) {
  const { strengths, points, mode } = plot.state;
  const [x, y] = placeOf(plot.picture, event);
  if (mode === "bars") {
    const block = Math.min(strengths.length - 1, Math.floor(clamp(x) * strengths.length));
    plot.setStrength(block, toStep(y));
  } else if (held >= 0) {
    plot.setPoints(movePoint(points, held, pictureToDepth(x, strengths.length), y));
  }
}

/** Take away the point that was clicked, or add one there. */
function switchPoint(plot, event) {
  const { strengths, points } = plot.state;
  const index = indexOf(plot.picture, "circle", event.target);
  if (index >= 0) return plot.setPoints(removePoint(points, index));
  const [x, y] = placeOf(plot.picture, event);
  return plot.setPoints(addPoint(points, pictureToDepth(x, strengths.length), y)[0]);
}

function pressKey(plot, event) {
  const bar = indexOf(plot.picture, "rect.bar", event.target);
  const point = indexOf(plot.picture, "circle", event.target);
  const [across, up] = ARROWS[event.key] ?? [0, 0];
  const step = event.shiftKey ? LARGE_STEP : STEP;
  if (bar >= 0 && across) focusOn(plot.picture, "rect.bar", bar + across);
  else if (bar >= 0 && up) plot.setStrength(bar, toStep(plot.state.strengths[bar] + up * step));
  else if (point < 0 || !pressKeyOnPoint(plot, point, event.key, [across * step, up * step])) return;
  event.preventDefault();
  event.stopPropagation(); // ComfyUI's shortcuts
}

/** Move the point by an arrow key, add one after it by Enter, take it away by Delete; whether it was such a key. */
function pressKeyOnPoint(plot, index, key, [across, up]) {
  const { points } = plot.state;
  const [x, y] = points[index];
  if (across || up) plot.setPoints(movePoint(points, index, x + across, y + up));
  else if (key === "Enter") {
    const [nextX, nextY] = points[index + 1] ?? [1, y];
    plot.setPoints(addPoint(points, (x + nextX) / 2, (y + nextY) / 2)[0]);
  } else if (key === "Delete" || key === "Backspace") {
    plot.setPoints(removePoint(points, index));
    focusOn(plot.picture, "circle", Math.min(index, plot.state.points.length - 1));
  } else return false;
  return true;
}

function draw({ picture, state: { strengths, points, mode } }) {
  const shown = mode === "curve" ? points : [];
  const places = shown.map(([x, y]) => [depthToPicture(x, strengths.length), 1 - y]);
  const ends = places.length > 0 ? [[0, places[0][1]], ...places, [1, places.at(-1)[1]]] : [];
  const wide = 1 / Math.max(1, strengths.length);
  fill(picture, "rect", "ground", [{ width: "100%", height: "100%" }]);
  fill(
    picture,
    "rect",
    "bar",
    strengths.map((strength, block) => ({
      x: percent((block + 0.06) * wide),
      y: percent(1 - strength),
      width: percent(0.88 * wide),
      height: percent(strength),
      ...slider(mode === "bars", `block ${block}`, strength, block === 0),
    })),
  );
  fill(
    picture,
    "line",
    "",
    ends.slice(1).map(([x, y], index) => ({
      x1: percent(ends[index][0]),
      y1: percent(ends[index][1]),
      x2: percent(x),
      y2: percent(y),
    })),
  );
  fill(
    picture,
    "circle",
    "",
    places.map(([x, y], index) => ({
      cx: percent(x),
      cy: percent(y),
      r: POINT_RADIUS,
      ...slider(true, `point ${index + 1} of ${places.length}, depth ${shown[index][0].toFixed(2)}`, 1 - y, true),
    })),
  );
}

/** What makes a shape known to the keyboard and to readers of the screen. */
function slider(isOne, label, value, isStop) {
  if (!isOne) return { role: "presentation" };
  const text = value.toFixed(2);
  return {
    role: "slider",
    tabindex: isStop ? 0 : -1,
    "aria-label": label,
    "aria-valuemin": 0,
    "aria-valuemax": 1,
    "aria-valuenow": text,
  };
}

/** Make the picture hold these shapes of a kind; those that are there stay, and with them the focus. */
function fill(picture, name, kind, all) {
  const there = [...picture.querySelectorAll(kind ? `${name}.${kind}` : name)];
  there.slice(all.length).forEach((extra) => extra.remove());
  all.forEach((attributes, index) => {
    const target = there[index] ?? picture.appendChild(shape(name, kind ? { class: kind } : {}));
    for (const { name: old } of [...target.attributes]) {
      if (old !== "class" && !(old in attributes)) target.removeAttribute(old);
    }
    Object.entries(attributes).forEach(([key, value]) => target.setAttribute(key, value));
  });
}

function shape(name, attributes) {
  const created = document.createElementNS("http://www.w3.org/2000/svg", name);
  Object.entries(attributes).forEach(([key, value]) => created.setAttribute(key, value));
  return created;
}

/** Where an event lies in the picture: across from 0 to 1, and up. */
function placeOf(picture, event) {
  const { left, top, width, height } = picture.getBoundingClientRect();
  return [(event.clientX - left) / width, 1 - (event.clientY - top) / height];
}

const indexOf = (picture, selector, target) => [...picture.querySelectorAll(selector)].indexOf(target);
const focusOn = (picture, selector, index) => picture.querySelectorAll(selector)[index]?.focus();
