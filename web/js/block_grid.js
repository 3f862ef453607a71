/** A grid of one cell per block, ten to a row: click or drag to switch, arrow keys and space likewise. */

export const COLUMNS = 10;
const ROW = 22;
const STEPS = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -COLUMNS, ArrowDown: COLUMNS };

/** Height in graph units of a grid of so many blocks. */
export const gridHeight = (numBlocks) => Math.ceil(numBlocks / COLUMNS) * ROW - 2;

/** An element, and `show(flags)` for it; `setBlock(block, active)` is called for what the user switches. */
export function createBlockGrid(setBlock) {
  const element = document.createElement("div");
  element.className = "latentloom-grid";
  element.setAttribute("role", "group");
  element.setAttribute("aria-label", "active blocks");
  const blockOf = (target) => [...element.children].indexOf(target.closest?.("button"));
  const isActive = (block) => element.children[block].getAttribute("aria-checked") === "true";
  let painting = null; // what a drag switches the blocks to

  element.addEventListener("pointerdown", (event) => {
    const block = blockOf(event.target);
    if (event.button !== 0 || block < 0) return;
    element.children[block].releasePointerCapture?.(event.pointerId); // a finger would hold on to the first cell
    painting = !isActive(block);
    setBlock(block, painting);
  });
  element.addEventListener("pointerover", (event) => {
    const block = blockOf(event.target);
    if (painting === null || block < 0) return;
    if (!(event.buttons & 1)) painting = null;
    else if (isActive(block) !== painting) setBlock(block, painting);
  });
  element.addEventListener("keydown", (event) => {
    const block = blockOf(event.target);
    if (block < 0) return;
    if (event.key === " " || event.key === "Enter") setBlock(block, !isActive(block));
    else if (event.key in STEPS) element.children[block + STEPS[event.key]]?.focus();
    else return;
    event.preventDefault(); // a button's own click, and the page's scrolling
    event.stopPropagation(); // ComfyUI's shortcuts
  });
  return { element, show: (flags) => showFlags(element, flags) };
}

function showFlags(element, flags) {
  while (element.children.length > flags.length) element.lastChild.remove();
  while (element.children.length < flags.length) element.append(createCell(element.children.length));
  flags.forEach((flag, block) => element.children[block].setAttribute("aria-checked", String(flag)));
  element.style.minHeight = `${gridHeight(flags.length)}px`;
}

function createCell(block) {
  const cell = document.createElement("button");
  cell.type = "button";
  cell.textContent = String(block);
  cell.setAttribute("role", "checkbox");
  cell.setAttribute("aria-label", `block ${block}`);
  cell.tabIndex = block === 0 ? 0 : -1; // one stop of the tab key; the arrow keys go on from there
  return cell;
}
