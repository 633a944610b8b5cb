// The panel on Generate Class Priors: the class images as they are drawn, or a folder of them.
import { api } from "/scripts/api.js";
import { element, show } from "./elements.js";
import { nodeAt, rootGraph } from "./graph.js";
import { FolderView } from "./photos.js";
import { hideText } from "./progress_text.js";
import { addStyle } from "./style.js";
import { addPanelWidget, watch, whileInGraph, widgetOf } from "./widgets.js";

/** @typedef {import("./types").GraphNode} GraphNode */

/**
 * nodes/class_view.py declares the same keys.
 * @typedef {"preparing" | "drawing" | "finished" | "stopped" | "failed"} ClassState
 *
 * @typedef {object} ClassView
 * @property {string} node
 * @property {string} prompt
 * @property {string | null} workflow
 * @property {number} version
 * @property {ClassState} state
 * @property {number} done
 * @property {number} total
 * @property {number} share
 * @property {string} folder
 * @property {string[]} files
 * @property {string[]} lines
 * @property {string} message
 */

export const CLASS_EVENT = "dreambooth.class_images";
export const CLASS_ROUTE = "/dreambooth/class_images";
export const CLASS_UI_KEY = "dreambooth_class_images";

const CLASS_NODE = "DreamBoothGenerateClassPriors";
const MENU = "images";
const FOLDER = "images.folder";
const EMPTY = "The class images are shown here.";
const HEIGHT = 120;
/** ComfyUI makes such images smaller. */
const FORMAT = "webp;70";

/** @type {WeakMap<GraphNode, ClassPanel>} */
const panels = new WeakMap();
/** Called after a workflow was loaded, which sets the menus. @type {Set<() => void>} */
const choices = new Set();

class ClassPanel {
  /** @type {ClassView | null} */
  view = null;

  constructor() {
    addStyle();
    this.status = element("p", { class: "status" }, EMPTY);
    this.bar = element("progress", { max: "1", "aria-label": "Class images" });
    this.message = element("p", { class: "message" });
    this.pictures = element("div", { class: "thumbnails" });
    this.lines = element("ul", { class: "notes" });
    this.announcement = element("p", { class: "announcement", role: "status" });
    const content = element(
      "div", { class: "content", "data-capture-wheel": "true", tabindex: "-1" },
      this.status, this.bar, this.message, this.pictures, this.lines, this.announcement,
    ); // prettier-ignore
    this.element = element(
      "section", { class: "dreambooth-photos dreambooth-class", "aria-label": "Class images" }, content,
    ); // prettier-ignore
    this.bar.hidden = this.message.hidden = true;
  }

  /** @param {ClassView} view */
  show(view) {
    const before = this.view;
    if (before?.prompt === view.prompt && before.version > view.version) return;
    this.view = view;
    const isRunning = view.state === "drawing" || view.state === "preparing";
    show(this.status, statusOf(view));
    this.bar.hidden = !isRunning;
    this.bar.value = view.share;
    show(this.message, view.message);
    if (String(before?.files) !== String(view.files) || before?.folder !== view.folder)
      this.pictures.replaceChildren(...[...view.files].reverse().map((file) => picture(view, file)));
    this.lines.replaceChildren(...view.lines.map((line) => element("li", {}, line)));
    if (before?.state !== view.state) this.announcement.textContent = statusOf(view);
    this.element.dataset.node = view.node;
    this.element.dataset.state = view.state;
  }
}

/** @param {ClassView} view */
function statusOf({ state, done, total }) {
  if (state === "preparing") return "Preparing";
  if (state === "finished") return `${total} class images`;
  const count = `Class images ${done} of ${total}`;
  if (state === "drawing") return count;
  return total ? `${count}, ${state}` : state[0].toUpperCase() + state.slice(1);
}

/** @param {ClassView} view @param {string} file */
function picture({ folder }, file) {
  const query = new URLSearchParams({
    filename: file,
    subfolder: folder,
    type: "output",
    preview: FORMAT,
  });
  const number = Number.parseInt(file, 10);
  return element("img", { src: api.apiURL(`/view?${query}`), alt: `Class image of seed ${number}` });
}

/** @param {GraphNode} node */
export function addClassPanel(node) {
  if (node.comfyClass !== CLASS_NODE) return;
  const panel = new ClassPanel();
  panels.set(node, panel);
  const names = { folder: FOLDER, prompt: "class_prompt" };
  const own = new FolderView(node, { what: "class image", ...names, canChange: false });
  const both = element("div", { class: "dreambooth-either" }, panel.element, own.panel.element);
  addPanelWidget(node, "dreambooth_class_images", both, HEIGHT, "class images");
  hideText(node);
  /** Show the folder, if the images come from one. */
  const choose = () => {
    watch(node, [MENU], () => setTimeout(choose));
    const isFolder = Boolean(widgetOf(node, FOLDER));
    panel.element.hidden = isFolder;
    own.panel.element.hidden = !isFolder;
    if (isFolder) own.refresh();
  };
  whileInGraph(node, () => choices.add(choose), () => choices.delete(choose));
  choose();
}

/** @param {ClassView} view */
function showView(view) {
  if (view.workflow !== rootGraph()?.id) return;
  const node = nodeAt(view.node);
  if (node) panels.get(node)?.show(view);
}

/** Show all that the server knows, after the page or a workflow was loaded. */
export async function restoreClassImages() {
  for (const choose of choices) choose();
  const answer = await api.fetchApi(CLASS_ROUTE);
  if (answer.ok) (await answer.json()).views.forEach(showView);
}

/** Call this before the page is set up: it warns of messages that nobody listens to. */
export function listenToClassImages() {
  api.addEventListener(CLASS_EVENT, ({ detail }) => showView(detail));
  api.addEventListener("executed", ({ detail }) => {
    const [view] = detail.output?.[CLASS_UI_KEY] ?? [];
    if (view) showView(view);
  });
}
