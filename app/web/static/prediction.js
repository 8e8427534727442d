// An answer of the models as bars, with everything that one must know to read it.

import { bar, el, percent } from "./dom.js";

const SHOWN = 5;
const TITLES = { modality: "Modality", location: "Location", location_category: "Part of the body" };

/** The classes with their calibrated probabilities, the best first; more on demand. */
export function ranking(probabilities, truth = null) {
  const rows = probabilities.map(({ label, probability }, index) => {
    const name = el("span", { class: "rank-label" }, label, truth === label && el("span", { class: "tag good", text: "label in the dataset" }));
    return el("li", { hidden: index >= SHOWN && truth !== label }, name, bar(probability, index ? "low" : ""), el("span", { class: "rank-value", text: percent(probability) }));
  });
  const list = el("ol", { class: "ranking" }, rows);
  if (!rows.some((row) => row.hidden)) return list;
  const more = el("button", { type: "button", class: "link small", text: `All ${rows.length} classes` });
  more.addEventListener("click", () => {
    for (const row of rows) row.hidden = false;
    more.remove();
  });
  return el("div", {}, list, more);
}

function decision({ decision, task }) {
  if (decision !== "uncertain") return null;
  const text = `Uncertain: answers as unsure as this are wrong too often to lean on. Do not read it as the ${TITLES[task].toLowerCase()}.`;
  return el("p", { class: "notice warn", text });
}

/** Whether the image is of the dataset, where accuracy proves nothing. */
function membership({ in_dataset: known }) {
  if (!known) return null;
  const where = {
    train: "the training split: the model has learned from it, so a right answer proves nothing",
    dev: "the dev split, on which the model was chosen and calibrated",
    test: "the test split, which the model has never learned from",
  };
  const link = el("a", { href: `/pages/case/${encodeURIComponent(known.u_id)}#${encodeURIComponent(known.image)}`, text: known.image });
  return el("p", { class: `notice${known.split === "train" ? " warn" : ""}` }, "This is the image ", link, ` of the dataset, in ${where[known.split] ?? known.split}.`);
}

export function provenance(prediction, timing = null) {
  const { model, inputs_used: inputs } = prediction;
  const parts = [`${model.name}, version ${model.version}`, `sha256 ${model.sha256.slice(0, 12)}…`, `from ${inputs.join(" and ")}`];
  if (timing) {
    const stages = timing.stages.map(([name, ms]) => `${name} ${ms} ms`).join(", ");
    parts.push(`${Math.round(timing.total)} ms${stages ? ` (${stages})` : ""}`);
  }
  return el("p", { class: "muted small", text: parts.join(" · ") });
}

/** A whole answer. `truth`: the dataset's labels by task, where they are known. */
export function predictionView(prediction, { truth = {}, timing = null } = {}) {
  const { task, location_category: category } = prediction;
  return el(
    "div",
    { class: "prediction", data: { task } },
    el("h3", {}, `${TITLES[task]}: `, el("b", { class: "answer", text: prediction.label })),
    decision(prediction),
    ranking(prediction.probabilities, truth[task]),
    category && el("h4", { text: `${TITLES.location_category}: ${category.label}` }),
    category && ranking(category.probabilities, truth.location_category),
    membership(prediction),
    prediction.notes.length > 0 && el("ul", { class: "small notes" }, prediction.notes.map((text) => el("li", { text }))),
    provenance(prediction, timing),
  );
}
