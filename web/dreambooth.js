// The page's part of the pack: a panel on training nodes that follows their runs, photos and class
// images on the nodes that load them, errors on the nodes that raised them, trained files that appear
// in menus without a reload, and older workflows.
import { app } from "/scripts/app.js";
import { addClassPanel, listenToClassImages, restoreClassImages } from "./class_images.js";
import { keepMeaning } from "./older_workflows.js";
import { addPhotoPanel, listenToPhotos, refreshPhotos } from "./photos.js";
import { addPanel, listen, restore } from "./runs.js";
import { keepSize } from "./sizes.js";

const name = "dreambooth";

// The page refuses two extensions with one name, as from a second copy of this pack.
if (!(app.extensions ?? []).some((extension) => extension.name === name)) {
  listen();
  listenToPhotos();
  listenToClassImages();
  app.registerExtension({
    name,
    beforeRegisterNodeDef(nodeType, nodeData) {
      keepMeaning(nodeType, nodeData.name);
      keepSize(nodeType, nodeData.name);
    },
    nodeCreated(node) {
      addPhotoPanel(node); // above the run on subgraphs
      addPanel(node);
      addClassPanel(node);
    },
    async afterConfigureGraph() {
      refreshPhotos();
      await Promise.all([restore(), restoreClassImages()]);
    },
    refreshComboInNodes: refreshPhotos,
  });
}
