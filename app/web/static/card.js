// One model in detail: its card, its figures and its charts.

import { at } from "./address.js";
import { curves, reliability, riskCoverage } from "./charts.js";
import { el, number, percent, plural } from "./dom.js";
import { moment } from "./scores.js";

const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;
const duration = (seconds) => (seconds < 100 ? `${Math.round(seconds)} s` : `${Math.round(seconds / 60)} min`);

/** Everything about a model for one task. `report`: the last evaluation or null. */
export function detail({ card, backend, finds_images: findsImages }, task, report) {
  const found = report?.models[card.name];
  // Figures of an older version of a model say nothing about this one.
  const scored = found?.version === card.version ? found.tasks[task] : null;
  return [
    absence(card, found, scored),
    el("div", { class: "card pair" }, el("div", {}, facts(card, backend, task, scored, findsImages)), el("div", {}, figures(card, task, scored), words(card))),
    charts(card, scored),
    retrieval(card, found?.version === card.version ? found.retrieval : null, report),
    scored && confusion(scored.confusion, card.name),
    scored && perClass(scored.per_class),
    scored && audit(report.tasks[task].audit, card.name),
  ].filter(Boolean);
}

/** Why there is no confusion matrix, no calibration and no audit. */
function absence(card, found, scored) {
  if (scored) return null;
  const reason = found && found.version !== card.version ? "The last evaluation is of an earlier version of this model." : "This model has not been evaluated on the test split.";
  return el("p", { class: "notice" }, `${reason} Its confusion matrix, calibration and label audit appear here after the evaluation, which medpix up runs by itself; else run `, el("code", { text: "medpix evaluate" }), ".");
}

function recipe({ preprocess, preprocess_hash: hash }) {
  if (!preprocess) return "none: uses no image";
  const { size, channels, interpolation } = preprocess;
  return `${size} × ${size} pixels, ${channels === 1 ? "grey" : "colour"}, ${interpolation} (${hash.slice(0, 12)}…)`;
}

function facts(card, backend, task, scored, findsImages) {
  const data = Object.keys(card.data.images).map((split) => `${split}: ${number(card.data.images[split])} images of ${number(card.data.cases[split])} cases`);
  const temperature = card.temperature[task];
  const classes = card.tasks[task];
  const rows = [
    ["Version", card.version],
    ["Registered", moment(card.created_at)],
    ["Inputs", card.inputs.join(" and ")],
    ["Classes", classes.length > 2 ? el("details", {}, el("summary", { text: plural(classes.length, "class", "classes") }), classes.join("; ")) : classes.join(" and ")],
    ["Initial weights", card.init === "pretrained" ? `pretrained: ${card.weights_source}` : "random (trained from scratch)"],
    ["Training data", data.join("; ")],
    ["Parameters", number(card.parameters)],
    ["Training", `${duration(card.seconds)} on ${card.environment.device.toUpperCase()}, seed ${card.seed}`],
    ["Preprocessing", recipe(card)],
    ["Calibration", temperature === undefined ? "none" : `temperature ${temperature.toFixed(3)}, fitted on ${card.calibrated_on === "dev" ? "the dev split" : "out-of-fold predictions"}`],
    ["Confidence threshold", thresholds(card, task)],
    ["Out-of-distribution rule", outOfDistribution(card)],
    ["Coverage", coverage(card, task, scored)],
    ["Runs on", backend ? `${backend.name}, ${backend.device}, ${backend.precision}. ${backend.precision_reason ?? ""}` : "not in use"],
    findsImages && ["Image search by words", "in use: GET /search/images and “images by words” on the Browse page"],
    ["As JSON", el("a", { href: at(`/models/${encodeURIComponent(card.name)}`), text: `/models/${card.name}` })],
  ];
  const cells = rows.filter(Boolean).flatMap(([name, value]) => [el("dt", { text: name }), el("dd", {}, value)]);
  return [el("h3", { text: card.name }), el("dl", { class: "facts" }, cells)];
}

/** From which probability on an answer is confident; another one where the caption is missing. */
function thresholds({ thresholds: usual, thresholds_image_only: imageOnly }, task) {
  if (usual[task] === undefined) return "none";
  if (usual[task] > 1) return "no answer is confident: the surest ones were not right often enough for patients that the model had not seen";
  const without = imageOnly?.[task] === undefined || imageOnly[task] > 1 ? "" : `; without a caption, below ${percent(imageOnly[task])}`;
  return `answers with a probability below ${percent(usual[task])} are uncertain${without}`;
}

