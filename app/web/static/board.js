// The leaderboard: per task, the models by their accuracy with its interval.

import { whisker } from "./charts.js";
import { el, number, onPlainClick, percent, spoken } from "./dom.js";
import { moment, scoresOf, SCORED_TASKS } from "./scores.js";

const decimals = (value) => value?.toFixed(3) ?? "";

/** Figures of the test split before those of the dev split, which are optimistic: the models were selected on it. */
function byScore(a, b) {
  const rank = ({ scores }) => ({ test: 2, dev: 1 })[scores?.split] ?? 0;
  return rank(b) - rank(a) || (b.scores?.accuracy ?? 0) - (a.scores?.accuracy ?? 0);
}

function figures(scores) {
  if (!scores) return [el("td", { class: "number accuracy", text: "–" }), el("td", { class: "muted interval", text: "no figures" }), el("td", { class: "chart" }), el("td", {}), el("td", {}), el("td", {})];
  const interval = scores.accuracy_95;
  const cell = (label, text) => el("td", { class: "number more", data: { label: text && label }, text });
  return [
    el("td", { class: "number accuracy" }, decimals(scores.accuracy), scores.split === "dev" && el("span", { class: "tag warn", text: "dev" })),
    el("td", { class: "interval", text: interval ? interval.map((end) => end.toFixed(2)).join(" to ") : "" }),
    el("td", { class: "chart" }, whisker(scores.accuracy, interval)),
    cell("Macro F1", decimals(scores.macro_f1)),
    cell("ECE", decimals(scores.ece)),
    cell("Coverage", scores.coverage === undefined ? "" : percent(scores.coverage, 0)),
  ];
}

function row({ card, serves, backend, scores }, task, choose) {
  const where = backend ? `${backend.name}, ${backend.device}, ${backend.precision}` : null;
  const link = el("a", { href: `?${new URLSearchParams({ model: card.name, task })}#details`, text: card.name });
  const name = onPlainClick(link, () => choose(card.name, task));
  const tag = serves && el("span", { class: "tag good", title: where, text: "in use" });
  return el("tr", { class: serves ? "served" : null }, el("th", { scope: "row" }, name, " ", tag), ...figures(scores));
}

function head() {
  const axis = el("span", { class: "axis", "aria-hidden": "true" }, ["0", "0.5", "1"].map((text) => el("span", { text })));
  const cells = [["Model", "model"], ["Accuracy", "number accuracy"], ["95% interval", "interval"], ["", "chart"], ["Macro F1", "number more"], ["ECE", "number more"], ["Coverage", "number more"]];
  return el("thead", {}, el("tr", {}, cells.map(([text, name]) => (text ? el("th", { scope: "col", class: name, text }) : el("td", { class: name }, axis)))));
}

function table(task, { items }, report, choose) {
  const rows = items
    .filter(({ card }) => task in card.tasks)
    .map(({ card, serves, backend }) => ({ card, serves: serves.includes(task === "location_category" ? "location" : task), backend, scores: scoresOf(card, task, report) }))
    .sort(byScore);
  if (!rows.length) return null;
  const majority = report?.tasks[task]?.majority;
  return el(
    "table",
    { class: "board card" },
    el("caption", {}, `${spoken(task)} `, el("span", { class: "muted", text: `(${rows[0].card.tasks[task].length} classes)` })),
    head(),
    el(
      "tbody",
      {},
      rows.map((each) => row(each, task, choose)),
      majority && el("tr", { class: "baseline" }, el("th", { scope: "row", text: `majority class: ${majority.class}` }), ...figures(majority)),
    ),
  );
}

/** One sentence on where the figures come from. */
function source({ items }, report) {
  const isDev = items.some(({ card }) => Object.keys(card.tasks).some((task) => scoresOf(card, task, report)?.split === "dev"));
  const parts = [];
  if (report) parts.push(`Evaluated on ${moment(report.created_at)}, on ${report.split.checked}. `);
  if (isDev) {
    const dev = items.find(({ card }) => card.data.images.dev)?.card.data;
    const size = dev ? `, ${number(dev.images.dev)} images of ${number(dev.cases.dev)} cases` : "";
    parts.push(`Figures marked “dev” were measured on the dev split${size}. The models were selected on it, so expect lower figures on new images. Figures on the test split follow with the evaluation, which medpix up runs by itself; else run `, el("code", { text: "medpix evaluate" }), ".");
  }
  return el("p", { class: isDev ? "notice" : "muted small" }, parts);
}

/** Why each task is answered by its model, and which models a start trains. */
function choices({ tasks, training }) {
  const serving = Object.entries(tasks).filter(([, { reason }]) => reason);
  const lines = serving.map(([task, { model, reason }]) => el("li", {}, `${spoken(task)}: ${model} (${reason}).`));
  if (training) lines.push(el("li", {}, `At start the service trains ${training.models.join(", ")} if they are missing (${training.reason}).`), ...training.notes.map((text) => el("li", { text })));
  if (!lines.length) return null;
  return el("details", { class: "why" }, el("summary", { text: "Why these models" }), el("ul", { class: "list small" }, lines));
}

/** What to show in place of a leaderboard while no model is registered. */
function nothing(tasks) {
  const isTraining = Object.values(tasks).some(({ training }) => ["running", "queued"].includes(training?.state));
  if (isTraining) return el("p", { class: "muted", text: "No model is registered yet. The first one appears here when its training finishes." });
  return el("p", { class: "notice" }, "No model is registered yet. Train the default ones with ", el("code", { text: "medpix train modality location" }), ".");
}

/** The tables of all tasks. `choose` is given the name and the task of the model to show in detail. */
export function board(models, report, choose) {
  if (!models.items.length) return [nothing(models.tasks)];
  const terms = "Macro F1 weighs rare and frequent classes alike. ECE (expected calibration error) is the mean gap between confidence and accuracy; 0 is best. Coverage is the share of answers that are confident by the confidence threshold and the out-of-distribution threshold of the model.";
  return [
    source(models, report),
    ...SCORED_TASKS.map((task) => table(task, models, report, choose)).filter(Boolean),
    el("p", { class: "muted small", text: terms }),
    choices(models),
  ].filter(Boolean);
}
