// Keeps the meaning of workflows that were saved before a widget existed.
import { TRAINING_NODES } from "./graph.js";

/** @typedef {import("./types").GraphNode} GraphNode */
/** @typedef {import("./types").SavedNode} SavedNode */

/**
 * A workflow that was saved before the widget "vram" existed has no value for it, and must not get
 * the default of new nodes, which may train with other settings.
 * @param {{prototype: GraphNode}} nodeType
 * @param {string} id
 */
export function keepMeaning(nodeType, id) {
  if (!TRAINING_NODES.includes(id)) return;
  const onConfigure = nodeType.prototype.onConfigure;
  nodeType.prototype.onConfigure = function (/** @type {SavedNode | undefined} */ saved) {
    onConfigure?.call(this, saved);
    switchOffIfOlder(this, saved);
  };
}

/** @param {GraphNode} node @param {SavedNode | undefined} saved */
function switchOffIfOlder(node, saved) {
  const stored = (node.widgets ?? []).filter((widget) => widget.serialize !== false);
  const index = stored.findIndex((widget) => widget.name === "vram");
  const values = saved?.widgets_values;
  if (index >= 0 && Array.isArray(values) && values.length <= index) {
    stored[index].value = "off";
  }
}