const DISTANCES = {
  nearest: ["cosine distance of its embedding to the nearest training image", 3],
  mahalanobis: ["Mahalanobis distance of its embedding from the training images", 2],
  stages: ["Mahalanobis distance of its feature statistics (all stages of the network) from the training images", 2],
};

function outOfDistribution({ ood_threshold: limit, ood_distance: kind }) {
  if (limit === null) return "none: the model uses no image";
  const [words, digits] = DISTANCES[kind] ?? [`distance “${kind}” from the training images`, 2];
  return `an image is out of distribution if the ${words} is above ${limit.toFixed(digits)}; answers about it are always uncertain`;
}

/** How many answers are confident by the thresholds of the card, and how good these are. */
function coverage(card, task, scored) {
  const outOfFold = card.metrics.out_of_fold?.[task];
  const found = scored?.confident ?? outOfFold?.confident;
  if (!found) return "not evaluated yet";
  const images = scored ? "test images" : `train and dev images (${outOfFold.folds} folds)`;
  if (!found.n) {
    const withdrawn = outOfFold?.confident.withdrawn;
    const surest = withdrawn ? `. Of the surest ${percent(withdrawn.coverage, 0)} of the train and dev images only ${percent(withdrawn.accuracy)} were correct` : "";
    return `none of the ${images} gets a confident answer: all answers are marked uncertain${surest}`;
  }
  const interval = found.accuracy_95 ? ` (95% interval ${found.accuracy_95.map((end) => percent(end, 0)).join(" to ")})` : "";
  const kept = found.out_of_distribution ? `. The out-of-distribution rule makes ${plural(found.out_of_distribution, "more answer")} uncertain` : "";
  return `${percent(found.coverage, 0)} of the ${images} get a confident answer, and ${percent(found.accuracy)} of these are correct${interval}${kept}`;
}

function figures(card, task, scored) {
  const rows = [["dev", card.metrics.dev?.[task]], ["test", scored?.scores ?? card.metrics.test?.[task]]].filter(([, scores]) => scores);
  if (!rows.length) return null;
  const cells = ({ n, accuracy, accuracy_95: interval, macro_f1: f1, ece }) =>
    [number(n), accuracy.toFixed(3), interval ? interval.map((end) => end.toFixed(2)).join(" to ") : "", f1?.toFixed(3) ?? "", ece?.toFixed(3) ?? ""].map((text) => el("td", { class: "number", text }));
  return scroller(
    `Figures of ${card.name}`,
    el(
      "table",
      {},
      el("thead", {}, el("tr", {}, ["Split", "Images", "Accuracy", "95%", "Macro F1", "ECE"].map((text, index) => el("th", { scope: "col", class: index ? "number" : null, text })))),
      el("tbody", {}, rows.map(([split, scores]) => el("tr", {}, el("th", { scope: "row", text: split }), cells(scores)))),
    ),
  );
}

function words(card) {
  const file = ({ name, bytes, sha256 }) => el("li", {}, `${name}, ${megabytes(bytes)}`, el("br"), el("code", { text: sha256 }));
  return [
    el("h4", { text: "Intended use" }),
    el("p", { text: card.intended_use }),
    el("h4", { text: "Limits" }),
    el("ul", { class: "list" }, card.limits.map((text) => el("li", { text }))),
    el("details", { class: "files" }, el("summary", { text: `${plural(card.files.length, "file")} with SHA-256` }), el("ul", {}, card.files.map(file))),
  ];
}

/** A table that may be wider than the screen: the keyboard can scroll it. */
function scroller(name, table) {
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": name }, table);
}

function figure(title, chart, caption) {
  return el("figure", { class: "chart-box" }, el("h3", { text: title }), chart, el("figcaption", { text: caption }));
}

function charts(card, scored) {
  const found = [];
  if (scored) {
    const { before, after } = scored.calibration;
    found.push(figure("Reliability", reliability(after.reliability), `On the dashed line the confidence equals the accuracy; larger dots are more images. ECE ${after.ece.toFixed(3)}, before calibration ${before.ece.toFixed(3)}.`));
    found.push(figure("Accuracy by coverage", riskCoverage(scored.risk_coverage), "Accuracy when only the most confident answers are counted."));
  }
  if (card.history?.length) {
    const parts = [...new Set(card.history.map((epoch) => epoch.part))];
    const series = parts.map((part) => card.history.filter((epoch) => epoch.part === part).map((epoch) => epoch.loss));
    found.push(figure("Training loss", curves(series, "Training loss"), `Mean loss of each epoch: ${parts.join(", dashed ")}.`));
  }
  return found.length ? el("div", { class: "charts" }, found) : null;
}

