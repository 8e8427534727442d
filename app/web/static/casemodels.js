// What the models say of an image of the case page: predictions beside its labels, and visually similar cases.

import { at } from "./address.js";
import { getJson, Problem, TASKS } from "./api.js";
import { el, problemBox, spoken } from "./dom.js";
import { predictionView } from "./prediction.js";
import { SIMILAR, similarTiles } from "./similar.js";

document.head.append(el("link", { rel: "stylesheet", href: at("/static/prediction.css") }));

/** What is wrong, for a part of the page; what is only not ready is asked for again, as long as its image is shown. */
function problemOf(error, again, isShown) {
  if (error.status !== 503) return problemBox(error, again);
  const seconds = Math.max(5, Math.min(60, error.retryAfter || error.body.training?.eta_s || 15));
  const box = el("p", { class: "notice", text: `${error.message} This page retries automatically.` });
  setTimeout(() => isShown() && box.isConnected && again(), 1000 * seconds);
  return box;
}

/** Predict an image of the dataset. `isShown()`: whether the reader still looks at it. */
export async function showPredictions(target, image, { withCaption, signal, isShown, again }) {
  if (!target.querySelector(".notice:not(.error)")) target.replaceChildren(el("p", { class: "muted", text: "Predicting …" }));
  const taskView = (task, labelled) => {
    if (labelled.prediction) return predictionView(labelled.prediction, { labelled, withSplit: true });
    const problem = new Problem(labelled.problem.detail, labelled.status, labelled.problem);
    return el("section", { class: "prediction" }, el("h3", { text: spoken(task) }), problemOf(problem, again, isShown));
  };
  try {
    const answer = await getJson(`${image.links.self}/predict`, [["caption", String(withCaption)]], { signal });
    if (isShown()) target.replaceChildren(...TASKS.map((task) => taskView(task, answer[task])));
  } catch (error) {
    if (isShown() && error.name !== "AbortError") target.replaceChildren(problemOf(error, again, isShown));
  }
}

/** Show cases whose images look alike; resolves to whether there was an answer. */
export async function showSimilar(target, image, { isShown, again }) {
  try {
    const answer = await getJson(`${image.links.self}/similar`, [["limit", SIMILAR]]);
    if (isShown()) target.replaceChildren(...similarTiles(answer));
    return true;
  } catch (error) {
    if (isShown()) target.replaceChildren(problemOf(error, again, isShown));
    return false;
  }
}
