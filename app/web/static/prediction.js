// Shows a prediction: labels as bars with calibrated percentages, and all that qualifies them.

import { el, percent, plural, spoken } from "./dom.js";

/** A bar of 0 to 1. The width is set by script, since the pages allow no style attribute. */
function bar(fraction, className = "") {
  const fill = el("span", { class: "fill" });
  fill.style.width = `${Math.max(0, Math.min(1, fraction)) * 100}%`;
  return el("span", { class: `bar ${className}`, "aria-hidden": "true" }, fill);
}

const FIRST = 5;
const MODALITIES = ["CT", "MR"];

/** Bars of the classes, the most probable first. `truth`: the class that the dataset names. */
export function bars(probabilities, truth = null) {
  const row = ({ label, probability }) => {
    const name = el("span", { class: "grow", text: label }, truth === label && el("span", { class: "tag good", text: "true label" }));
    const line = el("span", { class: "bar-line" }, name, el("span", { class: "count", text: percent(probability) }));
    return el("li", {}, line, bar(probability, truth === label ? "true" : ""));
  };
  const rest = probabilities.slice(FIRST);
  const list = (entries) => el("ul", { class: "bars" }, entries.map(row));
  const more = rest.length > 0 && el("details", {}, el("summary", { text: `${plural(rest.length, "other class", "other classes")}` }), list(rest));
  return el("div", {}, list(probabilities.slice(0, FIRST)), more);
}

/** Why an answer is uncertain, in a sentence; null if it is not. */
function doubt(prediction) {
  if (prediction.decision === "confident") return null;
  const header = prediction.image.header_modality;
  if (header && !MODALITIES.includes(header)) return `Uncertain: the DICOM header says ${header}, and the model was trained on CT and MR images only.`;
  if (prediction.task === "modality" && header && header !== prediction.label) return `Uncertain: the DICOM header says ${header}.`;
  if (prediction.out_of_distribution) return "Uncertain: the image differs from all images that the model was trained on.";
  return "Uncertain: for patients that the model had not seen, answers at this confidence were wrong too often.";
}

/** The answer in a line, with what the dataset says of it and why it is uncertain. */
export function verdictView(prediction, labelled = null) {
  const tag = el("span", { class: `tag ${prediction.decision === "confident" ? "good" : "warn"}`, text: prediction.decision });
  const line = el("p", { class: "verdict" }, el("strong", { text: prediction.label }), ` ${percent(prediction.probabilities[0].probability)} `, tag);
  const header = prediction.task === "modality" && prediction.image.header_modality;
  const reason = doubt(prediction);
  return [
    line,
    labelled && comparison(prediction, labelled.truth, labelled.correct),
    header && el("p", { class: "header-modality small", text: `Modality in the DICOM header: ${header}.` }),
    reason && el("p", { class: "doubt", text: reason }),
  ].filter(Boolean);
}

function facts(prediction, timing) {
  const { model } = prediction;
  const rows = [
    ["Inputs used", prediction.inputs_used.join(" and ")],
    ["Model", `${model.name}, version ${model.version}, ${model.init === "scratch" ? "trained from scratch" : "from pretrained weights"}`],
    ["Model SHA-256", model.sha256],
    ["Image", `${prediction.image.width} × ${prediction.image.height} pixels, mode ${prediction.image.mode}`],
    ["Image SHA-256", prediction.image.sha256],
    ["Request id", prediction.request_id],
  ];
  if (timing) rows.push(["Time", timing.words]);
  const list = rows.flatMap(([name, value]) => [el("dt", { text: name }), el("dd", { text: value, class: /SHA|Request/.test(name) ? "mono" : null })]);
  const title = timing ? `${timing.ms} ms by ${model.name}` : `By ${model.name}`;
  return el("details", {}, el("summary", { text: title }), el("dl", { class: "facts small" }, list));
}

/** What a truth of the dataset makes of a prediction. */
function comparison(prediction, truth, correct) {
  if (truth === null) return el("p", { class: "muted", text: "The dataset gives no true label." });
  const mark = correct === null
    ? el("span", { class: "tag", text: "not a class" })
    : el("span", { class: `tag ${correct ? "good" : "bad"}`, text: correct ? "correct" : "wrong" });
  return el("p", {}, "True label: ", el("strong", { text: truth }), " ", mark);
}

/**
 * A prediction. `labelled`: `truth` and `correct` where the dataset knows; `timing`: of postForm; `withSplit`: whether to
 * repeat what the API notes of images of the training and dev splits; `isBrief`: the verdict stands elsewhere.
 */
export function predictionView(prediction, { labelled = null, timing = null, withSplit = false, isBrief = false } = {}) {
  const known = prediction.in_dataset;
  const notes = prediction.notes.filter((note) => withSplit || !(known && note.includes(known.image)));
  const region = prediction.location_category;
  return el(
    "section",
    { class: "prediction", "aria-label": spoken(prediction.task), data: { task: prediction.task } },
    el("h3", { text: spoken(prediction.task) }),
    !isBrief && verdictView(prediction, labelled),
    bars(prediction.probabilities, labelled?.truth),
    region && el("p", { class: "region" }, "Location category: ", el("strong", { text: region.label }), ` ${percent(region.probabilities[0].probability)}`),
    notes.length > 0 && el("ul", { class: "notes small" }, notes.map((note) => el("li", { text: note }))),
    facts(prediction, timing),
  );
}
