// The previews of a run by step, and a window that enlarges and compares them.
import { api } from "/scripts/api.js";
import { button, element } from "./elements.js";
import { stepName } from "./texts.js";

/** @typedef {import("./view.js").View} View */
/** @typedef {import("./view.js").Preview} Preview */

/** Steps that are shown at first; each picture takes memory. */
const MAX_STEPS = 4;

/** The rows of previews on a node. */
export class Previews {
  constructor() {
    this.element = element("div", { class: "previews" });
    /** @type {Preview[] | null} */
    this.shown = null;
    this.showsAll = false;
  }

  /** @param {View} view */
  show(view) {
    if (this.shown === view.previews) return;
    this.shown = view.previews;
    this.element.hidden = view.previews.length === 0;
    const rows = order(view.previews);
    const visible = this.showsAll ? rows : rows.slice(0, MAX_STEPS);
    this.element.replaceChildren(...visible.map((preview, row) => previewRow(view, preview, !row)));
    if (visible.length < rows.length) this.element.append(this.#earlier(view, rows.length));
  }

  /** @param {View} view @param {number} count */
  #earlier(view, count) {
    return button(`Show earlier steps (${count - MAX_STEPS})`, "Show the previews of all steps", () => {
      this.showsAll = true;
      this.shown = null;
      this.show(view);
    });
  }
}

/** The newest step, the base model for comparison, then the other steps. @param {Preview[]} previews */
function order(previews) {
  const steps = previews.filter(({ step }) => step > 0).reverse();
  const base = previews.filter(({ step }) => step === 0);
  return [...steps.slice(0, 1), ...base, ...steps.slice(1)];
}

/** @param {View} view @param {Preview} preview @param {boolean} hasCaptions */
function previewRow(view, preview, hasCaptions) {
  const title = preview.step ? stepName(preview.step) : "Base model, from the same noise";
  const pictures = preview.files.map((_, index) => picture(view, preview, index, hasCaptions));
  const row = element("div", { class: "pictures" }, ...pictures);
  return element("section", { "aria-label": title }, element("h4", {}, title), row);
}

/** @param {View} view @param {Preview} preview @param {number} index @param {boolean} hasCaption */
function picture(view, preview, index, hasCaption) {
  const prompt = preview.prompts[index];
  const name = `${stepName(preview.step)}: ${prompt}`;
  const image = element("img", { src: source(view, preview, index), alt: name, loading: "lazy" });
  const enlarge = button("", `Enlarge. ${name}`, () => openWindow(view, preview.step, index));
  enlarge.append(image);
  const figure = element("figure", {}, enlarge);
  if (hasCaption && prompt) figure.append(element("figcaption", { title: prompt }, prompt));
  return figure;
}

/** @param {View} view @param {Preview} preview @param {number} index */
function source(view, preview, index) {
  const query = new URLSearchParams({
    filename: preview.files[index],
    subfolder: view.folder,
    type: "output",
    stamp: String(preview.stamp),
  });
  return api.apiURL(`/view?${query}`);
}

/**
 * Show one preview large, or the same prompt at two steps side by side.
 * @param {View} view @param {number} step @param {number} index
 */
function openWindow(view, step, index) {
  const dialog = element("dialog", { class: "dreambooth-window", "aria-label": "Preview" });
  const first = new Side(view, index, "Step", step);
  const second = new Side(view, index, "Compare with", null);
  const close = button("Close", "Close (Esc)", () => dialog.close());
  const prompt = view.previews.find((each) => each.step === step)?.prompts[index] ?? "";
  dialog.append(
    element("header", {}, element("p", {}, prompt), close),
    element("div", { class: "sides" }, first.element, second.element),
  );
  dialog.addEventListener("close", () => dialog.remove());
  // The page has shortcuts of single letters.
  dialog.addEventListener("keydown", (event) => event.stopPropagation());
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  document.body.append(dialog);
  dialog.showModal();
}

/** One side of the window: a menu of steps, and the picture of the chosen one. */
class Side {
  /** @param {View} view @param {number} index @param {string} label @param {number | null} step */
  constructor(view, index, label, step) {
    this.view = view;
    this.index = index;
    this.menu = element("select", {});
    if (step === null) this.menu.append(element("option", { value: "" }, "–"));
    for (const preview of [...view.previews].reverse()) {
      if (index < preview.files.length)
        this.menu.append(element("option", { value: String(preview.step) }, stepName(preview.step)));
    }
    this.menu.value = step === null ? "" : String(step);
    this.menu.addEventListener("change", () => this.#show());
    this.image = element("img", {});
    this.element = element("div", {}, element("label", {}, `${label} `, this.menu), this.image);
    this.#show();
  }

  #show() {
    const preview = this.view.previews.find(({ step }) => String(step) === this.menu.value);
    this.image.hidden = !preview;
    if (!preview) return;
    this.image.src = source(this.view, preview, this.index);
    this.image.alt = `${stepName(preview.step)}: ${preview.prompts[this.index]}`;
  }
}
