// Shows folders of photos on the nodes that load them, and adds photos that are dropped there.
import { app } from "/scripts/app.js";
import { api } from "/scripts/api.js";
import { addPhotos, messageOf } from "./adding_photos.js";
import { chosen, dropped, hasFiles } from "./dropped_files.js";
import { nodesAlong } from "./graph.js";
import { PhotoPanel } from "./photo_panel.js";
import { CAPTION_ROUTE, change, load, PHOTOS_EVENT, REMOVE_ROUTE, RESTORE_ROUTE } from "./photo_set.js";
import { hideText, plainText } from "./progress_text.js";
import { placeOf, promotedWidgets } from "./promoted.js";
import { addPanelWidget, isLinked, makeRoom, valueOf, watch, whileInGraph, widgetOf } from "./widgets.js";

/** @typedef {import("./types").GraphNode} GraphNode */
/** @typedef {import("./dropped_files.js").Dropped} Dropped */
/** @typedef {import("./promoted.js").Place} Place */

const PHOTO_NODE = "DreamBoothLoadInstanceImages";

const IN_INPUT = "input/";
const DEFAULT_NAME = "my-photos";
const FROM_GRAPH = "none, only the images below";
const ELSEWHERE = "This node gets its folder from another node.";
const NOT_HERE = "Photos cannot be added here, but where the folder is chosen.";
const NAMES = { folder: "folder", prompt: "instance_prompt" };
const WIDGET = "dreambooth_photos";
const LABEL = "your photos";
const HEIGHT = 160;

const WARNING = "Warning: ";

/** The folders that are shown. @type {Set<FolderView>} */
const shown = new Set();
/** Drops that a panel has handled. @type {WeakSet<Event>} */
const handled = new WeakSet();
/**
 * Those on the nodes of subgraphs, by the name of the widget with the folder.
 * @type {WeakMap<GraphNode, Map<string, FolderView>>}
 */
const outside = new WeakMap();

/** A folder of photos on a node. */
export class FolderView {
  /** Counts the requests: an answer that is late is not shown. */
  #asked = 0;

  /**
   * @param {GraphNode} node The node that shows it.
   * @param {{what: string, folder: string, prompt: string, canChange: boolean}} options The names of
   *   the widgets with the folder and the prompt, and whether photos can be added and changed.
   * @param {{source?: GraphNode, name?: string}} inside The node inside a subgraph that loads the
   *   folder, and the name of the widget on the subgraph's node that sets it.
   */
  constructor(node, { what, folder, prompt, canChange }, { source = node, name = folder } = {}) {
    this.node = node;
    this.source = source;
    this.names = { folder: name, prompt };
    this.panel = new PhotoPanel(what, this.#actions(), { canChange });
    whileInGraph(node, () => shown.add(this), () => shown.delete(this));
  }

  get folder() {
    return String(valueOf(this.node, this.names.folder) ?? "");
  }

  /** Whether the folder is chosen on this node. */
  get isChosenHere() {
    return Boolean(widgetOf(this.node, this.names.folder)) && !isLinked(this.node, this.names.folder);
  }

  /** The prompt of photos without a caption, "" if it is not known. */
  get #prompt() {
    const { node, name } = this.#promptPlace;
    return isLinked(node, name) ? "" : String(valueOf(node, name) ?? "");
  }

  get #promptPlace() {
    const inner = { node: this.source, name: this.names.prompt };
    return this.node === this.source ? inner : placeOf(this.node, inner);
  }

  /** Refresh whenever the folder or the prompt is changed. */
  follow() {
    const { node, name } = this.#promptPlace;
    watch(this.node, [this.names.folder], () => this.refresh());
    watch(node, [name], () => this.refresh());
  }

  /** Show the folder as it is now. */
  async refresh() {
    this.follow();
    const asked = ++this.#asked;
    const folder = this.folder;
    const prompt = this.#prompt;
    if (isLinked(this.node, this.names.folder)) return this.panel.showNothing(ELSEWHERE, "", false);
    if (!folder || folder === FROM_GRAPH) return this.panel.showNothing("No folder is chosen.");
    try {
      const photos = await load(folder, prompt);
      if (asked === this.#asked) this.panel.show(photos, prompt);
    } catch (error) {
      // Without a connection, what is shown stays.
      if (error instanceof TypeError || asked !== this.#asked) return;
      this.panel.showNothing("No photos yet", messageOf(error));
    }
  }

  /** Show the folder of a new node, unless its workflow is being loaded, which does it too. */
  refreshOnce() {
    setTimeout(() => this.#asked || this.refresh());
  }

  /** Ask for a name, and add photos to the folder of that name. @param {Dropped} found */
  async add(found) {
    if (!found.files.length && !found.skipped.length) return;
    if (!this.isChosenHere) return this.panel.tell([NOT_HERE]);
    const wish = await this.#askForName(found);
    if (wish === null) return;
    /** @type {string[]} */
    let news;
    try {
      const { folder, notes } = await addPhotos(wish, found, (text) => this.panel.report(text));
      news = notes;
      if (folder) await this.#choose(folder);
    } catch (error) {
      news = [messageOf(error)];
    }
    this.panel.report("");
    await this.refresh();
    this.panel.tell(news); // last, because another folder begins without news
  }

  /** @param {Dropped} found @returns {Promise<string | null>} */
  async #askForName({ name }) {
    const folder = this.folder;
    const own = folder.startsWith(IN_INPUT) ? folder.slice(IN_INPUT.length) : "";
    const suggested = name || own || DEFAULT_NAME;
    const wish = await app.extensionManager.dialog.prompt({
      title: "Add photos",
      message: "Name of the folder in ComfyUI's input folder. A folder that exists gets these too.",
      defaultValue: suggested,
    });
    if (wish === null || wish === undefined) return null;
    return (wish.trim() || suggested).replace(/^input\//, "");
  }

  /** Choose a folder that the menus may not know yet. @param {string} folder */
  async #choose(folder) {
    const widget = widgetOf(this.node, this.names.folder);
    if (!widget || widget.value === folder) return;
    await app.extensionManager.command.execute("Comfy.RefreshNodeDefinitions");
    widget.value = folder;
    widget.callback?.(folder);
    this.node.setDirtyCanvas(true, true);
  }

  #actions() {
    /** @param {string} route @param {object} content @param {string} done */
    const act = async (route, content, done) => {
      try {
        await change(route, { folder: this.folder, ...content });
        this.panel.tell([]);
        this.panel.announce(done);
      } catch (error) {
        this.panel.tell([messageOf(error)]);
      }
      await this.refresh();
    };
    return {
      /** @param {FileList} files */
      add: (files) => void this.add(chosen(files)),
      /** @param {string} name @param {string} text */
      caption: (name, text) => act(CAPTION_ROUTE, { name, text }, `Caption of ${name} saved.`),
      /** @param {string} name */
      remove: (name) => act(REMOVE_ROUTE, { name }, `Removed ${name}.`),
      /** @param {string} name */
      restore: (name) => act(RESTORE_ROUTE, { name }, `Brought back ${name}.`),
    };
  }
}

