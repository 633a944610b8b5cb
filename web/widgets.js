// Widgets of nodes: finding, following and adding them.

/** @typedef {import("./types").GraphNode} GraphNode */
/** @typedef {import("./types").Widget} Widget */

/** @type {WeakSet<Widget>} */
const watched = new WeakSet();

/** @param {GraphNode} node @param {string} name */
export function widgetOf(node, name) {
  return node.widgets?.find((widget) => widget.name === name);
}

/** @param {GraphNode} node @param {string} name */
export function valueOf(node, name) {
  return widgetOf(node, name)?.value;
}

/** Whether another node gives the value. @param {GraphNode} node @param {string} name */
export function isLinked(node, name) {
  return (node.inputs ?? []).some((input) => input.name === name && (input.link ?? null) !== null);
}

/**
 * Call a function whenever one of these widgets is changed. Widgets below a menu are made anew when
 * it changes, so this is repeated.
 * @param {GraphNode} node @param {string[]} names @param {() => void} call
 */
export function watch(node, names, call) {
  for (const name of names) {
    const widget = widgetOf(node, name);
    if (!widget || watched.has(widget)) continue;
    watched.add(widget);
    const before = widget.callback;
    widget.callback = function (...values) {
      before?.apply(this, values);
      call();
    };
  }
}

/**
 * A panel below the widgets, which is not part of the workflow.
 * @param {GraphNode} node @param {string} name @param {HTMLElement} panel @param {number} height
 */
export function addPanelWidget(node, name, panel, height) {
  const options = { serialize: false, hideOnZoom: false, getMinHeight: () => height };
  const widget = node.addDOMWidget(name, name, panel, options);
  widget.serialize = false;
}

/**
 * @param {GraphNode} node
 * @param {() => void} added Called when the node is put into a workflow.
 * @param {() => void} removed
 */
export function whileInGraph(node, added, removed) {
  const { onAdded, onRemoved } = node;
  node.onAdded = function (...values) {
    onAdded?.apply(this, values);
    added();
  };
  node.onRemoved = function (...values) {
    onRemoved?.apply(this, values);
    removed();
  };
}
