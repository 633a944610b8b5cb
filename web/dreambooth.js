// Makes a checkpoint that was just trained appear in the loader nodes' menus, and keeps the meaning
// of saved workflows.
import { app } from "/scripts/app.js";
import { api } from "/scripts/api.js";

const name = "dreambooth";

const nodesWithVram = ["DreamBoothTrain", "DreamBoothTextualInversionTrain"];

// A workflow that was saved before the widget "vram" existed has no value for it, and must not get
// the default of new nodes, which may train with other settings.
function switchOffIfOlder(node, saved) {
  const stored = (node.widgets ?? []).filter((widget) => widget.serialize !== false);
  const index = stored.findIndex((widget) => widget.name === "vram");
  const values = saved?.widgets_values;
  if (index >= 0 && Array.isArray(values) && values.length <= index) {
    stored[index].value = "off";
  }
}

// The page refuses two extensions with one name, as from a second copy of this pack.
if (!(app.extensions ?? []).some((extension) => extension.name === name)) {
  app.registerExtension({
    name,
    beforeRegisterNodeDef(nodeType, nodeData) {
      if (nodesWithVram.includes(nodeData.name)) {
        const onConfigure = nodeType.prototype.onConfigure;
        nodeType.prototype.onConfigure = function (saved) {
          onConfigure?.apply(this, arguments);
          switchOffIfOlder(this, saved);
        };
      }
    },
    setup() {
      api.addEventListener("dreambooth.checkpoint", () => {
        app.extensionManager.command.execute("Comfy.RefreshNodeDefinitions");
      });
    },
  });
}
