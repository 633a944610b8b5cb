// One photo in a panel: thumbnail, name, size, caption.
import { button, element, show } from "./elements.js";
import { thumbnail } from "./photo_set.js";

/** @typedef {import("./photo_set.js").PhotoView} Photo */

/**
 * What a row asks for.
 * @typedef {object} Actions
 * @property {(name: string, text: string) => Promise<void>} caption
 * @property {(name: string) => Promise<void>} remove
 */

export class PhotoRow {
  /** @type {Photo | null} */
  #photo = null;
  /** The caption that the server has. */
  #saved = "";

  /** @param {boolean} isEditable @param {Actions} actions */
  constructor(isEditable, actions) {
    this.actions = actions;
    this.image = element("img", { loading: "lazy", alt: "" });
    this.broken = element("span", { class: "broken", "aria-hidden": "true" }, "?");
    this.name = element("b", {});
    this.size = element("span", { class: "size" });
    this.fault = element("p", { class: "fault" });
    this.caption = isEditable ? this.#makeField() : element("p", { class: "caption" });
    this.remove = button("Remove", "", () => this.#remove());
    const head = element("div", { class: "head" }, this.name, this.size);
    if (isEditable) head.append(this.remove);
    const text = element("div", { class: "text" }, head, this.fault, this.caption);
    this.element = element("li", {}, this.image, this.broken, text);
  }

  /** @param {string} folder @param {Photo} photo @param {string} prompt */
  show(folder, photo, prompt) {
    const isReadable = photo.is_used && !isBroken(photo);
    if (this.#photo?.stamp !== photo.stamp && isReadable) this.image.src = thumbnail(folder, photo);
    this.#photo = photo;
    this.image.hidden = !isReadable;
    this.broken.hidden = isReadable;
    this.image.alt = photo.name;
    show(this.name, photo.name);
    this.name.title = photo.name;
    const size = photo.width ? `${photo.width}×${photo.height}` : "";
    show(this.size, photo.mask ? `${size} with mask` : size);
    this.size.title = photo.mask ?? "";
    show(this.fault, faultOf(photo));
    this.fault.title = photo.fault;
    this.remove.title = `Remove ${photo.name} from the folder. It can be brought back.`;
    this.remove.setAttribute("aria-label", `Remove ${photo.name}`);
    this.#showCaption(photo, prompt);
  }

  /** @param {Photo} photo @param {string} prompt */
  #showCaption(photo, prompt) {
    const without = prompt ? `No caption file: “${prompt}”` : "No caption file: the prompt is used";
    if (!(this.caption instanceof HTMLTextAreaElement)) {
      show(this.caption, photo.caption || without);
      this.caption.classList.toggle("none", !photo.caption);
      return;
    }
    // What is being typed stays.
    if (this.caption.value === this.#saved) this.caption.value = photo.caption;
    this.#saved = photo.caption;
    this.caption.placeholder = without;
    this.caption.hidden = !photo.is_used || isBroken(photo);
    this.caption.setAttribute("aria-label", `Caption of ${photo.name}`);
  }

  #makeField() {
    const field = element("textarea", { rows: "2", "data-capture-wheel": "true", spellcheck: "false" });
    field.addEventListener("change", () => this.#save(field.value));
    field.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey) {
        event.preventDefault();
        this.#save(field.value);
      }
      // The page has shortcuts of single letters.
      if (!event.ctrlKey && !event.metaKey) event.stopPropagation();
    });
    return field;
  }

  /** @param {string} text */
  async #save(text) {
    if (this.#photo && text !== this.#saved) await this.actions.caption(this.#photo.name, text);
  }

  async #remove() {
    if (this.#photo) await this.actions.remove(this.#photo.name);
  }
}

/** In short; the panel has the whole message. @param {Photo} photo */
function faultOf(photo) {
  if (!photo.fault) return "";
  return isBroken(photo) ? "Cannot be read" : "Its caption cannot be read";
}

/** @param {Photo} photo */
function isBroken({ fault, width }) {
  return Boolean(fault) && width === null;
}
