// Follows runs, and shows them on their nodes.
import { app } from "/scripts/app.js";
import { api } from "/scripts/api.js";
import { nodeAt, rootGraph, TRAINING_NODES } from "./graph.js";
import { addNotice, removeNotices } from "./notice.js";
import { Panel } from "./panel.js";
import { hideText } from "./progress_text.js";
import { LIVE_EVENT, LIVE_ROUTE, UI_KEY, Views } from "./view.js";

/** @typedef {import("./view.js").View} View */
/** @typedef {import("./types").GraphNode} GraphNode */

const MIN_HEIGHT = { empty: 56, run: 280 };

const views = new Views();
/** @type {WeakMap<GraphNode, Panel>} */
const panels = new WeakMap();

/** @param {GraphNode} node */
export function addPanel(node) {
  if (!TRAINING_NODES.includes(node.comfyClass ?? "")) return;
  const panel = new Panel();
  panels.set(node, panel);
  const widget = node.addDOMWidget("dreambooth_run", "dreambooth_run", panel.element, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => (panel.view ? MIN_HEIGHT.run : MIN_HEIGHT.empty),
  });
  widget.serialize = false;
  hideText(node);
}

/** Show a view on its node, if its workflow is open. @param {View | null} view */
function show(view) {
  if (!view || view.workflow !== rootGraph()?.id) return;
  const node = nodeAt(view.node);
  const panel = node && panels.get(node);
  if (!node || !panel) return;
  const isFirst = !panel.view;
  panel.element.dataset.node = view.node;
  panel.show(view);
  if (isFirst) grow(node);
}

/** Make room for the panel. @param {GraphNode} node */
function grow(node) {
  const [width, height] = node.computeSize();
  if (node.size[1] < height) node.setSize([Math.max(node.size[0], width), height]);
  node.setDirtyCanvas(true, true);
}

/** Show all runs that the server knows, after the page or a workflow was loaded. */
export async function restore() {
  const answer = await api.fetchApi(LIVE_ROUTE);
  if (!answer.ok) return;
  for (const view of (await answer.json()).views) show(views.add(view));
}

/** Call this before the page is set up: it warns of messages that nobody listens to. */
export function listen() {
  api.addEventListener(LIVE_EVENT, ({ detail }) => {
    const view = views.change(detail);
    if (!view) restore();
    else if (views.isLatest(view)) show(view);
  });

  api.addEventListener("executed", ({ detail }) => {
    const [view] = detail.output?.[UI_KEY] ?? [];
    if (view) show(views.add(view));
  });

  api.addEventListener("execution_start", removeNotices);

  api.addEventListener("execution_error", ({ detail }) => {
    const node = nodeAt(String(detail.node_id));
    if (node && !panels.has(node)) addNotice(node, detail.exception_message);
  });

  api.addEventListener("dreambooth.checkpoint", () => {
    app.extensionManager.command.execute("Comfy.RefreshNodeDefinitions");
  });
}
