// Finds nodes of the open workflow by the ids that the server uses.
import { app } from "/scripts/app.js";

/** The types of the nodes with a panel. */
export const TRAINING_NODES = ["DreamBoothTrain", "DreamBoothTextualInversionTrain"];

/** The graph of the open workflow, also while one of its subgraphs is shown. */
export function rootGraph() {
  return app.rootGraph ?? app.graph;
}

/**
 * @param {string} path The ids of the nodes from the outermost to the innermost, such as "8:4".
 * @returns {import("./types").GraphNode | undefined}
 */
export function nodeAt(path) {
  /** @type {import("./types").Graph | undefined} */
  let graph = rootGraph();
  let node;
  for (const id of path.split(":")) {
    node = graph?.nodes.find((each) => String(each.id) === id);
    graph = node?.subgraph;
  }
  return node;
}