function confusion({ classes, matrix }, name) {
  const present = classes.map((_, index) => index).filter((index) => matrix[index].some(Boolean) || matrix.some((row) => row[index]));
  const cell = (row, column) => {
    const count = matrix[row][column];
    const share = count / Math.max(1, matrix[row].reduce((sum, value) => sum + value, 0));
    const isRight = row === column;
    const node = el("td", { class: isRight ? "right" : null, text: count ? String(count) : "" });
    // No darker than the text can be read on.
    if (count) node.style.background = `color-mix(in srgb, var(--${isRight ? "good" : "bad"}) ${Math.round(8 + 30 * share)}%, var(--surface))`;
    return node;
  };
  const about = "Rows: label of the dataset. Columns: prediction. Classes that do not occur are left out.";
  const table = el(
    "table",
    { class: "confusion" },
    el("thead", {}, el("tr", {}, el("td", {}), present.map((column) => el("th", { scope: "col" }, el("span", { text: classes[column] }))))),
    el("tbody", {}, present.map((row) => el("tr", {}, el("th", { scope: "row", text: classes[row] }), present.map((column) => cell(row, column))))),
  );
  return el("section", {}, el("h3", { text: "Confusion matrix" }), el("p", { class: "muted small", text: about }), scroller(`Confusion matrix of ${name}`, table));
}

/** How well captions find images, of a model that embeds both in one space: of the evaluation, else on dev. */
function retrieval(card, evaluated, report) {
  const [split, found] = evaluated ? [report.split.split, evaluated] : ["dev", card.retrieval?.dev];
  if (!found) return null;
  const names = { image: "the image of the caption", caption: "an image with the same caption", case: "an image of the same case" };
  const cutoffs = Object.keys(found.image.recall_at);
  const cell = (kind, cutoff) => {
    const { recall_at: recall, recall_at_95: interval, random_at: random } = found[kind];
    return el("td", { class: "number" }, recall[cutoff].toFixed(3), el("span", { class: "muted small", text: ` ${interval[cutoff].map((end) => end.toFixed(2)).join(" to ")}; random ${random[cutoff].toFixed(3)}` }));
  };
  const table = el(
    "table",
    {},
    el("thead", {}, el("tr", {}, ["Found among the first", ...cutoffs].map((text, index) => el("th", { scope: "col", class: index ? "number" : null, text })))),
    el("tbody", {}, Object.entries(names).map(([kind, text]) => el("tr", {}, el("th", { scope: "row", text }), cutoffs.map((cutoff) => cell(kind, cutoff))))),
  );
  const about = `Caption-to-image retrieval: each of ${number(found.queries)} captions of the ${split} split is compared with its ${number(found.images)} images. Shares of captions with 95% intervals over cases, and the share expected from a random order.`;
  return el("section", {}, el("h3", { text: "Image search by words" }), el("p", { class: "muted small", text: about }), scroller(`Retrieval figures of ${card.name}`, table));
}

function perClass(rows) {
  const cells = (row) => [row.support, row.answered].map(String).concat([row.precision, row.recall, row.f1].map((value) => value?.toFixed(2) ?? "–"));
  const table = el(
    "table",
    {},
    el("thead", {}, el("tr", {}, ["Class", "Images", "Predicted", "Precision", "Recall", "F1"].map((text, index) => el("th", { scope: "col", class: index ? "number" : null, text })))),
    el("tbody", {}, rows.map((row) => el("tr", {}, el("th", { scope: "row", text: row.class }), cells(row).map((text) => el("td", { class: "number", text }))))),
  );
  return el("section", {}, el("h3", { text: "Figures per class" }), scroller("Figures per class", table));
}

function audit(found, name) {
  if (found?.model !== name || !found.items.length) return null;
  const tile = (item) => {
    const picture = el("img", { src: at(`/images/${encodeURIComponent(item.image)}/thumbnail?width=256`), alt: "", width: 256, height: 256, loading: "lazy" });
    const line = el("span", { class: "line" }, `label ${item.label}, `, el("b", { text: `predicted ${item.answer}` }), ` (${percent(item.probability, 0)})`);
    const link = el("a", { class: "tile", href: at(`/pages/case/${encodeURIComponent(item.u_id)}#${encodeURIComponent(item.image)}`) });
    link.append(el("span", { class: "frame" }, picture), line, el("span", { class: "caption", text: item.caption || "no caption" }));
    return el("li", {}, link);
  };
  return el(
    "section",
    { "aria-label": "Label audit" },
    el("h3", { text: "Label audit" }),
    el("p", { class: "muted small", text: "The most confident predictions that differ from the label of the dataset; either may be wrong." }),
    el("ul", { class: "grid" }, found.items.map(tile)),
  );
}
