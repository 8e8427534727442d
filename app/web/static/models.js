// The models page: a leaderboard per task, and one model in detail.

import { getJson } from "./api.js";
import { curves, reliability, riskCoverage, whisker } from "./charts.js";
import { byId, el, number, percent, problemBox, spoken } from "./dom.js";
import { watchTraining } from "./training.js";

const TASKS = ["modality", "location", "location_category"];
let cards = [];
let report = null;

async function load() {
  try {
    const models = await getJson("/models");
    cards = models.items;
    report = await lastReport();
    board(models);
    fillChoices();
  } catch (error) {
    byId("problem").replaceChildren(problemBox(error, () => location.reload()));
    byId("board").replaceChildren();
  }
  byId("board").setAttribute("aria-busy", "false");
}

/** The last evaluation; null if there was none, which is no fault. */
async function lastReport() {
  try {
    return await getJson("/evaluation");
  } catch (error) {
    if (error.status === 404) return null;
    byId("problem").replaceChildren(problemBox(error));
    return null;
  }
}

function board(models) {
  if (!cards.length) {
    byId("board").replaceChildren(el("p", { class: "notice", text: "No model is registered yet. Train the default ones with: medpix train modality location" }));
    return;
  }
  const tables = TASKS.map((task) => table(task, models)).filter(Boolean);
  const note = report
    ? `Evaluated ${new Date(report.created_at).toLocaleString()} on ${report.split.checked}.`
    : "There is no evaluation yet: figures are missing until `medpix evaluate` has run.";
  byId("board").replaceChildren(...tables, el("p", { class: "muted small", text: note }));
}

function table(task, models) {
  const rows = cards
    .filter(({ card }) => task in card.tasks)
    .map(({ card, serves, backend }) => ({ card, serves: serves.includes(task === "location_category" ? "location" : task), backend, scores: scoresOf(card, task) }))
    .sort((a, b) => (b.scores?.accuracy ?? -1) - (a.scores?.accuracy ?? -1));
  if (!rows.length) return null;
  const head = ["Model", "Accuracy", "0 to 1, with 95 % interval", "Macro F1", "ECE", ""];
  const majority = report?.tasks[task]?.majority;
  return el(
    "div",
    { class: "scroll" },
    el(
      "table",
      { class: "board" },
      el("caption", { text: `${spoken(task)} (${rows[0].card.tasks[task].length} classes)` }),
      el("thead", {}, el("tr", {}, head.map((text, index) => el("th", { scope: "col", class: [1, 3, 4].includes(index) ? "number" : null, text })))),
      el(
        "tbody",
        {},
        rows.map((row) => boardRow(task, row)),
        majority && el("tr", { class: "muted" }, el("th", { scope: "row", text: `always ${majority.class}` }), ...figures(majority), el("td", { text: "baseline" })),
      ),
    ),
  );
}

/** Figures of the last evaluation, if it is of this version; else those on the card. */
function scoresOf(card, task) {
  const scored = report?.models[card.name];
  return (scored?.version === card.version && scored.tasks[task]?.scores) || card.metrics.test?.[task];
}

function figures(scores) {
  if (!scores) return [el("td", { class: "number", text: "–" }), el("td", { class: "chart muted", text: "not evaluated" }), el("td", {}), el("td", {})];
  const interval = scores.accuracy_95;
  const words = interval ? `${scores.accuracy.toFixed(3)}` : percent(scores.accuracy);
  return [
    el("td", { class: "number", text: words }),
    el("td", { class: "chart" }, whisker(scores.accuracy, interval), interval && el("span", { class: "small muted", text: `${interval[0].toFixed(2)} to ${interval[1].toFixed(2)}` })),
    el("td", { class: "number", text: scores.macro_f1?.toFixed(3) ?? "" }),
    el("td", { class: "number", text: scores.ece?.toFixed(3) ?? "" }),
  ];
}

