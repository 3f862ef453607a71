/** Titles that tell more than a node's name; the workflow keeps the name alone. */

import { isLinked, widgetNamed } from "./widgets.js";

const SWITCH = "enable_patching";

/** Show what `tell(node, title)` makes of the title; a collapsed node shows its name. */
export function tellInTitle(nodeType, tell) {
  const name = nodeType.prototype.getTitle;
  nodeType.prototype.getTitle = function () {
    const title = name.call(this);
    return this.flags?.collapsed ? title : tell(this, title);
  };
}

/** The title of a node that can be switched off, with `off` while it is. */
export function switchTitle(node, title) {
  const isOff = widgetNamed(node, SWITCH)?.value === false && !isLinked(node, SWITCH);
  return isOff ? `${title} (off)` : title;
}

export const hasSwitch = (nodeData) => Object.hasOwn({ ...nodeData.input?.required, ...nodeData.input?.optional }, SWITCH);
