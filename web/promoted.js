// Widgets of nodes inside subgraphs that are set on the subgraph's own node.

/** @typedef {import("./types").GraphNode} GraphNode */
/**
 * A widget of a node, by its name.
 * @typedef {{node: GraphNode, name: string}} Place
 *
 * @typedef {object} Promoted
 * @property {string} name The widget's name on the subgraph's node.
 * @property {Place} inner The widget that it sets.
 */

/**
 * All of them on a subgraph's node, also those of subgraphs inside it.
 * @param {GraphNode} outer
 * @returns {Promoted[]}
 */
export function promotedWidgets(outer) {
  return (outer.inputs ?? []).flatMap(({ name }) => targets(outer, name).map((inner) => ({ name, inner })));
}

/**
 * Where a widget of a node inside a subgraph is set.
 * @param {GraphNode} outer @param {Place} inner
 * @returns {Place}
 */
export function placeOf(outer, inner) {
  const found = promotedWidgets(outer).find((each) => isSame(each.inner, inner));
  return found ? { node: outer, name: found.name } : inner;
}

/**
 * What an input of a subgraph's node leads to.
 * @param {GraphNode} outer @param {string} name
 * @returns {Place[]}
 */
function targets({ subgraph }, name) {
  const slot = subgraph?.inputNode?.slots.find((each) => each.name === name);
  return (slot?.linkIds ?? []).flatMap((link) => {
    const inner = subgraph?.nodes.flatMap((node) => inputsOf(node, link)) ?? [];
    return inner.flatMap((each) => (each.node.subgraph ? targets(each.node, each.name) : [each]));
  });
}

/** The input of a node at which a link ends. @param {GraphNode} node @param {number} link */
function inputsOf(node, link) {
  // By its links: the slot that a link names is another one while inputs come and go.
  const ends = (node.inputs ?? []).filter((input) => input.link === link);
  return ends.map(({ name }) => ({ node, name }));
}

/** @param {Place} one @param {Place} other */
function isSame(one, other) {
  return one.node === other.node && one.name === other.name;
}
