// The models page: a leaderboard per task, and one model in detail, which the address names.

import { at } from "./address.js";
import { getJson } from "./api.js";
import { board } from "./board.js";
import { detail } from "./card.js";
import { byId, el, problemBox, spoken } from "./dom.js";
import { lastReport, SCORED_TASKS } from "./scores.js";
import { watchTraining } from "./training.js";

let items = [];
let report = null;
let timer = 0;
let isFirst = true;
const LOOK_AGAIN_MS = 30_000;
// The state of the trainings stands above the tables: they are shown with it, so that they need not move.
const training = new Promise((resolve) => watchTraining(byId("training"), { onKnown: resolve, onChange: load }));

async function load() {
  byId("board").setAttribute("aria-busy", "true");
  byId("problem").replaceChildren();
  try {
    const [models] = await Promise.all([getJson(at("/models")), readReport(), training]);
    items = models.items;
    byId("board").replaceChildren(...board(models, report, lookAt));
    showChosen();
    if (isFirst) goToCard();
    isFirst = false;
  } catch (error) {
    byId("problem").replaceChildren(problemBox(error, load));
    byId("board").replaceChildren();
    byId("details").hidden = true;
  }
  byId("board").setAttribute("aria-busy", "false");
  lookAgain();
}

/** An evaluation follows a training: as long as figures are missing, its report is looked for. */
function lookAgain() {
  clearTimeout(timer);
  const isWhole = items.every(({ card }) => report?.models[card.name]?.version === card.version);
  if (isWhole) return;
  timer = setTimeout(async () => {
    const found = await lastReport().catch(() => null);
    if (found && found.created_at !== report?.created_at) load();
    else lookAgain();
  }, LOOK_AGAIN_MS);
}

/** The cards are shown without a report as well. */
async function readReport() {
  byId("report-link").replaceChildren();
  report = await lastReport().catch((error) => {
    byId("problem").replaceChildren(problemBox(error, load));
    return null;
  });
  const link = el("a", { href: at("/evaluation/report"), text: "evaluation report" });
  if (report) byId("report-link").replaceChildren("Leakage between the splits, robustness, subgroups and the label audit are in the ", link, ".");
}

/** Show the model and the task that the address names, else one that answers. */
function showChosen() {
  byId("details").hidden = !items.length;
  if (!items.length) return;
  const wanted = new URLSearchParams(location.search);
  const named = (name) => items.find(({ card }) => card.name === name);
  const chosen = named(wanted.get("model")) ?? items.find(({ serves }) => serves.length) ?? items[0];
  const tasks = SCORED_TASKS.filter((task) => task in chosen.card.tasks);
  const task = tasks.includes(wanted.get("task")) ? wanted.get("task") : tasks[0];
  byId("model").replaceChildren(...items.map(({ card }) => el("option", { value: card.name, text: card.name })));
  byId("task").replaceChildren(...tasks.map((known) => el("option", { value: known, text: spoken(known) })));
  [byId("model").value, byId("task").value] = [chosen.card.name, task];
  byId("detail").replaceChildren(...detail(chosen, task, report));
}

function choose(model, task) {
  history.pushState(null, "", `?${new URLSearchParams({ model, task })}#details`);
  showChosen();
}

/** Who follows a link to a card finds it; the room that the page keeps lets it be scrolled to at once. */
function goToCard() {
  if (items.length && (location.hash === "#details" || new URLSearchParams(location.search).has("model"))) byId("details").scrollIntoView();
}

/** Choose a model of the leaderboard, and go to where it is shown. */
function lookAt(model, task) {
  choose(model, task);
  byId("details").scrollIntoView();
  byId("details-title").focus({ preventScroll: true });
}

for (const select of ["model", "task"].map(byId)) {
  select.addEventListener("change", () => choose(byId("model").value, byId("task").value));
}
addEventListener("popstate", showChosen);
load();
