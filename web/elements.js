// Small helpers to build elements.

const SVG = "http://www.w3.org/2000/svg";

/**
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {Record<string, string>} attributes
 * @param {(Node | string)[]} children
 * @returns {HTMLElementTagNameMap[Tag]}
 */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  setAttributes(made, attributes);
  made.append(...children);
  return made;
}

/**
 * @param {string} tag
 * @param {Record<string, string | number>} attributes
 * @param {(Node | string)[]} children
 */
export function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, tag);
  setAttributes(made, attributes);
  made.append(...children);
  return made;
}

/**
 * @param {string} label
 * @param {string} help What it does: its tooltip and description.
 * @param {() => void} press
 */
export function button(label, help, press) {
  const made = element("button", { type: "button", title: help }, label);
  made.addEventListener("click", press);
  return made;
}

/**
 * Set a text without touching the page if it is the same, and hide the element if it is empty.
 * @param {HTMLElement} target
 * @param {string} text
 */
export function show(target, text) {
  if (target.textContent !== text) target.textContent = text;
  target.hidden = !text;
}

/** @param {Element} target @param {Record<string, string | number>} attributes */
function setAttributes(target, attributes) {
  for (const [name, value] of Object.entries(attributes)) target.setAttribute(name, String(value));
}
