// Charts of losses and scores by step, as SVG.
import { element, svg } from "./elements.js";

/** @typedef {import("./view.js").View} View */
/**
 * A line of a chart.
 * @typedef {object} Curve
 * @property {string} name
 * @property {string} kind Its class, which sets its colour and dashes.
 * @property {[step: number, value: number][]} points
 */

const WIDTH = 400;
const HEIGHT = 130;
/** Room for the numbers beside and below the plot. */
const LEFT = 44;
const RIGHT = 8;
const TOP = 8;
const BOTTOM = 18;

/** @param {View} view @returns {Curve[]} */
export function lossCurves({ points }) {
  const classImages = points.flatMap(([step, , loss]) => (loss === null ? [] : [[step, loss]]));
  const curves = [
    { name: "photos", kind: "photos", points: points.map(([step, loss]) => [step, loss]) },
    { name: "class images", kind: "class", points: classImages },
  ];
  return /** @type {Curve[]} */ (curves.filter((curve) => curve.points.length));
}

/** @param {View} view @returns {Curve[]} */
export function scoreCurves({ scores }) {
  /** @param {"learned" | "prompts_kept" | "class_kept"} key */
  const points = (key) =>
    scores.flatMap((score) => (score[key] === null ? [] : [[score.step, score[key]]]));
  const curves = [
    { name: "subject learned", kind: "photos", points: points("learned") },
    { name: "class kept", kind: "class", points: points("class_kept") },
    { name: "prompts kept", kind: "prompts", points: points("prompts_kept") },
  ];
  return /** @type {Curve[]} */ (curves.filter((curve) => curve.points.length));
}

/** A chart with a title and a legend that names the last values. */
export class Chart {
  /** @param {string} title */
  constructor(title) {
    this.title = title;
    this.legend = element("figcaption");
    this.plot = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" });
    this.element = element("figure", { class: "chart" }, this.legend, this.plot);
    this.element.hidden = true;
  }

  /**
   * @param {Curve[]} curves
   * @param {number} lastStep The right end of the chart.
   * @param {number | null} top The value at the upper end; null: the highest value.
   * @param {{best?: number | null, overfitting?: number | null}} marks
   */
  draw(curves, lastStep, top = null, marks = {}) {
    this.element.hidden = curves.length === 0;
    if (this.element.hidden) return;
    const scale = new Scale(lastStep, top ?? highest(curves));
    this.legend.replaceChildren(element("b", {}, this.title), ...curves.map(legendEntry));
    if (marks.best) this.legend.append(element("span", {}, `best step ${marks.best}`));
    if (marks.overfitting)
      this.legend.append(element("span", { class: "overfitting" }, `overfitting from ${marks.overfitting}`));
    this.plot.replaceChildren(...axes(scale), ...markers(scale, marks), ...lines(scale, curves));
    this.plot.setAttribute("aria-label", description(this.title, curves, marks));
  }
}

class Scale {
  /** @param {number} lastStep @param {number} top */
  constructor(lastStep, top) {
    this.lastStep = Math.max(lastStep, 1);
    this.top = top || 1;
  }

  /** @param {number} step */
  x(step) {
    return rounded(LEFT + (step / this.lastStep) * (WIDTH - LEFT - RIGHT));
  }

  /** @param {number} value */
  y(value) {
    return rounded(HEIGHT - BOTTOM - (value / this.top) * (HEIGHT - TOP - BOTTOM));
  }
}

/** @param {Scale} scale */
function axes(scale) {
  const levels = [0, 0.5, 1].map((share) => share * scale.top);
  const [right, base] = [WIDTH - RIGHT, HEIGHT - 4];
  return [
    ...levels.map((level) => {
      const y = scale.y(level);
      return svg("line", { class: "grid", x1: LEFT, x2: right, y1: y, y2: y });
    }),
    ...levels.map((level) =>
      svg("text", { x: LEFT - 6, y: scale.y(level) + 4, "text-anchor": "end" }, short(level)),
    ),
    svg("text", { x: LEFT, y: base }, "0"),
    svg("text", { x: right, y: base, "text-anchor": "end" }, `step ${scale.lastStep}`),
  ];
}

/** @param {Scale} scale @param {{best?: number | null, overfitting?: number | null}} marks */
function markers(scale, { best, overfitting }) {
  const [top, base] = [TOP, HEIGHT - BOTTOM];
  const found = [];
  if (overfitting) {
    const x = scale.x(overfitting);
    const width = scale.x(scale.lastStep) - x;
    found.push(svg("rect", { class: "overfitting", x, y: top, width, height: base - top }));
  }
  if (best) {
    const x = scale.x(best);
    found.push(svg("line", { class: "best", x1: x, x2: x, y1: top, y2: base }));
  }
  return found;
}

/** @param {Scale} scale @param {Curve[]} curves */
function lines(scale, curves) {
  return curves.map(({ kind, points }) => {
    const places = points.map(([step, value]) => `${scale.x(step)},${scale.y(value)}`);
    return svg("polyline", { class: kind, points: places.join(" ") });
  });
}

/** @param {Curve} curve */
function legendEntry({ name, kind, points }) {
  const value = short(points.at(-1)?.[1] ?? 0);
  return element("span", {}, element("i", { class: kind, "aria-hidden": "true" }), `${name} ${value}`);
}

/**
 * @param {string} title @param {Curve[]} curves
 * @param {{best?: number | null, overfitting?: number | null}} marks
 */
function description(title, curves, { best, overfitting }) {
  const last = curves[0].points.at(-1)?.[0];
  const values = curves.map(({ name, points }) => `${name} ${short(points.at(-1)?.[1] ?? 0)}`);
  const parts = [`${title} at step ${last}: ${values.join(", ")}`];
  if (best) parts.push(`best step ${best}`);
  if (overfitting) parts.push(`overfitting from step ${overfitting}`);
  return parts.join("; ");
}

/** @param {Curve[]} curves */
function highest(curves) {
  return Math.max(...curves.flatMap(({ points }) => points.map(([, value]) => value)));
}

/** @param {number} value */
function short(value) {
  return value === 0 ? "0" : String(Number(value.toPrecision(value < 0.1 ? 2 : 3)));
}

/** @param {number} value */
function rounded(value) {
  return Math.round(value * 10) / 10;
}