function boardRow(task, { card, serves, backend, scores }) {
  const name = el("button", { type: "button", class: "link", text: card.name });
  name.addEventListener("click", () => {
    choose(card.name, task);
    byId("details").scrollIntoView();
  });
  const where = backend ? `${backend.name}, ${backend.device}, ${backend.precision}` : "";
  const state = serves ? el("span", { class: "tag good", title: where, text: `answers now${where ? ` (${where})` : ""}` }) : "";
  return el("tr", { class: serves ? "served" : null }, el("th", { scope: "row" }, name), ...figures(scores), el("td", {}, state));
}

function fillChoices() {
  byId("details").hidden = !cards.length;
  byId("model").replaceChildren(...cards.map(({ card }) => el("option", { value: card.name, text: card.name })));
  const wanted = new URLSearchParams(location.search);
  const first = cards.find(({ card }) => card.name === wanted.get("model")) ?? cards.find(({ serves }) => serves.length) ?? cards[0];
  if (first) choose(first.card.name, wanted.get("task"), false);
}

function choose(name, task, remember = true) {
  const { card } = cards.find((item) => item.card.name === name);
  const tasks = TASKS.filter((known) => known in card.tasks);
  const chosen = tasks.includes(task) ? task : tasks[0];
  byId("model").value = name;
  byId("task").replaceChildren(...tasks.map((known) => el("option", { value: known, text: spoken(known) })));
  byId("task").value = chosen;
  if (remember) history.replaceState(null, "", `?${new URLSearchParams({ model: name, task: chosen })}`);
  byId("detail").replaceChildren(...detail(cards.find((item) => item.card.name === name), chosen));
}

function detail({ card, backend }, task) {
  const scored = report?.models[card.name]?.tasks[task];
  // Figures of an older version of a model say nothing about this one.
  const isSame = report?.models[card.name]?.version === card.version;
  return [
    cardView(card, backend),
    charts(card, isSame ? scored : null),
    ...(isSame && scored ? [confusion(scored.confusion, card.name), perClass(scored.per_class), audit(task, card.name)] : []),
    scored && !isSame && el("p", { class: "notice warn", text: "The last evaluation is of an earlier version of this model. Run `medpix evaluate` again." }),
    !scored && el("p", { class: "notice", text: "This model is not in the last evaluation. Run `medpix evaluate`." }),
  ].filter(Boolean);
}

function cardView(card, backend) {
  const data = Object.keys(card.data.images).map((split) => `${split}: ${number(card.data.images[split])} images of ${number(card.data.cases[split])} cases`);
  const facts = [
    ["Version", card.version],
    ["Inputs", card.inputs.join(", ")],
    ["Start", card.init === "pretrained" ? `pretrained: ${card.weights_source}` : "from random weights"],
    ["Learned from", data.join("; ")],
    ["Trained values", number(card.parameters)],
    ["Training", `${Math.round(card.seconds)} s on ${card.environment.device}, seed ${card.seed}`],
    ["Runs on", backend ? `${backend.name}, ${backend.device}, ${backend.precision}. ${backend.precision_reason ?? ""}` : "not in use now"],
    ["Files", card.files.map((file) => `${file.name} (sha256 ${file.sha256.slice(0, 16)}…)`).join("; ")],
  ];
  return el(
    "div",
    { class: "card" },
    el("h3", { text: card.name }),
    el("dl", { class: "facts" }, facts.flatMap(([name, value]) => [el("dt", { text: name }), el("dd", { text: value })])),
    el("h4", { text: "Intended use" }),
    el("p", { text: card.intended_use }),
    el("h4", { text: "Limits" }),
    el("div", { class: "prose" }, el("ul", {}, card.limits.map((text) => el("li", { text })))),
  );
}

function figure(chart, words) {
  return el("figure", { class: "chart-box" }, chart, el("figcaption", { text: words }));
}

