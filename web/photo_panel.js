// The panel on a node with a folder of photos: how many there are, each with its caption, and what
// is wrong with them.
import { button, element, show } from "./elements.js";
import { PhotoRow } from "./photo_row.js";
import { addStyle } from "./style.js";

/** @typedef {import("./photo_set.js").PhotosView} Photos */
/** @typedef {import("./photo_row.js").Actions} Actions */

/** Photos that are shown at first; each takes a request. */
const MAX_ROWS = 60;

/**
 * What the panel asks for.
 * @typedef {Actions & {
 *   add: (files: FileList) => void,
 *   restore: (name: string) => Promise<void>,
 * }} PhotoActions
 */

export class PhotoPanel {
  /** @type {Map<string, PhotoRow>} */
  #rows = new Map();
  /** @type {Photos | null} */
  #photos = null;
  #prompt = "";
  #showsAll = false;
  /** What came of the last adding or change. @type {string[]} */
  #news = [];
  /** The warnings of the last run. @type {string[]} */
  #warnings = [];

  /**
   * @param {string} what "photo" or "class image"
   * @param {PhotoActions} actions
   * @param {{canChange: boolean}} options
   */
  constructor(what, actions, { canChange }) {
    addStyle();
    this.what = what;
    this.canChange = canChange;
    this.actions = actions;
    this.status = element("p", { class: "status" });
    this.buttons = this.#makeButtons();
    this.activity = element("p", { class: "details" });
    this.faults = element("ul", { class: "faults" });
    this.notes = element("ul", { class: "notes" });
    this.list = element("ul", { class: "photos" });
    this.more = button("", "Show the other photos too", () => this.#showAll());
    this.removed = element("ul", { class: "removed", "aria-label": "Removed photos" });
    this.announcement = element("p", { class: "announcement", role: "status" });
    const content = element(
      "div", { class: "content", "data-capture-wheel": "true", tabindex: "-1" },
      element("div", { class: "top" }, this.status, this.buttons), this.activity, this.faults,
      this.notes, this.list, this.more, this.removed, this.announcement,
    ); // prettier-ignore
    this.element = element(
      "section", { class: "dreambooth-photos", "aria-label": `${capital(what)}s` }, content,
    ); // prettier-ignore
    this.showNothing("");
  }

  /**
   * Show that there is no folder, and why.
   * @param {string} text @param {string} reason @param {boolean} canAdd Whether photos can be added.
   */
  showNothing(text, reason = "", canAdd = true) {
    this.#photos = null;
    this.buttons.hidden = !this.canChange || !canAdd;
    this.#rows.clear();
    this.list.replaceChildren();
    this.removed.replaceChildren();
    show(this.status, text);
    showLines(this.faults, []);
    showLines(this.notes, [reason, ...this.#news]);
    this.list.hidden = this.more.hidden = this.removed.hidden = true;
    this.element.dataset.folder = "";
  }

  /** @param {Photos} photos @param {string} prompt */
  show(photos, prompt) {
    if (this.#photos?.folder !== photos.folder) {
      this.#rows.clear();
      this.#showsAll = false;
      this.#news = this.#warnings = [];
    }
    this.#photos = photos;
    this.#prompt = prompt;
    this.buttons.hidden = !this.canChange;
    show(this.status, countOf(photos, this.what));
    const faults = photos.photos.filter((each) => each.is_used).map(({ fault }) => fault);
    showLines(this.faults, [photos.fault, ...faults]);
    this.#showNotes();
    this.#showRows(photos);
    this.#showRemoved(photos.removed);
    this.element.dataset.folder = photos.folder;
  }

  /** What is being done; "" for nothing. @param {string} text */
  report(text) {
    show(this.activity, text);
  }

  /** What came of adding photos. @param {string[]} news */
  tell(news) {
    this.#news = news;
    this.#showNotes();
    this.announce(news.join(" "));
  }

  /** Show the warnings of a run. @param {string[]} warnings */
  warn(warnings) {
    this.#warnings = warnings;
    this.#showNotes();
  }

  #showNotes() {
    const advice = (this.#photos?.advice ?? []).map((line) => `Advice: ${line}`);
    const notes = this.#photos?.notes ?? [];
    showLines(this.notes, [...this.#news, ...notes, ...this.#warnings, ...advice]);
  }

  /** For screen readers. @param {string} text */
  announce(text) {
    this.announcement.textContent = text;
  }

  /** @param {Photos} photos */
  #showRows({ folder, is_editable, photos }) {
    const visible = this.#showsAll ? photos : photos.slice(0, MAX_ROWS);
    const before = this.#rows;
    this.#rows = new Map();
    for (const photo of visible) {
      const row = before.get(photo.name) ?? new PhotoRow(is_editable && this.canChange, this.actions);
      row.show(folder, photo, this.#prompt);
      this.#rows.set(photo.name, row);
    }
    const rows = [...this.#rows.values()].map((row) => row.element);
    // The field that has the keyboard would lose it if it were put in again.
    if (rows.some((row, index) => this.list.children[index] !== row) || rows.length < before.size)
      this.list.replaceChildren(...rows);
    this.list.hidden = !rows.length;
    show(this.more, visible.length < photos.length ? `Show all ${photos.length}` : "");
  }

  #showAll() {
    this.#showsAll = true;
    if (this.#photos) this.#showRows(this.#photos);
  }

  /** @param {string[]} names */
  #showRemoved(names) {
    const back = (/** @type {string} */ name) =>
      button("Bring back", `Put ${name} into the folder again`, () => this.actions.restore(name));
    this.removed.replaceChildren(
      ...names.map((name) => element("li", {}, `Removed: ${name} `, back(name))),
    );
    this.removed.hidden = !names.length || !this.canChange;
  }

  #makeButtons() {
    const photos = picker("Add photos", "Choose photos and captions to add", {}, this.actions);
    const folder = picker(
      "Add a folder", "Choose a folder of photos to add", { webkitdirectory: "" }, this.actions,
    ); // prettier-ignore
    const hint = element("span", { class: "hint" }, "or drop them here");
    const row = element("div", { class: "buttons", role: "group", "aria-label": "Adding photos" });
    row.append(photos, folder, hint);
    return row;
  }
}

/**
 * A button that opens a file dialog.
 * @param {string} label @param {string} help @param {Record<string, string>} attributes
 * @param {PhotoActions} actions
 */
function picker(label, help, attributes, actions) {
  const field = element("input", { type: "file", multiple: "", tabindex: "-1", ...attributes });
  field.hidden = true;
  field.addEventListener("change", () => {
    if (field.files?.length) actions.add(field.files);
    field.value = ""; // so that the same files can be chosen again
  });
  const press = button(label, help, () => field.click());
  return element("span", {}, press, field);
}

/** @param {Photos} photos @param {string} what */
function countOf({ photos }, what) {
  const bad = photos.filter(({ fault, is_used }) => fault || !is_used).length;
  const count = `${photos.length} ${what}${photos.length === 1 ? "" : "s"}`;
  return bad ? `${count}, ${bad} cannot be used` : count;
}

/** @param {HTMLElement} list @param {string[]} lines */
function showLines(list, lines) {
  // ComfyUI's texts have no line breaks.
  const known = new Map(lines.filter(Boolean).map((line) => [line.replace(/\s+/g, " "), line]));
  const found = [...known.values()];
  list.hidden = !found.length;
  list.replaceChildren(...found.map((line) => element("li", {}, line)));
}

/** @param {string} word */
function capital(word) {
  return word[0].toUpperCase() + word.slice(1);
}
