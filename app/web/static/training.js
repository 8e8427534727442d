// Shows how far the training of models is, until they serve.

import { at } from "./address.js";
import { getJson } from "./api.js";
import { el, percent } from "./dom.js";

const POLL_MS = 2000;

function remaining(seconds) {
  if (seconds === null || seconds === undefined) return "";
  return `, about ${seconds < 100 ? `${seconds} s` : `${Math.round(seconds / 60)} min`} left`;
}

/** What /health/ready says of the tasks, in sentences: one for each model in training, one for each task without. */
export function describe(tasks) {
  const rows = new Map();
  for (const [task, status] of Object.entries(tasks)) {
    const { state, training } = status;
    const isTraining = ["running", "queued"].includes(training?.state);
    if (state === "serving" && !isTraining) continue;
    const row = rows.get(isTraining ? training.model : task) ?? { training: isTraining ? training : null, all: [], missing: [], status };
    row.all.push(task);
    if (state !== "serving") row.missing.push(task);
    rows.set(isTraining ? training.model : task, row);
  }
  return new Map([...rows].map(([key, row]) => [key, { ...row, ...sentences(key, row) }]));
}

function sentences(key, { training, all, missing, status: { state, fault } }) {
  if (training) {
    const what = training.state === "running" ? "is being trained" : "is waiting to be trained";
    return {
      text: `${key} ${what} for ${all.join(" and ")}.`,
      share: training.state === "running" ? ` ${percent(training.fraction, 0)} done${remaining(training.eta_s)}.` : "",
      then: missing.length ? ` Predictions of ${missing.join(" and ")} will be available when training finishes.` : " The current model stays in use until then.",
    };
  }
  if (fault) return { text: `The model for ${key} cannot be served: ${fault}` };
  if (state === "loading") return { text: `The model for ${key} is being loaded.` };
  const reason = state === "failed" ? "Its training stopped" : "None has been trained";
  return { text: `There is no model for ${key}. ${reason}: run “medpix train ${key}”.` };
}

/** What each task is served by or waits for; the service says so with status 503 as well, while data are missing. */
async function readTasks() {
  try {
    return (await getJson(at("/health/ready"))).models;
  } catch (error) {
    if (error.body?.models) return error.body.models;
    throw error;
  }
}

// Rows stay while they are shown, and what changes every moment is no status: a screen reader hears of news only.
class Row {
  constructor(key) {
    this.progress = el("progress", { max: 1, "aria-label": `Training of ${key}` });
    [this.text, this.share, this.then] = [el("span", { role: "status" }), el("span", { class: "count" }), el("span")];
    this.node = el("div", { class: "notice" }, el("p", {}, this.text, this.share, this.then), this.progress);
  }

  show({ text, share = "", then = "", training, status }) {
    if (this.text.textContent !== text) this.text.textContent = text;
    this.share.textContent = share;
    this.then.textContent = then;
    this.progress.hidden = !training && status.state !== "loading";
    if (training?.state === "running") this.progress.value = training.fraction;
    else this.progress.removeAttribute("value");
  }
}

/**
 * Keep `target` at the state of the trainings until none is left. `onKnown` is called once, when the first state is
 * shown or could not be had; `onChange` hears of each task that has a new model.
 */
export async function watchTraining(target, { onKnown = () => {}, onChange = () => {} } = {}) {
  const rows = new Map();
  const fault = el("p", { class: "muted" });
  let before = null;

  const show = (tasks) => {
    const wanted = describe(tasks);
    for (const [key, row] of rows) {
      if (wanted.has(key)) continue;
      row.node.remove();
      rows.delete(key);
    }
    for (const [key, words] of wanted) {
      const row = rows.get(key) ?? new Row(key);
      row.show(words);
      if (!rows.has(key)) target.append(row.node);
      rows.set(key, row);
    }
    const changed = Object.keys(tasks).filter((task) => before && tasks[task].version && tasks[task].version !== before[task]?.version);
    before = tasks;
    changed.forEach(onChange);
  };

  do {
    try {
      show(await readTasks());
      fault.remove();
    } catch (error) {
      fault.textContent = `${error.message} Retrying.`;
      target.append(fault);
    }
    onKnown();
    onKnown = () => {};
    if (rows.size || fault.isConnected) await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  } while (rows.size || fault.isConnected);
}
