// Keeps the size that a node was saved with.

/** @typedef {import("./types").GraphNode} GraphNode */
/** @typedef {import("./types").SavedNode} SavedNode */

/**
 * The page shrinks nodes to their least size when it reads the value of a menu with widgets below it.
 * @param {{prototype: GraphNode}} nodeType
 * @param {string} id
 */
export function keepSize(nodeType, id) {
  if (!id.startsWith("DreamBooth")) return;
  const onConfigure = nodeType.prototype.onConfigure;
  nodeType.prototype.onConfigure = function (/** @type {SavedNode | undefined} */ saved) {
    onConfigure?.call(this, saved);
    if (!saved?.size) return;
    const least = this.computeSize();
    this.setSize([Math.max(saved.size[0], least[0]), Math.max(saved.size[1], least[1])]);
  };
}
