// Shows how far the training of models is, until they serve.

import { getJson } from "./api.js";
import { el, percent, spoken } from "./dom.js";

const POLL_MS = 2000;

function remaining(seconds) {
  if (seconds === null || seconds === undefined) return "";
  return `, about ${seconds < 100 ? `${seconds} s` : `${Math.round(seconds / 60)} min`} left`;
}

/** The state of a task in a sentence, by what /health/ready says of it. */
export function describeTask(task, { state, training, fault, model }) {
  const subject = `The model for ${task}`;
  if (state === "serving") return `${subject} is ready: ${model}.`;
  if (fault) return `${subject} cannot be served: ${fault}`;
  if (state === "running") {
    return `${subject} is being trained: ${percent(training.fraction, 0)} done${remaining(training.eta_s)}.`;
  }
  if (state === "queued") return `${subject} is queued for training.`;
  if (state === "failed") return `${subject} is missing: its training stopped. Run “medpix train ${task}” again.`;
  if (state === "loading") return `${subject} is being loaded.`;
  return `There is no model for ${task} yet. Run “medpix train ${task}”.`;
}

/** What each task is served by or waits for. Answered with 503 as well, while something is missing. */
export async function readTasks(options) {
  try {
    return (await getJson("/health/ready", [], options)).models;
  } catch (error) {
    if (error.body?.models) return error.body.models;
    throw error;
  }
}

class Row {
  constructor(task) {
    this.progress = el("progress", { max: 1, "aria-label": `Training of the model for ${task}` });
    this.text = el("p", {});
    this.node = el("div", { class: "training" }, el("h3", { text: spoken(task) }), this.text, this.progress);
  }

  show(task, status) {
    const text = describeTask(task, status);
    if (this.text.textContent !== text) this.text.textContent = text;
    this.progress.hidden = !["running", "queued", "loading"].includes(status.state);
    if (status.state === "running") this.progress.value = status.training.fraction;
    else this.progress.removeAttribute("value");
  }
}

/** Keep `target` at the state of the tasks that do not serve yet; `onReady` hears of each task that begins to. */
export function watchTasks(target, onReady = () => {}) {
  const rows = new Map();
  const fault = el("p", { class: "muted", hidden: true });
  let timer = 0;
  let isStopped = false;

  function show(tasks) {
    for (const [task, status] of Object.entries(tasks)) {
      const row = rows.get(task);
      if (status.state === "serving") {
        if (!row) continue;
        row.node.remove();
        rows.delete(task);
        onReady(task);
      } else {
        const current = row ?? new Row(task);
        if (!row) {
          rows.set(task, current);
          target.append(current.node);
        }
        current.show(task, status);
      }
    }
    target.hidden = rows.size === 0;
  }

  async function look() {
    let isWaiting = true;
    try {
      show(await readTasks());
      fault.remove();
      isWaiting = rows.size > 0;
    } catch (error) {
      fault.textContent = `${error.message} Asking again.`;
      fault.hidden = false;
      target.hidden = false;
      target.append(fault);
    }
    if (isWaiting && !isStopped) timer = setTimeout(look, POLL_MS);
  }

  look();
  return () => {
    isStopped = true;
    clearTimeout(timer);
  };
}
