// Widgets of nodes: finding, following and adding them.

/** @typedef {import("./types").GraphNode} GraphNode */
/** @typedef {import("./types").Widget} Widget */

/**
 * The widgets of each node that are watched. It keeps them: the page forgets those of subgraphs' nodes
 * when they are not in use, and makes others later.
 * @type {WeakMap<GraphNode, Set<Widget>>}
 */
const watched = new WeakMap();

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
  const slot = (node.inputs ?? []).findIndex((input) => input.name === name);
  return slot >= 0 && node.isInputConnected(slot);
}

/**
 * Call a function whenever one of these widgets is changed. Widgets below a menu are made anew when
 * it changes, so this is repeated.
 * @param {GraphNode} node @param {string[]} names @param {() => void} call
 */
export function watch(node, names, call) {
  const known = watched.get(node) ?? new Set();
  watched.set(node, known);
  for (const name of names) {
    const widget = widgetOf(node, name);
    if (!widget || known.has(widget)) continue;
    known.add(widget);
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
 * @param {string} label What App mode writes above it.
 */
export function addPanelWidget(node, name, panel, height, label) {
  const options = { serialize: false, hideOnZoom: false, getMinHeight: () => height };
  const widget = node.addDOMWidget(name, name, panel, options);
  widget.serialize = false;
  widget.label = label;
}

/** Enlarge a node for widgets that were added. @param {GraphNode} node */
export function makeRoom(node) {
  const [width, height] = node.computeSize();
  if (node.size[1] < height) node.setSize([Math.max(node.size[0], width), height]);
  node.setDirtyCanvas(true, true);
}

/**
 * @param {GraphNode} node
 * @param {() => void} added Called when the node is in a workflow.
 * @param {() => void} removed
 */
export function whileInGraph(node, added, removed) {
  if (node.graph) added();
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
