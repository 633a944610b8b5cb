// Makes a checkpoint that was just trained appear in the loader nodes' menus.
import { app } from "/scripts/app.js";
import { api } from "/scripts/api.js";

const name = "dreambooth";

// The page refuses two extensions with one name, as from a second copy of this pack.
if (!(app.extensions ?? []).some((extension) => extension.name === name)) {
  app.registerExtension({
    name,
    setup() {
      api.addEventListener("dreambooth.checkpoint", () => {
        app.extensionManager.command.execute("Comfy.RefreshNodeDefinitions");
      });
    },
  });
}
