// Finds nodes of the open workflow by the ids that the server uses.
import { app } from "/scripts/app.js";

/** @typedef {import("./types").GraphNode} GraphNode */

/** The types of the nodes that train. */
export const TRAINING_NODES = ["DreamBoothTrain", "DreamBoothTextualInversionTrain"];

/** The graph of the open workflow, also while one of its subgraphs is shown. */
export function rootGraph() {
  return app.rootGraph ?? app.graph;
}

/**
 * Whether a node trains, or is a subgraph with a node in it that trains.
 * @param {GraphNode} node
 * @returns {boolean}
 */
export function trains(node) {
  return TRAINING_NODES.includes(node.comfyClass ?? "") || !!node.subgraph?.nodes.some(trains);
}

/**
 * @param {string} path The ids of the nodes from the outermost to the innermost, such as "8:4".
 * @returns {GraphNode | undefined}
 */
export function nodeAt(path) {
  return nodesAlong(path).get(path);
}

/**
 * The node at a path and the subgraphs around it, by their paths, the outermost first.
 * @param {string} path
 * @returns {Map<string, GraphNode>}
 */
export function nodesAlong(path) {
  const found = new Map();
  /** @type {import("./types").Graph | undefined} */
  let graph = rootGraph();
  const ids = path.split(":");
  for (const [depth, id] of ids.entries()) {
    /** @type {GraphNode | undefined} */
    const node = graph?.nodes.find((each) => String(each.id) === id);
    if (node) found.set(ids.slice(0, depth + 1).join(":"), node);
    graph = node?.subgraph;
  }
  return found;
}
