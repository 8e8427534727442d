// The about page: its counts and figures are asked for, so that they are those of this service.

import { at } from "./address.js";
import { getJson } from "./api.js";
import { copyButton } from "./copy.js";
import { byId, el, percent, plural, spoken } from "./dom.js";
import { lastReport, scoresOf } from "./scores.js";

async function counts() {
  const { facets, total, cases } = await getJson(at("/facets"));
  const modalities = facets.modality.map(({ value, count }) => plural(count, `${value} image`)).join(" and ");
  byId("counts").textContent = `This service contains ${plural(total, "image")} of ${plural(cases, "case")} of MedPix 2.0: ${modalities}.`;
}

/** How good a model is, in a sentence. */
function sentence(card, task, { split, accuracy, accuracy_95: interval }) {
  const range = interval ? ` (95% interval ${interval.map((end) => percent(end, 0)).join(" to ")})` : "";
  const caution = split === "dev" ? "; it was selected on these images and has not been evaluated on the test split yet" : "";
  return `${spoken(task)}: ${card.name} has an accuracy of ${percent(accuracy)} on the ${split} images${range}${caution}.`;
}

async function figures() {
  const [{ items }, report] = await Promise.all([getJson(at("/models")), lastReport()]);
  const lines = [];
  for (const { card, serves } of items) {
    for (const task of serves) {
      const scores = scoresOf(card, task, report);
      if (scores) lines.push(el("li", { text: sentence(card, task, scores) }));
    }
  }
  byId("figures").replaceChildren(...lines);
}

const bibtex = byId("bibtex");
byId("copy-bibtex").replaceChildren(copyButton("the BibTeX entry", bibtex.textContent, bibtex));
// They are the last part of the page, so that nothing moves when they arrive.
await Promise.allSettled([counts(), figures()]);
