// Shows why a node of this pack failed on the node itself: the page hides it behind a button.
import { element } from "./elements.js";
import { addStyle } from "./style.js";

/** @typedef {import("./types").GraphNode} GraphNode */

const OURS = "DreamBooth";
const NAME = "dreambooth_notice";

/** @type {Set<GraphNode>} */
const marked = new Set();

/**
 * @param {GraphNode[]} path The node that failed, after the subgraphs around it.
 * @param {string} message
 */
export function addNotices(path, message) {
  if (path.at(-1)?.comfyClass?.startsWith(OURS)) for (const node of path) addNotice(node, message);
}

/** @param {GraphNode} node @param {string} message */
function addNotice(node, message) {
  removeNotice(node);
  addStyle();
  const text = element("p", { class: "message" }, message.trim());
  const notice = element("section", { class: "dreambooth-notice", role: "alert" }, text);
  const widget = node.addDOMWidget(NAME, NAME, notice, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => 72,
  });
  widget.serialize = false;
  marked.add(node);
}

/** Before the next run. */
export function removeNotices() {
  for (const node of marked) removeNotice(node);
  marked.clear();
}

/** @param {GraphNode} node */
function removeNotice(node) {
  const widget = node.widgets?.find((each) => each.name === NAME);
  if (widget) node.removeWidget(widget);
}
