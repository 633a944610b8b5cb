// Follows runs, and shows them on their nodes.
import { app } from "/scripts/app.js";
import { api } from "/scripts/api.js";
import { nodesAlong, rootGraph, trains } from "./graph.js";
import { addNotices, removeNotices } from "./notice.js";
import { Panel } from "./panel.js";
import { hideText } from "./progress_text.js";
import { LIVE_EVENT, LIVE_ROUTE, UI_KEY, Views } from "./view.js";
import { makeRoom } from "./widgets.js";

/** @typedef {import("./view.js").View} View */
/** @typedef {import("./types").GraphNode} GraphNode */

/** The name by which apps show the panel. */
const PANEL_WIDGET = "dreambooth_run";
/** What App mode writes above it. */
const LABEL = "training run";
const MIN_HEIGHT = { empty: 56, run: 280 };

/** The setting that says whether the page draws nodes as "Nodes 2.0". */
const NODES_2 = "Comfy.VueNodes.Enabled";

const views = new Views();
/**
 * The id of the workflow that was queued last.
 * @type {string | undefined}
 */
let queued;
/** @type {WeakMap<GraphNode, Panel>} */
const panels = new WeakMap();

/**
 * Add a panel to a node that trains, and to a subgraph in which one does.
 * @param {GraphNode} node
 */
export function addPanel(node) {
  if (node.subgraph) setTimeout(() => addToSubgraph(node));
  else if (trains(node)) panelOf(node);
}

/** Called when the page has added the subgraph's own widgets, which come first. @param {GraphNode} node */
function addToSubgraph(node) {
  if (!trains(node)) return;
  panelOf(node);
  makeRoom(node);
}

/** The panel of a node, which is added if it has none. @param {GraphNode} node */
function panelOf(node) {
  return panels.get(node) ?? attachPanel(node);
}

/** @param {GraphNode} node */
function attachPanel(node) {
  const panel = new Panel();
  panels.set(node, panel);
  const widget = node.addDOMWidget(PANEL_WIDGET, PANEL_WIDGET, panel.element, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => (panel.view ? MIN_HEIGHT.run : MIN_HEIGHT.empty),
  });
  widget.serialize = false;
  widget.label = LABEL;
  hideText(node);
  return panel;
}

/**
 * Show a view on its node and on the subgraphs around it, if its workflow is open.
 * @param {View | null} view
 */
function show(view) {
  if (!view || view.workflow !== rootGraph()?.id) return;
  const nodes = nodesAlong(view.node);
  if (!nodes.has(view.node)) return;
  for (const [path, node] of nodes) if (isLatest(view, path)) showOn(node, path, view);
}

/**
 * Whether no run began later on the node at a path or inside it.
 * @param {View} view @param {string} path
 */
function isLatest(view, path) {
  const others = views.all().filter(({ workflow, node }) =>
    workflow === view.workflow && `${node}:`.startsWith(`${path}:`)); // prettier-ignore
  return others.at(-1) === view;
}

/** @param {GraphNode} node @param {string} path @param {View} view */
function showOn(node, path, view) {
  const panel = panelOf(node);
  const isFirst = !panel.view;
  panel.element.dataset.node = path;
  panel.show(view);
  if (isFirst) makeRoom(node);
}

/**
 * ComfyUI sends the result of an earlier workflow again if a new one asks for the same. It then belongs
 * to the workflow that was queued last.
 * @param {View} view @param {string} prompt
 */
function ofThisWorkflow(view, prompt) {
  const workflow = rootGraph()?.id;
  return view.prompt !== prompt && workflow === queued ? { ...view, prompt, workflow } : view;
}

/**
 * Show the pictures of a node on the subgraphs around it that train. Nodes 2.0 does so by itself.
 * @param {import("./types").Events["executed"]} executed
 */
function showResults({ node: path, output }) {
  const images = output?.images;
  if (!images?.length || app.extensionManager.setting.get(NODES_2)) return;
  const nodes = nodesAlong(path);
  const title = nodes.get(path)?.title;
  nodes.delete(path);
  for (const node of nodes.values()) if (title && trains(node)) panelOf(node).results.show(path, title, images);
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
    else show(view);
  });

  api.addEventListener("promptQueueing", () => {
    queued = rootGraph()?.id;
  });

  api.addEventListener("executed", ({ detail }) => {
    const [view] = detail.output?.[UI_KEY] ?? [];
    if (view) show(views.addLast(ofThisWorkflow(view, detail.prompt_id)));
    showResults(detail);
  });

  api.addEventListener("execution_start", removeNotices);

  api.addEventListener("execution_error", ({ detail }) => {
    const path = [...nodesAlong(String(detail.node_id)).values()];
    const node = path.at(-1);
    if (node && !panels.has(node)) addNotices(path, detail.exception_message);
  });

  api.addEventListener("dreambooth.checkpoint", () => {
    app.extensionManager.command.execute("Comfy.RefreshNodeDefinitions");
  });
}
