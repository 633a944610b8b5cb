// The core shows texts about what a node is doing below its widgets. Panels show more.

/** @typedef {import("./types").GraphNode} GraphNode */

/** The name of the widget with these texts. */
const TEXT_WIDGET = "$$node-text-preview";

/**
 * The text that the server sent for the core, which shows it as HTML.
 * @param {string} html
 */
export function plainText(html) {
  return new DOMParser().parseFromString(html, "text/html").documentElement.textContent ?? "";
}

/**
 * Hide the core's text from the moment at which it is added: later is too late in Nodes 2.0.
 * @param {GraphNode} node
 */
export function hideText(node) {
  const add = node.addCustomWidget;
  node.addCustomWidget = function (widget) {
    if (widget.name === TEXT_WIDGET) {
      widget.hidden = true;
      widget.options = { ...widget.options, hidden: true };
    }
    return add.call(this, widget);
  };
}