/** Add panels to a node that loads photos, and to a subgraph with one. @param {GraphNode} node */
export function addPhotoPanel(node) {
  if (node.subgraph) return addOutside(node, node.subgraph);
  if (node.comfyClass !== PHOTO_NODE) return;
  hideText(node);
  addView(node, WIDGET, new FolderView(node, { what: "photo", ...NAMES, canChange: true }));
}

/** @param {GraphNode} node @param {import("./types").Graph} subgraph */
function addOutside(node, subgraph) {
  outside.set(node, new Map());
  // The page adds the subgraph's own widgets later, which come first, and sometimes makes them anew.
  const later = () => setTimeout(() => addMissing(node));
  later();
  whileInGraph(node, later, () => {});
  subgraph.events?.addEventListener("widget-promoted", later);
}

/** @param {GraphNode} node A subgraph's node. */
function addMissing(node) {
  const views = outside.get(node) ?? new Map();
  for (const { name, inner } of promotedWidgets(node)) {
    const isFolder = inner.node.comfyClass === PHOTO_NODE && inner.name === NAMES.folder;
    views.get(name)?.follow();
    if (!isFolder || views.has(name)) continue;
    const options = { what: "photo", ...NAMES, canChange: true };
    const view = new FolderView(node, options, { source: inner.node, name });
    addView(node, views.size ? `${WIDGET}_${views.size + 1}` : WIDGET, view);
    views.set(name, view);
    makeRoom(node);
  }
}

/** @param {GraphNode} node @param {string} name @param {FolderView} view */
function addView(node, name, view) {
  addPanelWidget(node, name, view.panel.element, HEIGHT, LABEL);
  acceptDrops(node, view);
  view.refreshOnce();
}

/** @param {GraphNode} node @param {FolderView} view */
function acceptDrops(node, view) {
  /** @param {DragEvent} event */
  const take = (event) => {
    if (handled.has(event)) return true;
    if (!event.dataTransfer || !hasFiles(event.dataTransfer)) return false;
    handled.add(event);
    // The page also hears of this drop, and would make a node of each photo.
    event.preventDefault();
    dropped(event.dataTransfer).then((found) => view.add(found));
    return true;
  };
  // The first panel also gets what is dropped elsewhere on the node.
  if (!node.onDragDrop) {
    node.onDragOver = (event) => hasFiles(event.dataTransfer);
    node.onDragDrop = take;
  }
  const { element } = view.panel;
  element.addEventListener("dragover", (event) => {
    if (!hasFiles(event.dataTransfer)) return;
    event.preventDefault();
    element.dataset.over = "";
  });
  for (const end of ["dragleave", "drop"])
    element.addEventListener(end, () => delete element.dataset.over);
  element.addEventListener("drop", take);
}

/** After the workflow was loaded, or files may have changed. */
export function refreshPhotos() {
  for (const view of shown) view.refresh();
}

/** Call this before the page is set up: it warns of messages that nobody listens to. */
export function listenToPhotos() {
  api.addEventListener(PHOTOS_EVENT, ({ detail }) => {
    for (const view of shown) if (view.folder === detail.folder) view.refresh();
  });
  api.addEventListener("execution_start", () => {
    for (const view of shown) view.panel.warn([]);
  });
  // The warnings of a run, some of which only a run can know.
  api.addEventListener("progress_text", ({ detail }) => {
    const lines = plainText(detail.text).split("\n").filter((line) => line.startsWith(WARNING));
    if (!lines.length) return;
    const nodes = nodesAlong(detail.nodeId);
    const path = [...nodes.values()];
    for (const view of shown)
      if (path.includes(view.node) && view.source === nodes.get(detail.nodeId))
        view.panel.warn(lines.map((line) => line.slice(WARNING.length)));
  });
  // Files may have been changed in another window.
  window.addEventListener("focus", refreshPhotos);
}
