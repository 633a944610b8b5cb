// The panel's sentences about a run.

/** @typedef {import("./view.js").View} View */

/** @param {View} view */
export function isRunning({ state }) {
  return state === "preparing" || state === "training";
}

/** What the run is doing or how it ended. @param {View} view */
export function status(view) {
  const { state, step, total } = view;
  const steps = step === total ? `${total} steps` : `${step} of ${total} steps`;
  switch (state) {
    case "preparing":
      return "Preparing";
    case "training":
      return [`Step ${step} of ${total}`, ...pace(view)].join(" · ");
    case "finished":
      return `${step < total ? "Finished early" : "Finished"}: ${steps}`;
    case "found":
      return `Trained before: ${steps}`;
    case "stopped":
      return step ? `Stopped: ${steps}` : "Stopped";
    case "failed":
      return step ? `Failed: ${steps}` : "Failed";
  }
}

/** @param {View} view */
export function memory({ megabytes_taken: taken, megabytes_free: free }) {
  if (taken === null) return "";
  return `Memory: ${gigabytes(taken)} taken${free === null ? "" : `, ${gigabytes(free)} free`}`;
}

/** @param {number} step */
export function stepName(step) {
  return step ? `Step ${step}` : "Base model";
}

/** @param {View} view */
function pace({ seconds_left: left, steps_per_second: speed }) {
  const found = [];
  if (left !== null) found.push(`${duration(left)} left`);
  if (speed) found.push(speed < 1 ? `${fixed(1 / speed)} s/step` : `${fixed(speed)} steps/s`);
  return found;
}

/** @param {number} seconds */
function duration(seconds) {
  const whole = Math.round(seconds);
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
  const parts = hours ? [hours, padded(minutes)] : [minutes];
  return [...parts, padded(whole % 60)].join(":");
}

/** @param {number} value */
function padded(value) {
  return String(value).padStart(2, "0");
}

/** @param {number} megabytes */
function gigabytes(megabytes) {
  return `${fixed(megabytes / 1024)} GB`;
}

/** @param {number} value */
function fixed(value) {
  return value.toFixed(value < 10 ? 1 : 0);
}
