// Makes a checkpoint that was just trained appear in the loader nodes' menus.
import { app } from "/scripts/app.js";
import { api } from "/scripts/api.js";

app.registerExtension({
  name: "dreambooth",
  setup() {
    api.addEventListener("dreambooth.checkpoint", () => {
      app.extensionManager.command.execute("Comfy.RefreshNodeDefinitions");
    });
  },
});
