// The pictures of the nodes in a subgraph, on the subgraph: the classic page does not show them there.
import { api } from "/scripts/api.js";
import { element } from "./elements.js";

/** @typedef {import("./types").SavedImage} SavedImage */

export class Results {
  constructor() {
    this.element = element("div", { class: "results" });
    /** @type {Map<string, HTMLElement>} */
    this.rows = new Map();
  }

  /**
   * Show the pictures of a node in place of its earlier ones.
   * @param {string} node Its id. @param {string} title @param {SavedImage[]} images
   */
  show(node, title, images) {
    const pictures = element("div", { class: "pictures" }, ...images.map((image) => picture(title, image)));
    const row = element("section", { "aria-label": title }, element("h4", {}, title), pictures);
    this.rows.set(node, row);
    this.element.replaceChildren(...this.rows.values());
  }
}

/** @param {string} title @param {SavedImage} image */
function picture(title, { filename, subfolder, type }) {
  const query = new URLSearchParams({ filename, subfolder, type });
  const address = api.apiURL(`/view?${query}`);
  const image = element("img", { src: address, alt: `${title}: ${filename}`, loading: "lazy" });
  const link = element("a", { href: address, target: "_blank", title: "Open in a new tab" }, image);
  return element("figure", {}, link);
}