function charts(card, scored) {
  const found = [];
  if (scored) {
    const { before, after } = scored.calibration;
    found.push(figure(reliability(after.reliability), `On the dashed line a probability means what it says. ECE ${after.ece.toFixed(3)}, before calibration ${before.ece.toFixed(3)}.`));
    found.push(figure(riskCoverage(scored.risk_coverage), "Accuracy if only the surest answers are given."));
  }
  if (card.history?.length) {
    const parts = [...new Set(card.history.map((epoch) => epoch.part))];
    const series = parts.map((part) => card.history.filter((epoch) => epoch.part === part).map((epoch) => epoch.loss));
    found.push(figure(curves(series, "Training loss"), `Training loss per epoch: ${parts.join(", ")}.`));
  }
  return found.length ? el("div", { class: "charts" }, found) : null;
}

function confusion({ classes, matrix }, name) {
  const present = classes.map((_, index) => index).filter((index) => matrix[index].some(Boolean) || matrix.some((row) => row[index]));
  const cell = (row, column) => {
    const count = matrix[row][column];
    const share = count / Math.max(1, matrix[row].reduce((sum, value) => sum + value, 0));
    const node = el("td", { class: row === column ? "right" : null, text: count ? String(count) : "" });
    if (count) node.style.background = `color-mix(in srgb, var(--${row === column ? "good" : "bad"}) ${Math.round(10 + 45 * share)}%, var(--surface))`;
    return node;
  };
  const words = "One row per label of the dataset, one column per answer; classes that do not occur are left out.";
  const matrixTable = el(
    "div",
    { class: "scroll", tabindex: "0", role: "region", "aria-label": `Confusion matrix of ${name}` },
    el(
      "table",
      { class: "confusion" },
      el("thead", {}, el("tr", {}, el("td", {}), present.map((column) => el("th", { scope: "col" }, el("span", { text: classes[column] }))))),
      el("tbody", {}, present.map((row) => el("tr", {}, el("th", { scope: "row", text: classes[row] }), present.map((column) => cell(row, column))))),
    ),
  );
  return el("section", {}, el("h3", { text: "Confusion matrix" }), el("p", { class: "muted small", text: words }), matrixTable);
}

function perClass(rows) {
  const cells = (row) => [row.support, row.answered].map(String).concat([row.precision, row.recall, row.f1].map((value) => value?.toFixed(2) ?? "–"));
  return el(
    "details",
    {},
    el("summary", { text: "Figures per class" }),
    el("div", { class: "scroll" }, el(
      "table",
      {},
      el("thead", {}, el("tr", {}, ["Class", "Images", "Answered", "Precision", "Recall", "F1"].map((text, index) => el("th", { scope: "col", class: index ? "number" : null, text })))),
      el("tbody", {}, rows.map((row) => el("tr", {}, el("th", { scope: "row", text: row.class }), cells(row).map((text) => el("td", { class: "number", text }))))),
    )),
  );
}

function audit(task, name) {
  const found = report.tasks[task].audit;
  if (found?.model !== name || !found.items.length) return null;
  const tile = (item) => {
    const picture = el("img", { src: `/images/${encodeURIComponent(item.image)}/thumbnail?width=256`, alt: "", width: 256, height: 256, loading: "lazy" });
    const words = el("span", { class: "line" }, `label ${item.label}, `, el("b", { text: `answer ${item.answer}` }), ` (${percent(item.probability, 0)})`);
    const link = el("a", { class: "tile", href: `/pages/case/${encodeURIComponent(item.u_id)}#${encodeURIComponent(item.image)}` });
    link.append(el("span", { class: "frame" }, picture), words, el("span", { class: "caption", text: item.caption || "no caption" }));
    return el("li", {}, link);
  };
  return el(
    "section",
    { "aria-label": "Label audit" },
    el("h3", { text: "Label audit" }),
    el("p", { class: "muted small", text: "The surest answers that differ from the dataset's label: either may be wrong." }),
    el("ul", { class: "grid" }, found.items.map(tile)),
  );
}

byId("model").addEventListener("change", () => choose(byId("model").value, byId("task").value));
byId("task").addEventListener("change", () => choose(byId("model").value, byId("task").value));
watchTraining(byId("training"), load);
load();
