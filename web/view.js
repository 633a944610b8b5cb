// What the panel of a training node shows of a run. nodes/run_view.py declares the same keys.

/**
 * A step and its smoothed losses of photos and of class images.
 * @typedef {[step: number, photos: number, classImages: number | null]} Point
 *
 * Shares from 0 to 1, null if not scored.
 * @typedef {object} Score
 * @property {number} step
 * @property {number} learned
 * @property {number | null} prompts_kept
 * @property {number | null} class_kept
 *
 * The previews of one step; 0 is the base model.
 * @typedef {object} Preview
 * @property {number} step
 * @property {number} stamp
 * @property {string[]} prompts
 * @property {string[]} files
 *
 * @typedef {"preparing" | "training" | "finished" | "found" | "stopped" | "failed"} State
 *
 * @typedef {object} View
 * @property {string} node
 * @property {string} prompt
 * @property {string | null} workflow
 * @property {number} version
 * @property {string | null} run
 * @property {string} folder
 * @property {State} state
 * @property {string} activity
 * @property {number} step
 * @property {number} total
 * @property {number | null} seconds_left
 * @property {number | null} steps_per_second
 * @property {number | null} megabytes_taken
 * @property {number | null} megabytes_free
 * @property {Point[]} points
 * @property {Score[]} scores
 * @property {number | null} best
 * @property {number | null} overfitting
 * @property {boolean} can_preview
 * @property {Preview[]} previews
 * @property {string | null} file
 * @property {string[]} lines
 * @property {string} message
 *
 * What has changed in a view: the keys that identify it, and others.
 * @typedef {Partial<View> & {node: string, prompt: string, version: number, new_points?: Point[]}}
 *   Changes
 */

/** The event with the changes of a view. */
export const LIVE_EVENT = "dreambooth.live";
/** Answers with all views that the server keeps. */
export const LIVE_ROUTE = "/dreambooth/live";
/** The key of a node's outputs that contains its view. */
export const UI_KEY = "dreambooth";

const MAX_VIEWS = 16;

/** The views that this page knows, the newest last. */
export class Views {
  /** @type {Map<string, View>} */
  #views = new Map();

  /** @returns {View[]} */
  all() {
    return [...this.#views.values()];
  }

  /**
   * @param {View} view
   * @returns {View} the view, or the newer one that is known already
   */
  add(view) {
    const key = keyOf(view);
    const known = this.#views.get(key);
    if (known && known.version > view.version) return known;
    this.#views.set(key, view);
    if (this.#views.size > MAX_VIEWS) this.#views.delete(this.#views.keys().next().value ?? "");
    return view;
  }

  /**
   * Add a view that is shown again, as the newest.
   * @param {View} view
   */
  addLast(view) {
    const newest = this.add(view);
    this.#views.delete(keyOf(view));
    this.#views.set(keyOf(view), newest);
    return newest;
  }

  /**
   * @param {Changes} changes
   * @returns {View | null} the changed view, null if earlier changes are missing
   */
  change(changes) {
    const known = this.#views.get(keyOf(changes));
    if (changes.version === 1) return this.add(/** @type {View} */ (changed({ points: [] }, changes)));
    if (!known || changes.version > known.version + 1) return null;
    if (changes.version <= known.version) return known;
    return this.add(/** @type {View} */ (changed(known, changes)));
  }
}

/** @param {{node: string, prompt: string}} view */
function keyOf(view) {
  return `${view.prompt}/${view.node}`;
}

/**
 * @param {Partial<View> & {points: Point[]}} view
 * @param {Changes} changes
 */
function changed(view, { new_points: added = [], ...values }) {
  const last = view.points.at(-1)?.[0] ?? 0;
  const points = values.points ?? [...view.points, ...added.filter(([step]) => step > last)];
  return { ...view, ...values, points };
}
