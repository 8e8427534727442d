// How far the training of models is, live; nothing while nothing is trained.

import { getJson } from "./api.js";
import { el, spoken } from "./dom.js";

const EVERY_MS = 2000;

function duration(seconds) {
  if (seconds === null || seconds === undefined) return "";
  return seconds < 90 ? `, about ${Math.round(seconds)} s left` : `, about ${Math.round(seconds / 60)} min left`;
}

function row(task, { state, training }) {
  const isServed = state === "serving";
  const what = isServed ? "The present model answers meanwhile." : "Until then there are no answers.";
  const progress = el("progress", { max: 1, value: training.fraction ?? 0, "aria-label": `Training for ${spoken(task)}` });
  const share = Math.round(100 * (training.fraction ?? 0));
  const text = training.state === "queued"
    ? `${training.model} waits for its training (${spoken(task)}). ${what}`
    : `${training.model} is being trained for ${spoken(task).toLowerCase()}: ${share}%${duration(training.eta_s)}. ${what}`;
  return el("div", { class: "notice" }, el("p", { text }), progress);
}

/** Show the trainings of GET /models in `target` until none runs; `onChange` is called when a model begins to serve. */
export async function watchTraining(target, onChange = () => {}) {
  let before = null;
  for (;;) {
    let tasks = {};
    try {
      ({ tasks } = await getJson("/models"));
    } catch {
      // The service is down or restarts: what was shown stays, and it is asked again.
      await new Promise((resolve) => setTimeout(resolve, EVERY_MS));
      continue;
    }
    const busy = Object.entries(tasks).filter(([, status]) => ["queued", "running"].includes(status.training?.state));
    const missing = Object.entries(tasks).filter(([, status]) => status.state !== "serving" && !["queued", "running"].includes(status.training?.state));
    target.replaceChildren(
      ...busy.map(([task, status]) => row(task, status)),
      ...missing.map(([task]) =>
        el("p", { class: "notice warn", text: `No model answers ${spoken(task).toLowerCase()} yet. Train one with: medpix train ${task}` }),
      ),
    );
    const serving = Object.entries(tasks).map(([task, status]) => `${task}:${status.version ?? ""}`).join(" ");
    if (before !== null && serving !== before) onChange();
    before = serving;
    if (!busy.length && !missing.length) return;
    await new Promise((resolve) => setTimeout(resolve, EVERY_MS));
  }
}
