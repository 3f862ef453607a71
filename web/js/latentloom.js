/** The pack's part of ComfyUI's page. The other modules here do nothing by themselves. */

import { app } from "../../../scripts/app.js";
import { ACTIVATION_BUILDER, dressActivationBuilder } from "./activation_builder.js";
import { curveInput, dressStrengthBuilder } from "./strength_builder.js";
import { addStyle } from "./style.js";
import { showText } from "./text_display.js";
import { hasSwitch, switchTitle, tellInTitle } from "./titles.js";

const CATEGORY = /^LatentLoom(\/|$)/;

app.registerExtension({
  name: "LatentLoom",
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!CATEGORY.test(nodeData.category ?? "")) return;
    addStyle();
    if (hasSwitch(nodeData)) tellInTitle(nodeType, switchTitle);
    if (curveInput(nodeData)) dressStrengthBuilder(app, nodeType, curveInput(nodeData));
    // its grid and its title show all that its text would
    if (nodeData.name === ACTIVATION_BUILDER) dressActivationBuilder(app, nodeType);
    else showText(app, nodeType);
  },
});
