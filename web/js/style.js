/** The look of our widgets, in the colours of ComfyUI's theme. */

const ID = "latentloom-style";

const RULES = `
.dom-widget > .latentloom-grid, .dom-widget > .latentloom-plot, .dom-widget > .latentloom-text { width: calc(100% - 10px); margin: 0 5px; }
.latentloom-grid { display: grid; grid-template-columns: repeat(10, 1fr); grid-auto-rows: 20px; gap: 2px; align-content: start; user-select: none; touch-action: none; }
.latentloom-grid button { padding: 0; border: 1px solid var(--border-color); border-radius: 4px; background: var(--comfy-input-bg); color: var(--descrip-text); font: 10px/1 Arial, sans-serif; cursor: pointer; }
.latentloom-grid button[aria-checked="true"] { background: #4a7fb5; border-color: #6da0d4; color: #fff; }
.latentloom-grid button:hover, .latentloom-plot [tabindex]:hover { filter: brightness(1.25); }
.latentloom-grid button:focus-visible { outline: 2px solid #fff; outline-offset: -1px; }
.latentloom-plot { position: relative; box-sizing: border-box; padding: 18px 9px 9px; border: 1px solid var(--border-color); border-radius: 6px; background: var(--comfy-input-bg); user-select: none; touch-action: none; }
.latentloom-plot svg { display: block; width: 100%; height: 100%; overflow: visible; }
.latentloom-plot rect { fill: #4a7fb5; }
.latentloom-plot rect.ground { fill: #000; opacity: 0.18; }
.latentloom-plot line { stroke: #e8b04a; stroke-width: 2; pointer-events: none; }
.latentloom-plot circle { fill: #e8b04a; stroke: #222; stroke-width: 1.5; cursor: grab; }
.latentloom-plot.bars svg, .latentloom-plot.curve svg { cursor: crosshair; }
.latentloom-plot circle:focus-visible, .latentloom-plot rect:focus-visible { outline: none; stroke: #fff; stroke-width: 2; }
.latentloom-plot .note { position: absolute; inset: 3px 9px auto; overflow: hidden; color: var(--descrip-text); font: 11px/1.2 Arial, sans-serif; white-space: nowrap; text-overflow: ellipsis; pointer-events: none; }
.latentloom-text { box-sizing: border-box; resize: none; padding: 4px 6px; border: 1px solid var(--border-color); border-radius: 6px; background: var(--comfy-input-bg); color: var(--input-text); font: 11px/14px "DejaVu Sans Mono", Menlo, Consolas, monospace; white-space: pre-wrap; overflow-wrap: anywhere; overflow: auto; }
`;

/** Add the style to the page, once. */
export function addStyle(page = document) {
  if (page.getElementById(ID)) return;
  const style = page.createElement("style");
  style.id = ID;
  style.textContent = RULES;
  page.head.append(style);
}
