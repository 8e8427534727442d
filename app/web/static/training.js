// Shows how far the training of models is, until they serve.

import { getJson } from "./api.js";
import { el, percent, spoken } from "./dom.js";

const POLL_MS = 2000;

function remaining(seconds) {
  if (seconds === null || seconds === undefined) return "";
  return `, about ${seconds < 100 ? `${seconds} s` : `${Math.round(seconds / 60)} min`} left`;
}

/** The state of a task in a sentence, by what /health/ready says of it; empty where there is nothing to say. */
export function describeTask(task, { state, training, fault }) {
  const meanwhile = state === "serving" ? " The present model answers meanwhile." : " Until then there are no answers.";
  if (training?.state === "running") {
    const share = percent(training.fraction, 0);
    return `${training.model} is being trained for ${task}: ${share} done${remaining(training.eta_s)}.${meanwhile}`;
  }
  if (training?.state === "queued") return `${training.model} waits for its training for ${task}.${meanwhile}`;
  if (state === "serving") return "";
  if (fault) return `The model for ${task} cannot be served: ${fault}`;
  if (state === "loading") return `The model for ${task} is being loaded.`;
  const reason = state === "failed" ? "Its training stopped" : "None is trained";
  return `There is no model for ${task}. ${reason}; run “medpix train ${task}”.`;
}

/** What each task is served by or waits for; the service says so with status 503 as well, while data are missing. */
async function readTasks() {
  try {
    return (await getJson("/health/ready")).models;
  } catch (error) {
    if (error.body?.models) return error.body.models;
    throw error;
  }
}

// Rows stay while they are shown, so that a screen reader hears of changes only.
class Row {
  constructor(task) {
    this.progress = el("progress", { max: 1, "aria-label": `Training of the model for ${task}` });
    this.text = el("p", { role: "status" });
    this.node = el("div", { class: "notice" }, el("h3", { text: spoken(task) }), this.text, this.progress);
  }

  show(text, { state, training }) {
    if (this.text.textContent !== text) this.text.textContent = text;
    this.progress.hidden = training?.state !== "running" && training?.state !== "queued" && state !== "loading";
    if (training?.state === "running") this.progress.value = training.fraction;
    else this.progress.removeAttribute("value");
  }
}

/** Keep `target` at the state of the trainings until none is left; `onChange` hears of each task that has a new model. */
export async function watchTraining(target, onChange = () => {}) {
  const rows = new Map();
  const fault = el("p", { class: "muted" });
  let before = null;

  const show = (tasks) => {
    for (const [task, status] of Object.entries(tasks)) {
      const text = describeTask(task, status);
      const row = rows.get(task) ?? new Row(task);
      row.show(text, status);
      if (text && !rows.has(task)) target.append(row.node);
      if (!text) row.node.remove();
      if (text) rows.set(task, row);
      else rows.delete(task);
      if (before && status.version && status.version !== before[task]?.version) onChange(task);
    }
    before = tasks;
  };

  do {
    try {
      show(await readTasks());
      fault.remove();
    } catch (error) {
      fault.textContent = `${error.message} Asking again.`;
      target.append(fault);
    }
    if (rows.size || fault.isConnected) await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  } while (rows.size || fault.isConnected);
}
