/** What our nodes have in common: widgets that hide and stay, parts of the page on a node, methods that are added to. */

const MARGIN = 10;

/** Call `after` when the method has run; ComfyUI and other packs keep what they do there. */
export function chain(target, method, after) {
  const before = target[method];
  target[method] = function (...given) {
    const result = before?.apply(this, given);
    after.apply(this, given);
    return result;
  };
}

export const widgetNamed = (node, name) => node.widgets?.find((widget) => widget.name === name);

/** Whether a link, not the widget, gives the value. */
export const isLinked = (node, name) => node.inputs?.some((input) => input.widget?.name === name && input.link != null);

/** Show or hide a widget that stays where it is, as saved workflows list values by position. */
export function setHidden(widget, hidden) {
  widget.hidden = hidden;
  (widget.options ??= {}).hidden = hidden; // which ComfyUI's newer drawing of nodes reads
  if (hidden === (widget.computeSize === noSize)) return;
  // before version 1.28 or so of its page, ComfyUI kept room for what is hidden
  if (hidden) {
    widget.latentloomSize = widget.computeSize;
    widget.computeSize = noSize;
  } else {
    widget.computeSize = widget.latentloomSize;
  }
}

const GAP = 4; // below every widget
const noSize = () => [0, -GAP];

/**
 * Put an element on a node, after all widgets that are saved, as a gap among them would shift the saved values.
 *
 * height() and mostHeight() are asked for as often as ComfyUI lays the node out. The element leaves zooming and panning to the graph.
 */
export function addElement(app, node, name, element, { height, mostHeight = height }) {
  const widget = node.addDOMWidget(name, "latentloom", element, {
    serialize: false, // in what is queued
    hideOnZoom: false,
    margin: MARGIN,
    getValue: () => "",
    setValue: () => {},
    getMinHeight: () => height() + 2 * MARGIN,
    getMaxHeight: () => mostHeight() + 2 * MARGIN,
  });
  widget.serialize = false; // in what is saved
  leaveToGraph(app, element);
  return widget;
}

/** Make the node as high as what it shows; as wide as it is, and no narrower than that. */
export function fitHeight(node, leastWidth = 0) {
  const [width, height] = node.computeSize();
  const size = [Math.max(node.size[0], width, leastWidth), height];
  if (size[0] !== node.size[0] || size[1] !== node.size[1]) node.setSize(size);
  node.setDirtyCanvas?.(true, true);
}

/** Wheel, middle and right button do on the element what they do on the graph below it. */
function leaveToGraph(app, element) {
  const isOurs = (event) => event.button === 0;
  element.addEventListener("pointerdown", (event) => {
    event.stopPropagation(); // a node that is itself made of elements would be dragged
    if (!isOurs(event)) app.canvas.processMouseDown(event);
  });
  element.addEventListener("pointermove", (event) => {
    if (event.buttons & 4) app.canvas.processMouseMove(event);
  });
  element.addEventListener("pointerup", (event) => {
    if (!isOurs(event)) app.canvas.processMouseUp(event);
  });
  element.addEventListener("contextmenu", (event) => event.preventDefault());
  element.addEventListener("wheel", (event) => {
    if (scrolls(element, event)) return;
    event.preventDefault();
    app.canvas.processMouseWheel(event);
  });
}

const scrolls = (element, event) =>
  !event.ctrlKey && element.tagName === "TEXTAREA" && element.scrollHeight > element.clientHeight + 1;
