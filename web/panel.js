// The panel on a training node: what is being done, charts, previews and buttons.
import { Chart, lossCurves, scoreCurves } from "./chart.js";
import { button, element, show } from "./elements.js";
import { Previews } from "./previews.js";
import { post } from "./requests.js";
import { Results } from "./results.js";
import { addStyle } from "./style.js";
import { isRunning, memory, status } from "./texts.js";

/** @typedef {import("./view.js").View} View */

export const FINISH_ROUTE = "/dreambooth/finish";
export const PREVIEW_ROUTE = "/dreambooth/preview";
export const SAVE_ROUTE = "/dreambooth/save";

const EMPTY = "The run is shown here once it starts.";
const STOP_HELP = "Stop after this step without a result. The same run continues when you queue it again.";
const COPY = "Copy name";
const COPIED = "Copied";
const STOPPING = "Stopping. Queue the same again to continue from there.";

export class Panel {
  /** @type {View | null} */
  view = null;
  /** What was asked for, until it is done. */
  asked = "";

  constructor() {
    addStyle();
    this.status = element("p", { class: "status" }, EMPTY);
    this.bar = element("progress", { "aria-label": "Steps" });
    this.details = element("p", { class: "details" });
    this.message = element("p", { class: "message" });
    this.announcement = element("p", { class: "announcement", role: "status" });
    this.losses = new Chart("Loss");
    this.scores = new Chart("Scores");
    this.previews = new Previews();
    this.results = new Results();
    this.buttons = this.#makeButtons();
    this.file = element("code", {});
    this.copy = button(COPY, "Copy the file's name", () => this.#copyName());
    this.written = this.#makeWritten();
    this.lines = element("ul", { class: "lines" });
    const content = element(
      "div", { class: "content" },
      this.status, this.bar, this.buttons.row, this.details, this.message, this.written,
      this.results.element, this.losses.element, this.scores.element, this.previews.element, this.lines,
      this.announcement,
    ); // prettier-ignore
    this.element = element(
      "section", { class: "dreambooth-panel", "aria-label": "Training run" }, content,
    ); // prettier-ignore
    this.bar.hidden = this.buttons.row.hidden = this.written.hidden = true;
  }

  /** @param {View} view */
  show(view) {
    const before = this.view;
    this.view = view;
    if (this.#isAnswered(before, view)) this.asked = "";
    show(this.status, status(view));
    show(this.details, [view.activity || this.asked, memory(view)].filter(Boolean).join(" · "));
    show(this.message, view.message);
    this.#showProgress(view);
    this.#showCharts(before, view);
    this.previews.show(view);
    if (before?.file !== view.file) this.#showFile(view.file);
    if (before?.lines !== view.lines) this.#showLines(view.lines);
    if (before?.state !== view.state) this.#announce(view);
    this.element.dataset.state = view.state;
  }

  /** @param {View | null} before @param {View} view */
  #isAnswered(before, view) {
    const keys = /** @type {const} */ (["prompt", "state", "previews", "file"]);
    return keys.some((key) => before?.[key] !== view[key]);
  }

  /** @param {View} view */
  #showProgress(view) {
    const runs = isRunning(view);
    this.bar.hidden = this.buttons.row.hidden = !runs;
    this.bar.max = Math.max(view.total, 1);
    if (view.state === "training") this.bar.value = view.step;
    else this.bar.removeAttribute("value");
    for (const each of [this.buttons.finish, this.buttons.preview, this.buttons.save])
      each.disabled = view.state !== "training";
    this.buttons.preview.hidden = !view.can_preview;
  }

  /** @param {View | null} before @param {View} view */
  #showCharts(before, view) {
    const isLonger = before?.step !== view.step;
    if (isLonger || before?.points !== view.points)
      this.losses.draw(lossCurves(view), view.step);
    if (isLonger || before?.scores !== view.scores)
      this.scores.draw(scoreCurves(view), view.step, 1, view);
  }

  /** @param {string | null} name */
  #showFile(name) {
    this.written.hidden = !name;
    this.file.textContent = name ?? "";
    this.copy.textContent = COPY;
  }

  /** @param {string[]} lines */
  #showLines(lines) {
    this.lines.replaceChildren(...lines.map((line) => element("li", {}, line)));
    this.lines.hidden = lines.length === 0;
  }

  /** For screen readers: only what changes rarely. @param {View} view */
  #announce(view) {
    const text = view.state === "training" ? "Training" : status(view);
    this.announcement.textContent = [text, view.message].filter(Boolean).join(". ");
  }

  #makeButtons() {
    const finish = button(
      "Finish now and keep",
      "End after this step. What was trained so far is the result, and the workflow continues.",
      () => this.#ask(FINISH_ROUTE, "Finishing after this step."),
    );
    const stop = button("Stop", STOP_HELP, () => this.#stop());
    const preview = button(
      "Preview now", "Draw the previews after this step.",
      () => this.#ask(PREVIEW_ROUTE, "Previews follow after this step."),
    ); // prettier-ignore
    const save = button(
      "Save now", "Save the model as it is after this step, beside the result.",
      () => this.#ask(SAVE_ROUTE, "Saving after this step."),
    ); // prettier-ignore
    const row = element("div", { class: "buttons", role: "group", "aria-label": "Training" });
    row.append(finish, stop, preview, save);
    return { row, finish, stop, preview, save };
  }

  #makeWritten() {
    return element("p", { class: "written" }, "Written: ", this.file, " ", this.copy);
  }

  async #copyName() {
    await copyText(this.file.textContent);
    this.copy.textContent = this.announcement.textContent = COPIED;
  }

  /** @param {string} route @param {string} text Shown until it is done. */
  async #ask(route, text) {
    const answer = await post(route, { node: this.view?.node });
    this.asked = answer.ok ? text : (await answer.json()).error;
    if (this.view) this.show(this.view);
  }

  async #stop() {
    if (!this.view) return;
    await post("/interrupt", { prompt_id: this.view.prompt });
    this.asked = STOPPING;
    this.show(this.view);
  }
}

/** @param {string | null} text */
async function copyText(text) {
  if (navigator.clipboard) return await navigator.clipboard.writeText(text ?? "");
  // Browsers offer the clipboard only to pages of this computer or over HTTPS.
  const field = element("textarea", {}, text ?? "");
  document.body.append(field);
  field.select();
  document.execCommand("copy");
  field.remove();
}
